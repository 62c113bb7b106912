"""The recurrent cell of Iterative Mutual Refinement (paper section 4.2, equation 4)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imrseg.models.layers import lower_convolutions


class GRUCell(nn.Module, ABC):
    """Convolutional GRU whose hidden state tracks how well a mask is estimated so far.

    Equation 4 with ``x = [seen, guide]``: ``seen`` is the mask and the correlation, which change from
    step to step, and ``guide`` the image features, which do not. The gates are linear in ``x``
    before their sigmoid, so what ``guide`` adds to them is computed once per pair (``prepare``).

    Args:
        hidden: channels of the hidden state.
        start: (height, width) of a learned first hidden state; None starts from zero, at any size.
    """

    def __init__(self, hidden: int, start: tuple[int, int] | None) -> None:
        super().__init__()
        self.hidden = hidden
        self.start = None if start is None else nn.Parameter(torch.zeros(1, hidden, *start))

    @property
    @abstractmethod
    def gates(self) -> list[nn.Conv2d]:
        """``W_conv1,1`` and ``W_conv1,2`` in one, for both read ``[x, h]``: convolutions in a row."""

    @property
    @abstractmethod
    def candidate(self) -> list[nn.Conv2d]:
        """``W_conv2``, which reads ``[r h, x]``."""

    def lower(self, precision: torch.dtype) -> None:
        """Convolve in ``precision``."""
        lower_convolutions(self, precision)

    def first(self, like: Tensor) -> Tensor:
        """The hidden state before the first step, (B, hidden, H, W), for features ``like`` (B, _, H, W)."""
        if self.start is None:
            return like.new_zeros(len(like), self.hidden, *like.shape[-2:])
        return self.start.expand(len(like), -1, -1, -1)

    def prepare(self, guide: Tensor) -> Tensor:
        """What ``guide`` (B, G, H, W) and the biases add to gates and candidate: (B, 3 hidden, H, W)."""
        end = self.gates[0].in_channels - self.hidden
        gates = partly(self.gates, guide, [slice(end - guide.shape[1], end)], count=2, biased=True)
        candidate = partly(self.candidate, guide, [slice(-guide.shape[1], None)], biased=True)
        return torch.cat([gates, candidate], 1).to(guide.dtype)

    def forward(self, seen: Tensor, h: Tensor, prepared: Tensor) -> Tensor:
        """Update ``h`` (B, hidden, H, W) by ``seen`` (B, C, H, W); returns the new state.

        The convolutions compute in the precision of their weights; the state keeps its own.
        """
        guided, candidate = prepared.split([2 * self.hidden, self.hidden], 1)
        columns = [slice(seen.shape[1]), slice(-self.hidden, None)]
        gates = partly(self.gates, torch.cat([seen, h], 1), columns, count=2)
        z, r = (gates + guided).sigmoid().chunk(2, 1)
        columns = [slice(self.hidden + seen.shape[1])]
        new = (partly(self.candidate, torch.cat([r * h, seen], 1), columns) + candidate).tanh()
        return (1 - z) * h + z * new


def partly(convs: list[nn.Conv2d], x: Tensor, columns: list[slice], count: int = 1, biased: bool = False) -> Tensor:
    """What the input channels ``columns``, holding ``x``, add to the output of convolutions in a row.

    Args:
        count: of gates in one; computed one after the other, for all at once outgrow a processor's cache.
    """
    x = x.to(convs[0].weight.dtype, memory_format=torch.channels_last)  # half the time of the other layout
    outs = []
    for gate in range(count):
        out = x
        for k, conv in enumerate(convs):
            weight = conv.weight.chunk(count)[gate]
            if k == 0:
                weight = torch.cat([weight[:, c] for c in columns], 1)
            bias = conv.bias.chunk(count)[gate] if biased and conv.bias is not None else None
            groups = max(1, conv.groups // count)
            out = F.conv2d(out, weight, bias, padding=conv.padding, groups=groups)
        outs.append(out)
    return torch.cat(outs, 1)


class IMRCell(GRUCell):
    """The cell that the paper adopts: each gate a 1x1, then a 3x3 convolution in ``groups`` groups.

    Args:
        inputs: channels of ``x = [mask, correlation, features]``.
        hidden, start: see ``GRUCell``.
        groups: groups of the 3x3 convolutions; must divide ``hidden`` and ``squeeze``.
        squeeze: channels between the 1x1 and the 3x3 convolution of a gate.
    """

    def __init__(
        self, inputs: int, hidden: int, groups: int = 16, squeeze: int = 128, start: tuple[int, int] | None = None
    ) -> None:
        super().__init__(hidden, start)
        self.gates_in = nn.Conv2d(inputs + hidden, 2 * squeeze, 1)
        self.gates_out = nn.Conv2d(2 * squeeze, 2 * hidden, 3, padding=1, groups=2 * groups)
        self.candidate_in = nn.Conv2d(inputs + hidden, squeeze, 1)
        self.candidate_out = nn.Conv2d(squeeze, hidden, 3, padding=1, groups=groups)

    @property
    def gates(self) -> list[nn.Conv2d]:
        return [self.gates_in, self.gates_out]

    @property
    def candidate(self) -> list[nn.Conv2d]:
        return [self.candidate_in, self.candidate_out]


class ConvCell(GRUCell):
    """The paper's other cell (supplement 2.3, "Conv"): each gate is one 3x3 convolution. Arguments as above."""

    def __init__(self, inputs: int, hidden: int, start: tuple[int, int] | None = None) -> None:
        super().__init__(hidden, start)
        self.gates_conv = nn.Conv2d(inputs + hidden, 2 * hidden, 3, padding=1)
        self.candidate_conv = nn.Conv2d(inputs + hidden, hidden, 3, padding=1)

    @property
    def gates(self) -> list[nn.Conv2d]:
        return [self.gates_conv]

    @property
    def candidate(self) -> list[nn.Conv2d]:
        return [self.candidate_conv]


class NoCell(nn.Module):
    """No recurrent cell (supplement 2.3, "None"): nothing is added to ``C`` in equation 5."""

    def lower(self, precision: torch.dtype) -> None:
        pass

    def first(self, like: Tensor) -> Tensor:
        return like.new_zeros(1, 1, 1, 1)

    def prepare(self, guide: Tensor) -> None:
        return None

    def forward(self, seen: Tensor, h: Tensor, prepared: None) -> Tensor:
        return h
