"""Center-pivot 4D convolution (HSNet, Min et al., ICCV 2021, section 4.2), without copies.

A 4D tensor holds something for every pair of positions, one of the own picture (ha, wa) and one of the
other (hb, wb). Here it is always laid out as (B, ha, wa, hb, wb, C), contiguous. The convolution is the
sum of two 2D convolutions, and both see that memory as channels-last images:

- over the other picture's positions: B ha wa images of hb x wb;
- over the own picture's positions: B images of ha x (wa hb wb), a row holding the other's positions
  side by side, with the kernel's columns hb wb apart (a dilation).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imrseg.models.correlation import PART, Volume, plus, times


class CenterPivotConv4d(nn.Module):
    """A 4D convolution whose kernel keeps only the weights that touch one of its two centres.

    Args:
        inputs, outputs: channels.
        kernel: side of both 2D kernels, odd.
        stride: over the other picture's positions; those of the own picture all stay.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.stride, self.reach = stride, kernel // 2
        self.conv1 = nn.Conv2d(inputs, outputs, kernel, padding=self.reach)
        self.conv2 = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=self.reach)

    def forward(self, x: Tensor | Volume) -> Tensor:
        """(B, ha, wa, hb, wb, C) -> (B, ha, wa, ceil(hb / stride), ceil(wb / stride), C')."""
        if not isinstance(x, Volume):
            return plus(self._over_own(x[..., :: self.stride, :: self.stride, :]), self._over_other(x))
        out = self._over_own(x.kept())
        if torch.is_grad_enabled():
            parts = [self.conv2(part).permute(0, 2, 3, 1) for part in x.parts()]
            return out + torch.cat(parts).view_as(out)
        rows, start = out.flatten(0, 2), 0
        for part in x.parts():
            # First in order, then added: a sum across layouts is slow in bfloat16.
            rows[start : start + len(part)] += self.conv2(part).permute(0, 2, 3, 1).contiguous()
            start += len(part)
        return out

    def _over_own(self, x: Tensor) -> Tensor:
        b, ha, wa, hb, wb, c = x.shape
        apart = hb * wb
        images = x.reshape(b, ha, wa * apart, c).permute(0, 3, 1, 2)
        padding = (self.reach, self.reach * apart)
        out = F.conv2d(images, self.conv1.weight, self.conv1.bias, padding=padding, dilation=(1, apart))
        return out.permute(0, 2, 3, 1).reshape(b, ha, wa, hb, wb, -1)

    def _over_other(self, x: Tensor) -> Tensor:
        b, ha, wa, hb, wb, c = x.shape
        if self.stride == 1 and hb * wb <= self.conv2.weight[0, 0].numel():
            # So few positions that all of them meet: a product with one matrix has less to do.
            images = x.view(b, ha, wa, -1).permute(0, 3, 1, 2)
            matrix, bias = as_matrix(self.conv2.weight, (hb, wb)), self.conv2.bias
            out = F.conv2d(images, matrix[..., None, None], None if bias is None else bias.repeat(hb * wb))
        else:
            out = self.conv2(x.view(-1, hb, wb, c).permute(0, 3, 1, 2))
            hb, wb = out.shape[-2:]
        return out.permute(0, 2, 3, 1).reshape(b, ha, wa, hb, wb, -1)


def as_matrix(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """The matrix of a padded 2D convolution of stride 1 over ``size`` positions.

    Args:
        weight: (C', C, k, k). size: (height, width).

    Returns:
        (N C', N C) with N = height * width, positions before channels.
    """
    y, x = (torch.arange(n, device=weight.device) for n in size)
    reach = weight.shape[-1] // 2
    dy, dx = (p[None] - p[:, None] + reach for p in (y, x))  # (to, from): the tap between them, if there is one
    dy, dx = dy[:, None, :, None], dx[None, :, None]
    inside = (dy >= 0) & (dy <= 2 * reach) & (dx >= 0) & (dx <= 2 * reach)
    taps = weight.permute(2, 3, 0, 1).contiguous()[dy.clamp(0, 2 * reach), dx.clamp(0, 2 * reach)]
    taps = taps * inside[..., None, None]
    return taps.permute(0, 1, 4, 2, 3, 5).reshape(len(y) * len(x) * len(weight), -1)


class GroupNorm4d(nn.GroupNorm):
    """Group normalisation of (B, ha, wa, hb, wb, C) over everything but batch and group of channels.

    In place in float32, unless gradients are wanted.
    """

    def forward(self, x: Tensor) -> Tensor:
        flat = x.view(len(x), -1, self.num_channels)
        # PyTorch's own kernel for this layout adds up in a row and is a hundred times less exact:
        # more than bfloat16 can tell, and there it takes a third of the time.
        if x.dtype == torch.bfloat16 and not x.is_cuda:
            images = flat.unsqueeze(2).permute(0, 3, 1, 2)
            return super().forward(images).permute(0, 2, 3, 1).view(x.shape)

        def over_groups(x: Tensor) -> Tensor:  # (B, C) -> (B, C), each channel its group's mean
            groups = x.view(len(x), self.num_groups, -1)
            return groups.mean(2, keepdim=True).expand_as(groups).flatten(1)

        exact = torch.promote_types(x.dtype, torch.float32)

        def sums(part: Tensor) -> Tensor:
            part = part.to(exact)
            return torch.stack([part.sum(1), part.square().sum(1)])

        moments = torch.stack([sums(part) for part in flat.split(PART // self.num_channels, 1)]).sum(0)
        mean, square = (over_groups(each / flat.shape[1]) for each in moments)
        scale = self.weight * (square - mean.square() + self.eps).rsqrt()
        rows = x.reshape(*x.shape[:2], -1)  # long rows of memory: short ones are slow in bfloat16
        scale, shift = (
            each.to(x.dtype).repeat(1, rows.shape[2] // self.num_channels).unsqueeze(1)
            for each in (scale, self.bias - mean * scale)
        )
        return plus(times(rows, scale), shift).view(x.shape)
