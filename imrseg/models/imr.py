"""The recurrent cell of Iterative Mutual Refinement (paper section 4.2, equation 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class IMRCell(nn.Module):
    """Convolutional GRU whose hidden state tracks how well a mask is estimated so far.

    Each gate is a 1x1 convolution followed by a 3x3 convolution in ``groups`` groups, the variant
    that the paper adopts (section 4.2; supplement 2.3 and Table 5).

    Args:
        inputs: channels of ``x = [mask, correlation, features]``.
        hidden: channels of the hidden state.
        groups: groups of the 3x3 convolutions; must divide ``hidden`` and ``squeeze``.
        squeeze: channels between the 1x1 and the 3x3 convolution of a gate.
        start: (height, width) of a learned first hidden state; None starts from zero, at any size.
    """

    def __init__(
        self, inputs: int, hidden: int, groups: int = 16, squeeze: int = 128, start: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.start = None if start is None else nn.Parameter(torch.zeros(1, hidden, *start))
        # The update and the reset gate read the same input, so one convolution makes both.
        self.gates_in = nn.Conv2d(inputs + hidden, 2 * squeeze, 1)
        self.gates_out = nn.Conv2d(2 * squeeze, 2 * hidden, 3, padding=1, groups=2 * groups)
        self.candidate_in = nn.Conv2d(inputs + hidden, squeeze, 1)
        self.candidate_out = nn.Conv2d(squeeze, hidden, 3, padding=1, groups=groups)

    def first(self, like: Tensor) -> Tensor:
        """The hidden state before the first step, (B, hidden, H, W), for features ``like`` (B, _, H, W)."""
        if self.start is None:
            return like.new_zeros(len(like), self.hidden, *like.shape[-2:])
        return self.start.expand(len(like), -1, -1, -1)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Update ``h`` (B, hidden, H, W) by ``x`` (B, inputs, H, W); returns the new state."""
        z, r = self.gates_out(self.gates_in(torch.cat([x, h], 1))).sigmoid().chunk(2, 1)
        candidate = self.candidate_out(self.candidate_in(torch.cat([r * h, x], 1))).tanh()
        return (1 - z) * h + z * candidate
