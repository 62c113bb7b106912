"""What the benchmarks measure with: times in turns, operations, memory, and the machine."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

CPU = torch.device("cpu")


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """What was measured on."""
    on_gpu = device is not None and device.type == "cuda"
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "torch": torch.__version__,
    }


def write(result: dict[str, Any], path: Path | None) -> None:
    """Print a result as JSON, and keep it in a file where one is named."""
    text = json.dumps(result, indent=1)
    print(text)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def spread(times: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile of seconds."""
    return {"p50": float(np.percentile(times, 50)), "p95": float(np.percentile(times, 95))}


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def to_its_end(run: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """``run``, and the wait for a GPU that still works on it."""
    if device.type != "cuda":
        return run

    def whole() -> Any:
        out = run()
        torch.cuda.synchronize(device)
        return out

    return whole


def in_turns(runs: Sequence[Callable[[], Any]], rounds: int, device: torch.device = CPU) -> list[list[float]]:
    """Seconds of each run in each round, after one round to warm up: [run][round]."""
    runs = [to_its_end(run, device) for run in runs]
    times = [[seconds(run) for run in runs] for _ in range(1 + rounds)]
    return [list(column) for column in zip(*times[1:], strict=True)]


def flops(run: Callable[[], Any]) -> float:
    """Billions of floating-point operations (two per multiply-add) in convolutions and products."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


class Traffic(TorchDispatchMode):
    """Counts the bytes that operators read and write, each tensor once per operator."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        returned = func._schema.returns
        if not any(r.alias_info is not None and not r.alias_info.is_write for r in returned):  # views move nothing
            moved = tree_leaves((args, kwargs, out))
            self.bytes += sum(t.nbytes for t in {id(t): t for t in moved if isinstance(t, torch.Tensor)}.values())
        return out


def traffic(run: Callable[[], Any]) -> float:
    """Billions of bytes that the operators of ``run`` read and write, if none finds its input in a cache."""
    with Traffic() as counted:
        run()
    return counted.bytes / 1e9


def best(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the fastest of twenty."""
    return min(seconds(to_its_end(run, device)) for _ in range(20))


def peak_gflops(precision: str, device: torch.device = CPU) -> float:
    """What a convolution of the neck's kind reaches here, in GFLOP/s."""
    like = {"dtype": getattr(torch, precision), "device": device}
    x, weight = torch.rand(8, 128, 50, 50, **like), torch.rand(128, 128, 3, 3, **like)
    run = lambda: F.conv2d(x, weight, padding=1)  # noqa: E731
    return flops(run) / best(run, device)


def bandwidth(device: torch.device = CPU) -> float:
    """Gigabytes a second that are read and written in copying 256 MB."""
    x = torch.rand(64_000_000, device=device)
    y = torch.empty_like(x)
    return 2 * x.nbytes / 1e9 / best(lambda: y.copy_(x), device)


def peak_memory(run: Callable[[], Any], device: torch.device = CPU) -> int:
    """Bytes that ``run`` adds to this process at its peak (Linux), or to the GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024
