"""The ``lite`` network: PFENet's feature enrichment, guided by masks that are carried along feature correlations.

PFENet tells the object by a prototype, the mean of its features, and by a prior, the highest correlation of
each position. Here the prior says more: each position's correlations with the object and the background of
the other image, and of its own, are summed up by three statistics: the attention-weighted mask (DCAMA, Shi et
al., ECCV 2022), the mean and the maximum. The correlations do not depend on the masks: they are made once per
pair, and a refinement step costs a few small products and 2D convolutions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imrseg.errors import InputError
from imrseg.models.correlation import swap
from imrseg.models.efficientnet import EFFICIENTNET_LITE2
from imrseg.models.hsnet import MASKINGS, check_name, resize_aligned
from imrseg.models.imr import ConvCell, IMRCell, NoCell
from imrseg.models.layers import MeasuredNorms, conv_block, resize
from imrseg.models.lite_hsnet import LiteHSNetHead, LiteHSNetNeck
from imrseg.models.pfenet import PFENetNeck, PFENetPair, conv
from imrseg.models.refiner import Refiner

Features = dict[str, Tensor]

DETAIL, FINE, MIDDLE, HIGH = "s4", "s8", "s16d", "s32c"  # the backbone's last layers of four strides
CELLS = ("group", "conv", "none")
MAPS = 10  # per correlated layer: five statistics across the images, five within
PRIORS = 16  # channels that they become
DETAILS = 24  # channels of the finest layer that the head sees
DROPOUT = 0.5  # of the enriched features, PFENet's: the network shall not know the classes that it is trained on


@dataclass(frozen=True)
class Correlation:
    """How the positions of a pair of images relate in one layer; both directions stacked.

    Attributes:
        cosine: (2B, 2, N, N): [:, 0] of each position with the other image's, [:, 1] with its own's.
        positive: the same, 0 where it is negative.
        attention: softmax of the scaled cosines over the last dimension.
        size: (height, width) with N = height * width.
    """

    cosine: Tensor
    positive: Tensor
    attention: Tensor
    size: tuple[int, int]

    def describe(self, own: Tensor, other: Tensor) -> Tensor:
        """What each position has to do with the object, given soft masks (2B, 1, h, w): (2B, 10, H, W)."""
        masks = torch.stack([resize(other, self.size), resize(own, self.size)], 1).flatten(2).unsqueeze(2)
        object_, background = masks, 1 - masks  # (2B, 2, 1, N)
        regions = torch.cat([object_, background], 2).transpose(2, 3)  # (2B, 2, N, 2)
        carried = self.attention @ object_.transpose(2, 3)
        mean = self.cosine @ (regions / (regions.sum(2, keepdim=True) + 1e-3))
        peak = torch.stack([highest(self.positive, object_), highest(self.positive, background)], -1)
        maps = torch.cat([carried, mean, peak], -1)
        return maps.transpose(2, 3).reshape(len(maps), MAPS, *self.size)


def highest(similarity: Tensor, mask: Tensor) -> Tensor:
    """Largest product of each position's similarities (2B, 2, N, N) with a soft mask (2B, 2, 1, N): (2B, 2, N)."""
    if torch.is_grad_enabled() and mask.requires_grad:
        return Highest.apply(similarity, mask)
    return (similarity * mask).amax(-1)


class Highest(torch.autograd.Function):
    """``highest`` where it is trained: similarities are given, so the gradient touches one cell of N in each row."""

    @staticmethod
    def forward(ctx: Any, similarity: Tensor, mask: Tensor) -> Tensor:
        value, where = (similarity * mask.to(similarity.dtype)).max(-1)
        ctx.save_for_backward(similarity.gather(-1, where.unsqueeze(-1)).squeeze(-1), where)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        similarity, where = ctx.saved_tensors
        out = torch.zeros(where.shape, dtype=torch.float32, device=where.device)
        out.scatter_add_(-1, where, (gradients[0] * similarity).float())
        return None, out.unsqueeze(-2)


@dataclass(frozen=True)
class LitePair(PFENetPair):
    """What the neck prepares once per pair.

    Attributes:
        detail: of either picture, (2B, DETAILS, h, w), of the masks' size.
    """

    detail: Tensor


class LitePFENetNeck(PFENetNeck):
    """PFENet's neck on EfficientNet-Lite2, whose last layers of strides 8 and 16 are "middle", that of 32 is "high".

    The layer of stride 4 goes past the neck to the head.
    """

    def __init__(self, channels: int, priors: int = 1) -> None:
        super().__init__(EFFICIENTNET_LITE2[FINE] + EFFICIENTNET_LITE2[MIDDLE], channels, DROPOUT, resize, priors)
        # These layers end without a ReLU and differ in scale.
        self.norms = MeasuredNorms({name: EFFICIENTNET_LITE2[name] for name in (DETAIL, FINE, MIDDLE, HIGH)})
        self.detail = nn.Sequential(conv(EFFICIENTNET_LITE2[DETAIL], DETAILS, 1), nn.ReLU())

    def measure(self, batches: Iterable[Features]) -> None:
        """Take the features' mean and variance per channel from ``batches``."""
        self.norms.measure(batches)

    def layers(self, features: Features) -> Features:
        fine, middle, high = (self._even(name, features) for name in (FINE, MIDDLE, HIGH))
        wide = resize(middle, (fine.shape[-2], fine.shape[-1]))
        return {"middle": torch.cat([fine, wide], 1), "high": high, MIDDLE: middle}

    def prepare(self, query: Features, support: Features) -> LitePair:
        detail = self.detail(torch.cat([self._even(DETAIL, query), self._even(DETAIL, support)]))
        return LitePair(**vars(super().prepare(query, support)), detail=detail)

    def _even(self, name: str, features: Features) -> Tensor:
        return self.norms[name](features[name].float())


