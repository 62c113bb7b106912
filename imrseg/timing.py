"""How long things take, on the processor and on a GPU, which is not waited for meanwhile."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import torch


class Laps:
    """Seconds between moments of the device's work, which are asked for when it is over."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._moments = device, [self._moment(device)]

    def lap(self) -> None:
        self._moments.append(self._moment(self._device))

    def seconds(self) -> list[float]:
        """Of each lap. Waits for the device."""
        pairs = list(pairwise(self._moments))
        if self._device.type != "cuda":
            return [after - before for before, after in pairs]
        self._moments[-1].synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in pairs]

    @staticmethod
    def _moment(device: torch.device) -> Any:
        if device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event


class Clock:
    """Seconds since it was made or last asked."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def lap(self) -> float:
        before, self._since = self._since, time.perf_counter()
        return self._since - before
