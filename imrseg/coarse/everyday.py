"""Class vectors for everyday classes that ImageNet lacks, learned from image-level labels.

ImageNet has scuba divers and bridegrooms but no person, parks and barns but no sky or road. A class
vector is a row beside the thousand of the image tower's classifier, so it is learned against them:
the class is in the picture when its logit beats the log-sum-exp of ImageNet's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def learn(
    pooled: Tensor, present: Tensor, weight: Tensor, bias: Tensor, decay: float = 0.005, steps: int = 300
) -> tuple[Tensor, Tensor]:
    """Learn class vectors.

    Args:
        pooled: pooled features of the training pictures (N, C).
        present: (N, E), 1 where a picture shows a class, 0 where not, NaN where nobody said.
        weight, bias: ImageNet's class vectors (K, C) and (K,).
        decay: pull of each vector towards the mean of ImageNet's.
        steps: of Adam.

    Returns:
        weight (E, C), bias (E,). A class that no picture is said to show keeps the mean vector and a
        bias that no picture reaches.
    """
    known = ~present.isnan()
    mean = weight.mean(0)
    others = torch.logsumexp(pooled @ weight.T + bias, 1, keepdim=True)
    offset = torch.zeros(present.shape[1], pooled.shape[1], requires_grad=True)
    own_bias = torch.zeros(present.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([offset, own_bias], 2e-3)
    for _ in range(steps):
        logits = pooled @ (mean + offset).T + own_bias - others
        loss = F.binary_cross_entropy_with_logits(logits[known], present[known])
        loss = loss + decay * offset.square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    taught = (present == 1).any(0)
    offset, own_bias = offset.detach(), own_bias.detach()
    return mean + offset * taught.unsqueeze(1), torch.where(taught, own_bias, torch.full_like(own_bias, -100.0))
