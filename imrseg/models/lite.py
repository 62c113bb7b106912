"""The ``lite`` network: masks carried along feature correlations.

HSNet learns from all correlations by 4D convolutions. Here each position's correlations with the
object and the background of the other image, and of its own, are summed up by three statistics: the
attention-weighted mask (DCAMA, Shi et al., ECCV 2022), the mean and the maximum. The correlations
do not depend on the masks: they are made once per pair, and a refinement step costs a few small
products and 2D convolutions. What the network sees is mostly how alike things are, and hardly what
they are, which is what carries over to classes it has never met.
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
from imrseg.models.efficientnet import EFFICIENTNET_LITE0
from imrseg.models.hsnet import MASKINGS, check_name, resize_aligned
from imrseg.models.imr import ConvCell, IMRCell, NoCell
from imrseg.models.layers import MeasuredNorms, conv_block, resize
from imrseg.models.lite_hsnet import LiteHSNetHead, LiteHSNetNeck
from imrseg.models.pfenet import LitePFENetNeck, PFENetHead
from imrseg.models.refiner import Refiner

Features = dict[str, Tensor]

COARSE = ("s32a", "s32b", "s32c")
MIDDLE = ("s16a", "s16b", "s16c", "s16d")
CELLS = ("group", "conv", "none")
MAPS = 10  # per correlated layer: five statistics across the images, five within


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
class LitePair:
    """What the neck prepares once per pair (see ``refiner.Pair``); ``detail``: stride-4 features."""

    correlations: dict[str, Correlation]
    guide: Tensor
    detail: Tensor

    @property
    def mask_size(self) -> tuple[int, int]:
        return (self.detail.shape[-2], self.detail.shape[-1])


class LiteNeck(nn.Module):
    """Features of a pair of images -> ``C`` (2B, channels, H/8, W/8)."""

    def __init__(self, channels: int, guide: int) -> None:
        super().__init__()
        self.norms = MeasuredNorms({k: EFFICIENTNET_LITE0[k] for k in (*COARSE, *MIDDLE, "s8")})
        self.sharpness = nn.ParameterDict({k: nn.Parameter(torch.full((2, 1, 1), 3.0)) for k in COARSE + MIDDLE})
        self.guide = nn.Conv2d(EFFICIENTNET_LITE0["s8"], guide, 1)
        self.squeeze32 = nn.Sequential(conv_block(MAPS * len(COARSE), channels), conv_block(channels, channels))
        self.squeeze16 = nn.Sequential(
            conv_block(MAPS * len(MIDDLE) + channels, channels), conv_block(channels, channels)
        )
        self.squeeze8 = conv_block(channels, channels)

    def measure(self, batches: Iterable[Features]) -> None:
        """Take the features' mean and variance per channel from ``batches``."""
        self.norms.measure(batches)

    def prepare(self, query: Features, support: Features) -> LitePair:
        both = {k: torch.cat([query[k], support[k]]) for k in (*COARSE, *MIDDLE, "s8", "s4")}
        correlations = {k: self._correlate(k, both[k]) for k in COARSE + MIDDLE}
        return LitePair(correlations, self.guide(self.norms["s8"](both["s8"])), both["s4"])

    def _correlate(self, layer: str, features: Tensor) -> Correlation:
        f = F.normalize(self.norms[layer](features.float()), dim=1)
        size = (f.shape[-2], f.shape[-1])
        f = f.flatten(2)
        query, support = f.chunk(2)
        across = query.transpose(1, 2) @ support  # one product serves both directions
        across = torch.cat([across, across.transpose(1, 2)])
        cosine = torch.stack([across, f.transpose(1, 2) @ f], 1)
        attention = (self.sharpness[layer].exp() * cosine).softmax(-1).to(cosine.dtype)
        return Correlation(cosine, cosine.relu(), attention, size)

    def forward(self, pair: LitePair, masks: Tensor) -> tuple[Tensor, LitePair]:
        maps = {k: c.describe(masks, swap(masks)) for k, c in pair.correlations.items()}
        x = self.squeeze32(torch.cat([maps[k] for k in COARSE], 1))
        x = resize(x, pair.correlations["s16a"].size)
        x = self.squeeze16(torch.cat([x, *(maps[k] for k in MIDDLE)], 1))
        return self.squeeze8(resize(x, (pair.guide.shape[-2], pair.guide.shape[-1]))), pair


class LiteHead(nn.Module):
    """Equations 5 and 6: ``Head_0`` at stride 4, then the mix with the mask of the step before."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.decode8 = conv_block(channels, 32)
        self.detail = nn.Sequential(nn.Conv2d(EFFICIENTNET_LITE0["s4"], 16, 1), nn.ReLU())
        self.decode4 = nn.Sequential(conv_block(32 + 16, 24), nn.Conv2d(24, 2, 1))
        self.mix = nn.Sequential(nn.Conv2d(3, 10, 1), nn.GELU(), nn.Conv2d(10, 2, 1))

    def forward(self, x: Tensor, pair: LitePair, own: Tensor) -> Tensor:
        x = resize(self.decode8(x), pair.mask_size)
        x = self.decode4(torch.cat([x, self.detail(pair.detail)], 1))
        return self.mix(torch.cat([x, own], 1))


NECKS = ("lite", "hsnet", "pfenet")


def lite_refiner(
    channels: int = 48,
    guide: int = 32,
    neck: str = "lite",
    cell: str = "group",
    masking: str = "correlations",
    residual: bool = True,
) -> Refiner:
    """A network on ``EfficientNetLite`` features at 320 x 320, untrained; by default ``lite`` itself.

    Args:
        channels: of ``C`` and of the hidden state. guide: of the image features that the cell sees.
        neck: "lite"; "hsnet" or "pfenet", with their heads, to compare with.
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
    if neck == "lite":
        body, head, how = LiteNeck(channels, guide), LiteHead(channels), resize
    elif neck == "hsnet":
        body, head, how = LiteHSNetNeck(channels, guide, masking), LiteHSNetHead(channels, residual), resize_aligned
    else:
        body, head, how = LitePFENetNeck(channels), PFENetHead(channels, 0.0, resize), resize
        guide = channels
    inputs = 1 + channels + guide
    if cell == "group":
        memory: nn.Module = IMRCell(inputs, channels, squeeze=64)
    elif cell == "conv":
        memory = ConvCell(inputs, channels)
    else:
        memory = NoCell()
        if neck != "pfenet":  # which needs its guide for more than the cell
            body.guide = nn.Identity()
    return Refiner(body, memory, head, how)
