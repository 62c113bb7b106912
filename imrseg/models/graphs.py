"""A refinement step as a CUDA graph: all its kernels launched at once, where Python would launch them one by one.

Small networks leave a GPU idle between kernels. A graph is captured once for states of one shape; after that a
step copies the state into the graph's own memory, replays it, and copies the new state out.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol
from weakref import ref

import torch
from torch import Tensor

from imrseg.models.refiner import RefinerState, mapped, tensors

KEPT = 4  # graphs, each with its memory: one for each number of supports that came last
WARM_UP = 3  # steps before the capture, in which libraries choose their algorithms

Step = Callable[[RefinerState], RefinerState]


class Graph(Protocol):
    def replay(self) -> None: ...


class GraphedStep:
    """``step`` by graphs; for threads one after the other, since a graph has one memory.

    Args:
        step: without anything that waits for the device.
        capture: (step, state) -> a graph, and the state that each replay writes.
    """

    def __init__(self, step: Step, capture: Callable[[Step, RefinerState], tuple[Graph, RefinerState]]) -> None:
        self._step, self._capture = step, capture
        self._graphs: OrderedDict[Any, Captured] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, state: RefinerState) -> RefinerState:
        given = replace(state, logits=None)  # which no step reads
        key = tuple((tuple(t.shape), t.dtype, t.device) for t in tensors(given))
        with self._lock:
            captured = self._graphs.pop(key, None)
            if captured is None:
                captured = Captured(self._step, self._capture, given)
            self._graphs[key] = captured
            while len(self._graphs) > KEPT:
                self._graphs.popitem(last=False)
            return captured(given)


class Captured:
    """One graph and its memory."""

    def __init__(
        self, step: Step, capture: Callable[[Step, RefinerState], tuple[Graph, RefinerState]], state: RefinerState
    ) -> None:
        own = mapped(state, torch.clone)
        self._graph, self._out = capture(step, own)
        self._own = list(tensors(own))
        self._copied: list[ref[Tensor] | None] = [None] * len(self._own)

    def __call__(self, state: RefinerState) -> RefinerState:
        given = list(tensors(state))
        for i, (own, tensor) in enumerate(zip(self._own, given, strict=True)):
            known = self._copied[i]
            if known is None or known() is not tensor:  # what is made once per pair is copied once
                own.copy_(tensor)
                self._copied[i] = ref(tensor)
        self._graph.replay()
        # Of what was only passed on, the caller's own; of what was made, a copy that the next replay leaves alone.
        passed_on = {id(own): tensor for own, tensor in zip(self._own, given, strict=True)}
        return mapped(self._out, lambda t: passed_on[id(t)] if id(t) in passed_on else t.clone())


def cuda_capture(step: Step, state: RefinerState) -> tuple[Graph, RefinerState]:
    """A CUDA graph of ``step(state)``."""
    device = state.masks.device
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                step(state)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            out = step(state)
    return graph, out
