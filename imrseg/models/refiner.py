"""Iterative mutual refinement, whatever the network around it (paper section 4.2, figure 3)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from imrseg.models.imr import IMRCell
from imrseg.models.layers import resize

Features = dict[str, Tensor]


class Pair(Protocol):
    """What a neck prepares once per pair of images; first dimension 2B, queries before supports.

    Attributes:
        guide: image features for the recurrent cell, (2B, G, h, w).
        mask_size: (height, width) of the masks that the head makes.
    """

    guide: Tensor
    mask_size: tuple[int, int]


@dataclass(frozen=True)
class RefinerState:
    """The state carried from step to step, both images stacked: queries, then supports.

    Attributes:
        pair: the neck's preparation, the same at every step.
        masks: soft masks (2B, 1, h, w) in [0, 1].
        hidden: hidden states of the recurrent cell (2B, C, h', w').
        logits: (2B, 2, h, w), channel 1 = object; None before the first step.
    """

    pair: Pair
    masks: Tensor
    hidden: Tensor
    logits: Tensor | None = None

    @property
    def query_masks(self) -> Tensor:
        return self.masks[: len(self.masks) // 2]

    @property
    def support_masks(self) -> Tensor:
        return self.masks[len(self.masks) // 2 :]


class Refiner(nn.Module):
    """The loop around a neck, a recurrent cell and a head.

    Args:
        neck: ``prepare(query, support) -> Pair``, and ``neck(pair, own, other)`` -> the correlation
            ``C`` (2B, C, h', w'), which says of each position of an image how it relates to the
            object in the other image.
        cell: updates the hidden state from ``[own mask, C, guide]`` (equation 4).
        head: ``head(C + h, pair, own)`` -> logits (equations 5 and 6).

    Both images go through as one batch; query and support differ only in their place.
    """

    def __init__(self, neck: nn.Module, cell: IMRCell, head: nn.Module) -> None:
        super().__init__()
        self.neck, self.cell, self.head = neck, cell, head

    def start(self, query: Features, support: Features, query_mask: Tensor, support_mask: Tensor) -> RefinerState:
        """The state before the first step, from features and coarse masks (B, 1, h, w) in [0, 1]."""
        pair = self.neck.prepare(query, support)
        masks = resize(torch.cat([query_mask, support_mask]), pair.mask_size)
        hidden = pair.guide.new_zeros(len(masks), self.cell.hidden, *pair.guide.shape[-2:])
        return RefinerState(pair, masks, hidden)

    def step(self, state: RefinerState) -> RefinerState:
        """One refinement of both images' masks by each other."""
        own, pair = state.masks, state.pair
        query, support = own.chunk(2)
        correlation = self.neck(pair, own, torch.cat([support, query]))
        x = torch.cat([resize(own, pair.guide.shape[-2:]), correlation, pair.guide], 1)
        hidden = self.cell(x, state.hidden)
        logits = self.head(correlation + hidden, pair, own).float()
        return replace(state, masks=logits.softmax(1)[:, 1:], hidden=hidden, logits=logits)

    def forward(
        self, query: Features, support: Features, query_mask: Tensor, support_mask: Tensor, steps: int
    ) -> list[RefinerState]:
        """``steps`` refinements; returns the state after each."""
        state, states = self.start(query, support, query_mask, support_mask), []
        for _ in range(steps):
            state = self.step(state)
            states.append(state)
        return states
