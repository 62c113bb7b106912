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
from torch.utils.flop_counter import FlopCounterMode


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


def in_turns(runs: Sequence[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Seconds of each run in each round, after one round to warm up: [run][round]."""
    times = [[seconds(run) for run in runs] for _ in range(1 + rounds)]
    return [list(column) for column in zip(*times[1:], strict=True)]


def flops(run: Callable[[], Any]) -> float:
    """Billions of floating-point operations (two per multiply-add) in convolutions and products."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def peak_gflops(precision: str) -> float:
    """What a convolution of the neck's kind reaches here, in GFLOP/s."""
    dtype = getattr(torch, precision)
    x, weight = torch.rand(8, 128, 50, 50, dtype=dtype), torch.rand(128, 128, 3, 3, dtype=dtype)
    run = lambda: F.conv2d(x, weight, padding=1)  # noqa: E731
    return flops(run) / min(seconds(run) for _ in range(20))


def peak_memory(run: Callable[[], Any]) -> int:
    """Bytes that ``run`` adds to this process at its peak (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024
