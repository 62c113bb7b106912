"""HSNet's neck and head on ``EfficientNetLite`` features, to compare with ``lite``'s and PFENet's on equal terms."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from imrseg.models.conv4d import CenterPivotConv4d
from imrseg.models.correlation import RawCorrelation
from imrseg.models.efficientnet import EFFICIENTNET_LITE2
from imrseg.models.hsnet import HSNetHead, HSNetNeck, HSNetPair, block
from imrseg.models.layers import MeasuredNorms, resize

LEVELS = (("s32a", "s32b", "s32c"), ("s16a", "s16b", "s16c", "s16d"), ("s8",))

Features = dict[str, Tensor]


class LiteHSNetNeck(HSNetNeck):
    """Features of a pair of pictures -> ``C`` (2B, channels, H/16, W/16).

    HSNet's squeezing and mixing blocks with ``channels`` in place of 128. Stride 8 has a single layer here,
    which is averaged to stride 16: full correlations at stride 8 would cost sixteen times as much.
    """

    def __init__(self, channels: int, guide: int, masking: str) -> None:
        middle = sum(EFFICIENTNET_LITE2[name] for name in LEVELS[1])
        super().__init__((3, 4, 1), nn.Conv2d(middle, guide, 1), False, masking)
        self.norms = MeasuredNorms({name: EFFICIENTNET_LITE2[name] for level in LEVELS for name in level})
        self.squeeze = nn.ModuleList(
            block(*map(CenterPivotConv4d, (depth, 16, 32), (16, 32, channels), kernels, strides))
            for depth, kernels, strides in zip(
                self.depths, ([3, 3, 3], [5, 3, 3], [5, 3, 3]), ([2, 2, 2], [4, 2, 2], [4, 2, 2]), strict=True
            )
        )
        self.mix = nn.ModuleList(
            block(*(CenterPivotConv4d(channels, channels, 3, 1) for _ in range(3))) for _ in range(2)
        )

    def measure(self, batches: Iterable[Features]) -> None:
        """Take the features' mean and variance per channel from ``batches``."""
        self.norms.measure(batches)

    def prepare(self, query: Features, support: Features) -> HSNetPair:  # type: ignore[override]
        queries, supports = self.layers(query), self.layers(support)
        firsts = [squeeze[0] for squeeze in self.squeeze]
        with torch.autocast(queries[0][0].device.type, enabled=False):  # products are made in place, in one precision
            correlations = [
                RawCorrelation.of(q, s, conv.stride, conv.conv1.weight.dtype)
                for q, s, conv in zip(queries, supports, firsts, strict=True)
            ]
        middle = torch.cat([torch.cat(levels[1], 1) for levels in (queries, supports)])
        return HSNetPair(correlations, self.guide(middle))

    def layers(self, features: Features) -> list[list[Tensor]]:
        """Each of LEVELS, the finest at the size of the middle one."""
        levels = [[self.norms[name](features[name].float()) for name in level] for level in LEVELS]
        height, width = levels[1][0].shape[-2:]
        levels[2] = [resize(layer, (height, width)) for layer in levels[2]]
        return levels


class LiteHSNetHead(HSNetHead):
    """HSNet's decoder for ``channels`` in place of 128."""

    def __init__(self, channels: int, residual: bool) -> None:
        super().__init__(residual)
        self.decoder1[0] = nn.Conv2d(channels, channels, 3, padding=1)
        self.decoder1[2] = nn.Conv2d(channels, 64, 3, padding=1)
