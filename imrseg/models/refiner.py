"""Iterative mutual refinement, whatever the network around it (paper section 4.2, figure 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from imrseg.models.layers import resize

Features = Any  # what the backbone gives and the neck takes
Structure = TypeVar("Structure")
Resize = Callable[[Tensor, tuple[int, int]], Tensor]


class Pair(Protocol):
    """What a neck prepares once per pair of images; first dimension 2B, queries before supports.

    Attributes:
        guide: image features for the recurrent cell, (2B, G, h, w).
        mask_size: (height, width) that the coarse masks are brought to; None leaves them as they are.
    """

    @property
    def guide(self) -> Tensor: ...
    @property
    def mask_size(self) -> tuple[int, int] | None: ...


@dataclass(frozen=True)
class Prepared:
    """What does not depend on the masks: made once per pair of images, good for any label and step.

    Attributes:
        pair: the neck's part.
        constant: the cell's part (``GRUCell.prepare``).
    """

    pair: Pair
    constant: Tensor | None


@dataclass(frozen=True)
class RefinerState:
    """The state carried from step to step, both images stacked: queries, then supports.

    Attributes:
        pair: the neck's preparation, and what else the neck carries from step to step.
        constant: the cell's preparation.
        masks: soft masks (2B, 1, h, w) in [0, 1].
        hidden: hidden states of the recurrent cell (2B, C, h', w').
        logits: (2B, 2, h, w), channel 1 = object; None before the first step, and where
            a consensus moved the masks since.
    """

    pair: Pair
    constant: Tensor | None
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
        neck: ``prepare(query, support) -> Pair``, and ``neck(pair, masks) -> (C, Pair)``, where ``C``
            (2B, C, h', w') says of each position of an image how it relates to the object in the
            other image.
        cell: updates the hidden state from ``[own mask, C]`` and the pair's guide (equation 4).
        head: ``head(C + h, pair, masks)`` -> logits (equations 5 and 6).
        resize: how masks change size.

    Both images go through as one batch; query and support differ only in their place.
    """

    def __init__(self, neck: nn.Module, cell: nn.Module, head: nn.Module, resize: Resize = resize) -> None:
        super().__init__()
        self.neck, self.cell, self.head = neck, cell, head
        self.resize = resize
        self.precision = torch.float32

    def lower(self, precision: torch.dtype) -> None:
        """Refine in another precision, for inference: norms, soft-maxes and masks stay float32.

        Not exact: logits of IMR-HSNet move by up to 0.3 % of the largest in bfloat16.
        """
        if hasattr(self.neck, "lower"):  # knows better than autocast
            for part in (self.neck, self.cell, self.head):
                part.lower(precision)
        else:
            self.precision = precision

    def _lowered(self, device: torch.device) -> AbstractContextManager[Any]:
        if self.precision == torch.float32:
            return nullcontext()  # whatever is set around it, as in training
        return torch.autocast(device.type, self.precision)

    def prepare(self, query: Features, support: Features, known: Prepared | None = None) -> Prepared:
        """From the features of both images; serves ``begin`` as often as there are labels.

        Args:
            known: of the same queries with other supports, whose part of ``constant`` is taken over.
        """
        with self._lowered(next(self.parameters()).device):
            pair = self.neck.prepare(query, support)
            if known is None or known.constant is None:
                return Prepared(pair, self.cell.prepare(pair.guide))
            queries = len(pair.guide) // 2
            return Prepared(pair, torch.cat([known.constant[:queries], self.cell.prepare(pair.guide[queries:])]))

    def begin(self, prepared: Prepared, query_mask: Tensor, support_mask: Tensor) -> RefinerState:
        """The state before the first step, from coarse masks (B, 1, h, w) in [0, 1]."""
        pair = prepared.pair
        masks = torch.cat([query_mask, support_mask])
        if pair.mask_size is not None:
            masks = self.resize(masks, pair.mask_size)
        return RefinerState(pair, prepared.constant, masks, self.cell.first(pair.guide))

    def start(self, query: Features, support: Features, query_mask: Tensor, support_mask: Tensor) -> RefinerState:
        """``prepare`` and ``begin`` in one."""
        return self.begin(self.prepare(query, support), query_mask, support_mask)

    def step(self, state: RefinerState) -> RefinerState:
        """One refinement of both images' masks by each other."""
        with self._lowered(state.masks.device):
            correlation, pair = self.neck(state.pair, state.masks)
            own = self.resize(state.masks, (correlation.shape[-2], correlation.shape[-1]))
            seen = torch.cat([own.to(correlation.dtype), correlation], 1)
            hidden = self.cell(seen, state.hidden, state.constant)
            logits = self.head(correlation + hidden, pair, state.masks).float()
        return RefinerState(pair, state.constant, logits.softmax(1)[:, 1:], hidden, logits)

    def forward(
        self, query: Features, support: Features, query_mask: Tensor, support_mask: Tensor, steps: int
    ) -> list[RefinerState]:
        """``steps`` refinements; returns the state after each."""
        state, states = self.start(query, support, query_mask, support_mask), []
        for _ in range(steps):
            state = self.step(state)
            states.append(state)
        return states


def tensors(of: Any) -> Iterator[Tensor]:
    """All tensors within lists, tuples, dicts and dataclasses."""
    if isinstance(of, Tensor):
        yield of
    elif isinstance(of, dict):
        yield from tensors(list(of.values()))
    elif isinstance(of, (list, tuple)):
        for part in of:
            yield from tensors(part)
    elif is_dataclass(of):
        yield from tensors(list(vars(of).values()))


def held(of: Any) -> int:
    """Bytes of memory that ``tensors`` keep from being used again: parts of one tensor keep all of it."""
    storages = {}
    for tensor in tensors(of):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def mapped(of: Structure, change: Callable[[Tensor], Tensor]) -> Structure:
    """The same structure with each of its ``tensors`` changed."""
    out: Any = of
    if isinstance(of, Tensor):
        out = change(of)
    elif isinstance(of, dict):
        out = {name: mapped(part, change) for name, part in of.items()}
    elif isinstance(of, (list, tuple)):
        out = type(of)(mapped(part, change) for part in of)
    elif is_dataclass(of) and not isinstance(of, type):
        out = replace(of, **{f.name: mapped(getattr(of, f.name), change) for f in fields(of)})
    return out
