"""Small pieces that several networks share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn

from imrseg.errors import WeightsError


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) -> (B, C, *size): mean over areas when smaller, bilinear when larger."""
    if x.shape[-2:] == tuple(size):
        return x
    if size[0] <= x.shape[-2] and size[1] <= x.shape[-1]:
        return F.adaptive_avg_pool2d(x, size)
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def conv_block(inputs: int, outputs: int, groups: int = 4) -> nn.Sequential:
    """3x3 convolution, group norm, ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(groups, outputs), nn.ReLU())


def lower_convolutions(module: nn.Module, precision: torch.dtype) -> None:
    """Keep the weights of all 2D convolutions in ``precision``; what they are given is theirs to bring to it."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            part.to(precision)


class MeasuredNorms(nn.ModuleDict):
    """Centres and evens out a frozen backbone's features per channel; the statistics are measured once and stay.

    Cosines of such features tell classes apart better.

    Args:
        channels: of each layer by name.
    """

    def __init__(self, channels: Mapping[str, int]) -> None:
        super().__init__({name: nn.BatchNorm2d(count, affine=False) for name, count in channels.items()})
        self.train(False)  # whatever the batch

    def measure(self, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Take the features' mean and variance per channel from ``batches``."""
        for norm in self.values():
            norm.reset_running_stats()
            norm.momentum = None  # cumulative average
            norm.train()
        with torch.no_grad():
            for features in batches:
                for name, norm in self.items():
                    norm(features[name])
        self.train(False)

    def train(self, mode: bool = True) -> MeasuredNorms:
        return super().train(False)


def check_fit(given: Mapping[str, Tensor], expected: Mapping[str, Size], what: str) -> None:
    """Compare tensors with the names and shapes that a network expects.

    Raises:
        WeightsError: they differ; the message begins with ``what`` and lists some of the names.
    """
    wrong = [f"missing {name}" for name in expected if name not in given]
    wrong += [f"unexpected {name}" for name in given if name not in expected]
    wrong += [
        f"{name} is {tuple(given[name].shape)}, not {tuple(shape)}"
        for name, shape in expected.items()
        if name in given and given[name].shape != shape
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise WeightsError(f"{what}: {'; '.join(wrong[:5])}{more}.")
