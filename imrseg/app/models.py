"""The segmenters of one server: made when first asked for, then shared by all visitors."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from weakref import ref

import numpy as np

from imrseg import hub, weights
from imrseg.app.gpu import gpu, on_zero_gpu
from imrseg.app.sessions import Session
from imrseg.errors import InputError, WeightsError
from imrseg.images import Picture
from imrseg.presets import get_preset, list_presets
from imrseg.run import Options, Result, Run, Step
from imrseg.segmenter import Segmenter

MODEL = "model"  # events of this group wait for one another
OWN = ""  # the preset's own coarse masker
COARSE = {"lite": "lite: words by WordNet", "clip": "CLIP RN50"}
CLIP_FILE = "RN50.pt"
GPU_SECONDS = 30  # that one call may take where the GPU is lent for a call
GOING = 128 * 10**6  # bytes that all visitors' runs may keep in order to go on without being computed anew
KEPT = 256 * 10**6  # bytes of pictures and masks that all visitors' last runs may hold


class Models:
    """Every combination of a preset, a coarse masker and a device, loaded once.

    Args:
        first: the segmenter that the server was started with.

    Attributes:
        preset, device: its own, the page's defaults.
    """

    def __init__(self, first: Segmenter) -> None:
        self.preset, self.device = first.preset.name, str(first.device)
        self._loaded = {(self.preset, first.preset.coarse, self.device): first}
        self._lock = threading.Lock()
        self._going: OrderedDict[int, Run] = OrderedDict()
        self._sessions: OrderedDict[int, ref[Session]] = OrderedDict()
        if on_zero_gpu():  # its models must be there before the page is launched
            for _, preset in self.presets():
                for _, coarse in self.coarse():
                    if not self.missing(preset, coarse):
                        self.get(preset, coarse)
        on_gpu = gpu(GPU_SECONDS)
        self.begin, self.go_on = on_gpu(self._begin), on_gpu(self._go_on)
        self.segment, self.iterate = on_gpu(self._segment), on_gpu(self._iterate)

    def presets(self) -> list[tuple[str, str]]:
        """(what the menu shows, preset) of all presets; it says where weights are missing."""
        names = dict.fromkeys((self.preset, *list_presets()))
        return [(name + (" (weights missing)" if self.missing(name, OWN) else ""), name) for name in names]

    def coarse(self) -> list[tuple[str, str]]:
        """(what the menu shows, coarse masker)."""
        return [("the preset’s own", OWN), *((words, name) for name, words in COARSE.items())]

    def missing(self, preset: str, coarse: str) -> str:
        """What to put where before these can be used; "" where everything is there."""
        chosen = get_preset(preset)
        needed = [chosen.checkpoint] + [CLIP_FILE] * ((coarse or chosen.coarse) == "clip")
        if (preset, coarse or chosen.coarse, self.device) in self._loaded:
            return ""
        return " ".join(hub.missing(name) for name in needed if not weights.have(name))

    def devices(self) -> list[str]:
        """Where models can run: the server's own device, and the processor."""
        return list(dict.fromkeys((self.device, "cpu")))

    def get(self, preset: str, coarse: str, device: str = "") -> Segmenter:
        """The segmenter of a preset with a coarse masker, on the server's own device for "".

        Raises:
            InputError: there is no such preset, masker or device.
            WeightsError: weights are missing. Nothing is downloaded for a visitor, and no other preset
                takes its place.
        """
        device = device or self.device
        if device not in self.devices():
            raise InputError(f"There is no device “{device}” here. Accepted: {', '.join(self.devices())}.")
        if coarse not in (OWN, *COARSE):  # another CLIP would be downloaded
            raise InputError(f"There is no coarse masker “{coarse}” here. Accepted: {', '.join(COARSE)}.")
        key = (preset, coarse or get_preset(preset).coarse, device)
        with self._lock:
            if key not in self._loaded:
                if missing := self.missing(preset, coarse):
                    by = f" with coarse masks by {key[1]}" if weights.have(get_preset(preset).checkpoint) else ""
                    raise WeightsError(f"{preset} cannot run{by} yet. {missing}")
                self._loaded[key] = Segmenter.from_preset(preset, device, coarse=key[1])
            return self._loaded[key]

    def keep(self, run: Run) -> None:
        """Let a run keep what it needs to go on; where all hold too much, those used longest ago let go of it."""
        with self._lock:
            self._going.pop(id(run), None)
            self._going[id(run)] = run
            held = {key: going.held for key, going in self._going.items()}
            while len(self._going) > 1 and sum(held.values()) > GOING:
                key, oldest = self._going.popitem(last=False)
                oldest.release()
                del held[key]

    def remember(self, session: Session) -> None:
        """Let a visitor keep the last run; where all keep too much, those who came longest ago lose theirs."""
        with self._lock:
            self._sessions.pop(id(session), None)
            self._sessions[id(session)] = ref(session)
            kept = [(key, one) for key, known in self._sessions.items() if (one := known())]
            self._sessions = OrderedDict((key, ref(one)) for key, one in kept)
            held: dict[int, int] = {}
            for key, one in reversed(kept):  # the newest first: what no longer fits is forgotten
                held |= one.arrays()
                if one is not session and sum(held.values()) > KEPT:
                    one.forget()
                    del self._sessions[key]

    # ---- what runs on the GPU, maybe in another process: what comes of it is yielded or returned.
    # ``chosen`` is what ``get`` takes.

    def _begin(
        self,
        chosen: Sequence[str],
        query: Picture,
        supports: Sequence[Picture],
        label: str,
        options: Options,
        steps: int,
    ) -> Iterator[Run]:
        """A new run: with its coarse masks, then after each of its steps."""
        run = self.get(*chosen).start(query, supports, label, options)
        try:
            yield run
            for _ in range(steps):
                run.advance()
                yield run
        finally:  # stopped or not: it may be gone on with
            self.keep(run)

    def _go_on(
        self, chosen: Sequence[str], run: Run, steps: int, index: int = 0, marks: Mapping[int, np.ndarray] | None = None
    ) -> Iterator[Run]:
        """A run with ``marks`` on its step ``index``, where there are some, then after each of ``steps`` more."""
        run.segmenter = self.get(*chosen)
        if marks is not None:
            run.correct(index, marks)
            yield run
        for _ in range(steps):
            run.advance()
            yield run
        self.keep(run)

    def _segment(self, chosen: Sequence[str], *args: Any, **settings: Any) -> Result:
        """``Segmenter.segment``."""
        return self.get(*chosen).segment(*args, **settings)

    def _iterate(self, chosen: Sequence[str], *args: Any, **settings: Any) -> Iterator[Step]:
        """``Segmenter.iterate``."""
        yield from self.get(*chosen).iterate(*args, **settings)
