"""Several processes at one job, as ``torchrun`` starts them; without it everything here is about one process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(hours=12)  # the others wait while the first prepares features of a whole data set


def rank() -> int:
    """This process's number, 0 for the first."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Join the other processes where ``torchrun`` started this one; gives the device to use: each its own GPU."""
    if not dist.is_torchelastic_launched() or dist.is_initialized():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield device
    finally:
        dist.destroy_process_group()


@contextmanager
def first_alone() -> Iterator[None]:
    """The first process goes through the block before all others: it makes what they find."""
    if size() > 1 and rank() > 0:
        dist.barrier()
    yield
    if size() > 1 and rank() == 0:
        dist.barrier()


def total(x: Tensor) -> Tensor:
    """The sum of a tensor over all processes, without a gradient."""
    if size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x


def gathered(x: Any) -> list[Any]:
    """What each process gives, in the order of their numbers."""
    out = [x] * size()
    if size() > 1:
        dist.all_gather_object(out, x)
    return out