class LiteNeck(LitePFENetNeck):
    """The same with ``Correlation``'s statistics of two layers as the prior."""

    CORRELATED = ("high", MIDDLE)

    def __init__(self, channels: int) -> None:
        super().__init__(channels, PRIORS)
        self.sharpness = nn.ParameterDict({name: nn.Parameter(torch.full((2, 1, 1), 3.0)) for name in self.CORRELATED})
        self.weigh = conv_block(MAPS * len(self.CORRELATED), PRIORS)

    def compare(self, layers: Features) -> dict[str, Correlation]:
        return {name: self._correlate(name, layers[name]) for name in self.CORRELATED}

    def _correlate(self, layer: str, features: Tensor) -> Correlation:
        f, size = F.normalize(features, dim=1).flatten(2), (features.shape[-2], features.shape[-1])
        query, support = f.chunk(2)
        across = query.transpose(1, 2) @ support  # one product serves both directions
        across = torch.cat([across, across.transpose(1, 2)])
        cosine = torch.stack([across, f.transpose(1, 2) @ f], 1)
        attention = (self.sharpness[layer].exp() * cosine).softmax(-1).to(cosine.dtype)
        return Correlation(cosine, cosine.relu(), attention, size)

    def prior(self, compared: dict[str, Correlation], masks: Tensor) -> Tensor:
        maps = [resize(c.describe(masks, swap(masks)), compared[MIDDLE].size) for c in compared.values()]
        return self.weigh(torch.cat(maps, 1))


class LiteHead(nn.Module):
    """Equations 5 and 6: PFENet's last convolutions, the last of which see the pictures at the masks' own size.

    There object and background meet at the picture's edges, which features of stride 8 show no more. ``forward``
    takes ``C`` + hidden state (2B, channels, h, w), the ``LitePair`` and the own masks (2B, 1, 2h, 2w) in [0, 1], and
    gives logits (2B, 2, 2h, 2w).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(conv(channels, channels, 3), nn.ReLU(), conv(channels, channels, 3), nn.ReLU())
        self.narrow = nn.Sequential(conv(channels, channels, 3), nn.ReLU())
        self.classify = nn.Sequential(
            nn.Conv2d(channels + DETAILS + 1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 2, 1)
        )
        self.mix = nn.Sequential(nn.Conv2d(3, 10, 1), nn.GELU(), nn.Conv2d(10, 2, 1))

    def forward(self, x: Tensor, pair: LitePair, own: Tensor) -> Tensor:
        x = resize(self.narrow(self.block(x) + x), pair.mask_size)
        x = self.classify(torch.cat([x, pair.detail, own], 1))
        return self.mix(torch.cat([x, own], 1))


NECKS = ("lite", "hsnet", "pfenet")


def lite_refiner(
    channels: int = 48,
    neck: str = "lite",
    cell: str = "group",
    masking: str = "correlations",
    residual: bool = True,
) -> Refiner:
    """A network on ``EfficientNetLite`` features at 320 x 320, untrained; by default ``lite`` itself.

    Args:
        channels: of ``C`` and of the hidden state.
        neck: "lite"; "hsnet" or "pfenet", to compare with.
        cell: "group", "conv" or "none" (supplement 2.3).
        masking: of neck "hsnet": "correlations" or "features" (``hsnet.IMRHSNet``). The others mask correlations.
        residual: equation 6. Without it, neck "hsnet" and cell "none" are HSNet itself, which knows
            nothing of its own picture's mask.

    Raises:
        InputError: names that are none of these, or do not go together.
    """
    check_name("neck", neck, NECKS)
    check_name("cell", cell, CELLS)
    check_name("masking", masking, MASKINGS)
    if neck != "hsnet" and (masking != "correlations" or not residual):
        raise InputError(f"Masked features and heads without equation 6 are for the neck “hsnet”, not “{neck}”.")
    body: nn.Module
    head: nn.Module
    if neck == "hsnet":
        guide = 32  # channels
        body, head, how = LiteHSNetNeck(channels, guide, masking), LiteHSNetHead(channels, residual), resize_aligned
    else:
        guide = channels
        body = LiteNeck(channels) if neck == "lite" else LitePFENetNeck(channels)
        head, how = LiteHead(channels), resize
    inputs = 1 + channels + guide
    if cell == "group":
        memory: nn.Module = IMRCell(inputs, channels, squeeze=64)
    elif cell == "conv":
        memory = ConvCell(inputs, channels)
    else:
        memory = NoCell()
        if neck == "hsnet":
            body.guide = nn.Identity()  # the others need theirs for more than the cell
    return Refiner(body, memory, head, how)
