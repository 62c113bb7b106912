"""Center-pivot 4D convolution (HSNet, Min et al., ICCV 2021, section 4.2), without needless copies.

A 4D tensor holds something for every pair of positions: one of the own picture (ha, wa), one of the
other (hb, wb). The convolution is the sum of a 2D convolution over the own picture's positions and
one over the other's. Each is a plain batch of 2D convolutions if the channels lie right before the
positions that it goes over, so there are two layouts, both contiguous:

- by own position, (B, ha, wa, C, hb, wb), while the other picture's positions are many;
- by other position, (B, hb, wb, C, ha, wa), once they are few.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imrseg.models.correlation import Volume


class CenterPivotConv4d(nn.Module):
    """A 4D convolution whose kernel keeps only the weights that touch one of its two centres.

    Args:
        inputs, outputs: channels.
        kernel: side of both 2D kernels, odd.
        stride: over the other picture's positions; those of the own picture all stay.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.conv2 = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)

    def forward(self, x: Tensor | Volume) -> Tensor:
        """(B, ha, wa, C, hb, wb) -> (B, ha, wa, C', ceil(hb / stride), ceil(wb / stride))."""
        if isinstance(x, Volume):
            b, kept, parts = 1, x.kept(self.stride), x.parts()
        else:
            b, kept = len(x), x[..., :: self.stride, :: self.stride].permute(0, 4, 5, 3, 1, 2).flatten(0, 2)
            parts = [x.flatten(0, 2)]
        own = self.conv1(kept)
        other = torch.cat([self.conv2(part) for part in parts])
        own = own.view(b, *other.shape[-2:], *own.shape[1:]).permute(0, 4, 5, 3, 1, 2)
        return other.view(own.shape) + own


class NarrowConv4d(CenterPivotConv4d):
    """The same for few positions of the other picture, all of which stay; laid out by other position.

    The 2D convolution over them is then one matrix, and a product with it a 1x1 convolution.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel, 1)

    def forward(self, x: Tensor | Volume) -> Tensor:
        """(B, hb, wb, C, ha, wa) -> (B, hb, wb, C', ha, wa)."""
        assert isinstance(x, Tensor)
        b, hb, wb, _, ha, wa = x.shape
        own = self.conv1(x.flatten(0, 2))
        weight = as_matrix(self.conv2.weight, (hb, wb))
        assert self.conv2.bias is not None
        other = F.conv2d(x.flatten(1, 3), weight[..., None, None], self.conv2.bias.repeat(hb * wb))
        return (own.view(other.shape) + other).view(b, hb, wb, -1, ha, wa)


def as_matrix(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """The matrix of a padded 2D convolution of stride 1 over ``size`` positions.

    Args:
        weight: (C', C, k, k). size: (height, width).

    Returns:
        (N C', N C) with N = height * width, positions before channels.
    """
    y, x = (torch.arange(n, device=weight.device) for n in size)
    reach = weight.shape[-1] // 2
    dy, dx = (p[None] - p[:, None] + reach for p in (y, x))  # (to, from): which tap joins them
    inside = ((dy >= 0) & (dy <= 2 * reach))[:, None, :, None] & ((dx >= 0) & (dx <= 2 * reach))[None, :, None]
    taps = weight[:, :, dy.clamp(0, 2 * reach)[:, None, :, None], dx.clamp(0, 2 * reach)[None, :, None]] * inside
    return taps.permute(2, 3, 0, 4, 5, 1).reshape(len(y) * len(x) * len(weight), -1)


class GroupNorm4d(nn.GroupNorm):
    """Group normalisation of (B, h, w, C, h, w), over everything but batch and group of channels."""

    def forward(self, x: Tensor) -> Tensor:
        groups = x.reshape(len(x), -1, self.num_groups, x[0, 0, 0].numel() // self.num_groups).float()
        count = groups[0, :, 0].numel()
        # Two sums; the usual one-pass formula takes ten times as long over these dimensions.
        mean = groups.sum(3).sum(1) / count
        variance = torch.linalg.vector_norm(groups, dim=3).square().sum(1) / count - mean.square()
        scale = (variance + self.eps).rsqrt()

        def fitted(per_channel: Tensor) -> Tensor:  # whole rows of memory at once
            return per_channel.to(x.dtype)[:, None, None, :, None, None].expand(len(x), 1, 1, *x.shape[3:]).contiguous()

        scale, mean = (s.repeat_interleave(self.num_channels // self.num_groups, 1) for s in (scale, mean))
        scale = scale * self.weight
        return torch.addcmul(fitted(self.bias - mean * scale), x, fitted(scale))
