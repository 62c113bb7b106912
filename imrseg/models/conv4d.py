"""Center-pivot 4D convolution (HSNet, Min et al., ICCV 2021, section 4.2)."""

from __future__ import annotations

from torch import Tensor, nn


class CenterPivotConv4d(nn.Module):
    """A 4D convolution whose kernel keeps only the weights that touch one of its two centres.

    It is the sum of a 2D convolution over the positions of one picture and a 2D convolution over
    those of the other.

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

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ha, wa, hb, wb) -> (B, C', ha, wa, ceil(hb / stride), ceil(wb / stride))."""
        kept = x[..., :: self.stride, :: self.stride]
        b, c, ha, wa, hb, wb = kept.shape
        own = self.conv1(kept.permute(0, 4, 5, 1, 2, 3).reshape(-1, c, ha, wa))
        own = own.view(b, hb, wb, -1, ha, wa).permute(0, 3, 4, 5, 1, 2)
        other = self.conv2(x.permute(0, 2, 3, 1, 4, 5).reshape(-1, c, *x.shape[-2:]))
        other = other.view(b, ha, wa, -1, hb, wb).permute(0, 3, 1, 2, 4, 5)
        return own + other
