"""Large tensors on the processor, in memory that is used again once no tensor holds it.

What is larger than the C library keeps (32 MB in glibc) comes fresh from the system each time, page by
page as it is first written: for the products of a pair of pictures that takes as long as computing them.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

CPU = torch.device("cpu")
LARGE = 2**25  # bytes from which on memory is kept here
KEPT = 2**29  # bytes that wait to be used again, at most: what was set free first goes back to the system

_waiting: list[Tensor] = []
_lock = threading.RLock()  # also for one who holds it: whatever runs within may set a tensor free


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device = CPU) -> Tensor:
    """As ``torch.empty``; large ones in the memory that another of as many bytes has left, if there is one.

    On other devices PyTorch keeps memory itself.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE or device != CPU:
        return torch.empty(shape, dtype=dtype, device=device)
    with _lock:
        block = next((b for b in reversed(tuple(_waiting)) if len(b) == size), None)
        if block is None:
            block = torch.empty(size, dtype=torch.uint8)
        else:
            _waiting[:] = [b for b in _waiting if b is not block]
    array = block.numpy()  # goes with the last tensor that has its memory from it
    weakref.finalize(array, _wait, block).atexit = False
    return torch.from_numpy(array).view(dtype).view(shape)


def release() -> None:
    """Give the system what waits."""
    with _lock:
        _waiting.clear()


def _wait(block: Tensor) -> None:
    with _lock:
        _waiting.append(block)
        while sum(map(len, _waiting)) > KEPT:
            _waiting.pop(0)
