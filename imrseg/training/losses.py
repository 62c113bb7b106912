"""Equation 7."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from imrseg import distributed


def segmentation_loss(logits: Tensor, target: Tensor, dice: float, weight: Tensor | None = None) -> Tensor:
    """Cross entropy (equation 7's L_seg) plus ``dice`` times the soft Dice loss.

    Of several processes each gives its share: the mean of their losses, and so of their gradients, is that
    of all pictures in one process.

    Args:
        logits: (B, 2, h, w), brought to the target's size where they have another.
        target: (B, 2, h', w'), the object's and the valid share of each cell.
        weight: of each picture, (B,); None: all alike.
    """
    valid = target[:, 1]
    share = (target[:, 0] / valid.clamp_min(1e-3)).clamp(0, 1)
    margin = logits[:, 1] - logits[:, 0]
    if margin.shape != share.shape:
        margin = F.interpolate(margin.unsqueeze(1), share.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    weight = torch.ones_like(share[:, 0, 0]) if weight is None else weight
    counted = valid * weight.view(-1, 1, 1)
    entropy = F.binary_cross_entropy_with_logits(margin, share, reduction="none")
    cells = distributed.total(counted.sum()).clamp_min(1e-3)  # of pictures that are all to be ignored none
    loss = (entropy * counted).sum() / (cells / distributed.size())
    if not dice:
        return loss
    found, wanted = margin.sigmoid() * valid, share * valid
    # The constant keeps small objects and empty targets from dominating.
    overlap = (2 * (found * wanted).sum((1, 2)) + 20) / (found.sum((1, 2)) + wanted.sum((1, 2)) + 20)
    return loss + dice * ((1 - overlap) * weight).sum() / weight.sum()


def step_weights(schedule: str, steps: int) -> list[float]:
    """lambda_t of equation 7 for t = 1 .. N (supplement 2.4)."""
    if schedule == "none":
        return [0.0] * (steps - 1) + [1.0]
    return [t / steps if schedule == "linear" else 1.0 for t in range(1, steps + 1)]


def total_loss(losses: Sequence[Tensor], schedule: str) -> Tensor:
    """Equation 7 over the steps' losses, divided by the sum of lambda_t: of one size whatever N is."""
    weights = step_weights(schedule, len(losses))
    return torch.stack([w * loss for w, loss in zip(weights, losses, strict=True) if w]).sum() / sum(weights)
