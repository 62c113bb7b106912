"""The one thing a user of the library meets: pictures and a label in, masks step by step out."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from imrseg import weights
from imrseg.coarse.lexicon import Lexicon
from imrseg.coarse.lite import LiteCam
from imrseg.errors import InputError, WeightsError
from imrseg.images import ImageSource, Picture, open_picture, to_size, to_square
from imrseg.models.backbones import EfficientNetLite
from imrseg.models.lite import lite_refiner
from imrseg.models.refiner import RefinerState
from imrseg.postprocess import AGGREGATES, aggregate
from imrseg.presets import Preset, get_preset

MAX_SUPPORTS = 10
MAX_STEPS = 20
MAX_LABEL = 200  # characters
UNLIKELY = 0.5  # confidence under which a label is called probably absent
EMPTY = 0.001  # covered share under which a mask counts as empty
REMEMBERED = 32  # pictures whose features are kept


@dataclass(frozen=True)
class Step:
    """The masks after one refinement; step 0 holds the coarse masks.

    The masks are kept at the network's size and are made at a picture's own size when asked for.

    Attributes:
        index: 0 for the coarse masks, then 1, 2, ...
        query_soft: float32 (K, h, w) in [0, 1], one for each support (K = 1 in zero-shot).
        support_soft: float32 (K, h, w); (0, h, w) in zero-shot.
        query_size: (height, width) of the query picture.
        support_sizes: the same for each support.
        level: where this step's masks are cut at a threshold of 0.5: 0.5 itself, but for the coarse
            masks the level at which they fit best in training.
        how: how the K query masks become one (``postprocess.aggregate``).
        seconds: time that this step took.
    """

    index: int
    query_soft: np.ndarray
    support_soft: np.ndarray
    query_size: tuple[int, int]
    support_sizes: tuple[tuple[int, int], ...]
    level: float
    how: str
    seconds: float

    @property
    def query_mask(self) -> np.ndarray:
        """float32 (H, W) in [0, 1] at the query's own size."""
        return self.query_at(self.query_size)

    @property
    def support_masks(self) -> list[np.ndarray]:
        """float32 (H, W) in [0, 1], one per support at its own size; [] in zero-shot."""
        return [to_size(m, size) for m, size in zip(self.support_soft, self.support_sizes, strict=True)]

    def query_at(self, size: tuple[int, int]) -> np.ndarray:
        """The query's mask at another (height, width), for showing."""
        if self.index == 0:  # the query's coarse mask does not depend on the support
            return to_size(self.query_soft[0], size)
        return aggregate([to_size(m, size) for m in self.query_soft], self.how)

    def cut(self, threshold: float = 0.5) -> float:
        """The level at which this step's soft masks are cut for a user's ``threshold``."""
        return min(threshold * self.level / 0.5, 1.0)


@dataclass(frozen=True)
class Result:
    """What ``Segmenter.segment`` returns.

    Attributes:
        label: as it was given.
        steps: N + 1 steps; ``steps[0]`` holds the coarse masks.
        threshold: at which ``mask`` is cut.
        warnings: what was converted, cut or guessed, and whether anything was found.
        confidence: probability in [0, 1] that the label is in the query at all.
        seconds: time by stage: "decode", "features", "coarse" and "step1", "step2", ...
    """

    label: str
    steps: list[Step]
    threshold: float
    warnings: list[str]
    confidence: float | None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def mask(self) -> np.ndarray:
        """bool (H, W) at the query's own size: the last query mask, cut at the threshold."""
        last = self.steps[-1]
        return last.query_mask >= last.cut(self.threshold)


class Run:
    """One label on one set of pictures: the coarse masks, then as many steps as are asked for.

    Attributes:
        coarse: step 0.
        warnings, confidence, seconds: as in ``Result``; they grow while the run goes on.
    """

    def __init__(
        self, segmenter: Segmenter, query: ImageSource, supports: Sequence[ImageSource], label: str, how: str | None
    ) -> None:
        self.label = check_label(label)
        if not isinstance(supports, (list, tuple)):
            raise InputError(f"The supports must be a list of pictures, not {type(supports).__name__}.")
        if len(supports) > MAX_SUPPORTS:
            raise InputError(f"{len(supports)} support pictures were given. Accepted: up to {MAX_SUPPORTS}.")
        how = how or segmenter.preset.aggregate
        if how not in AGGREGATES:
            raise InputError(f"aggregate must be one of {', '.join(AGGREGATES)}, not {how!r}.")
        clock = Clock()
        self.query = open_picture(query)
        self.supports = [open_picture(s) for s in supports]
        self.seconds = {"decode": clock.lap()}
        meaning = segmenter.lexicon.meaning(self.label)
        self.warnings = [w for p in (self.query, *self.supports) for w in p.warnings] + list(meaning.warnings)

        self._segmenter = segmenter
        features = segmenter.features([self.query, *self.supports])
        self.seconds["features"] = clock.lap()
        with torch.inference_mode():
            cams, evidence = segmenter.cam(
                torch.cat([f["head"] for f in features]),
                meaning.mixture.to(segmenter.device).expand(len(features), -1),
            )
            # Zero shots (paper section 5.4): the query is its own support.
            pairs = max(1, len(supports))
            query_features, support_features = features[:1] * pairs, features[1:] or features[:1]
            self._state: RefinerState = segmenter.refiner.start(
                _stack(query_features), _stack(support_features), cams[:1].expand(pairs, -1, -1, -1),
                cams[1:] if len(supports) else cams[:1],
            )  # fmt: skip
        self.confidence = segmenter.confidence(float(evidence[0]))
        self.seconds["coarse"] = clock.lap()
        self.coarse = Step(
            index=0,
            query_soft=cams[:1, 0].float().cpu().numpy(),
            support_soft=cams[1:, 0].float().cpu().numpy(),
            query_size=self.query.size,
            support_sizes=tuple(p.size for p in self.supports),
            level=segmenter.coarse_threshold,
            how=how,
            seconds=self.seconds["coarse"],
        )
        self._last = self.coarse

    def advance(self) -> Step:
        """One more refinement step from the carried state."""
        clock = Clock()
        with torch.inference_mode():
            self._state = self._segmenter.refiner.step(self._state)
            masks = self._state.masks[:, 0].float().cpu().numpy()
        query, support = np.split(masks, 2)
        index = self._last.index + 1
        self.seconds[f"step{index}"] = clock.lap()
        self._last = replace(
            self._last, index=index, query_soft=query, support_soft=support[: len(self.supports)], level=0.5,
            seconds=self.seconds[f"step{index}"],
        )  # fmt: skip
        return self._last

    def verdict(self, threshold: float = 0.5) -> list[str]:
        """``warnings``, and a sentence where the last step found nothing or doubts the label."""
        small = self._last.query_at(self._last.query_soft.shape[-2:])
        covered = float((small >= self._last.cut(threshold)).mean())
        return verdict(self.label, self.warnings, self.confidence, covered)


def verdict(label: str, warnings: Sequence[str], confidence: float | None, covered: float) -> list[str]:
    """A run's warnings, and a sentence where nothing was found or the label is doubted.

    Args:
        label, warnings, confidence: of the run.
        covered: the share of the query that the last mask covers, in [0, 1].
    """
    if covered < EMPTY:
        return [*warnings, f"Nothing was found for “{label}” in the query picture."]
    if confidence is not None and confidence < UNLIKELY:
        return [*warnings, f"“{label}” is probably not in the query picture."]
    return list(warnings)


class Segmenter:
    """Finds what a label names, in three stages: features, coarse masks, refinement.

    Make one with ``Segmenter.from_preset`` and keep it: it holds the models and remembers the
    features of the last pictures, so another label on the same pictures costs little. It may be
    used from several threads.
    """

    def __init__(self, preset: Preset, checkpoint: Path, device: torch.device) -> None:
        self.preset = preset
        self.checkpoint = checkpoint
        self.device = device
        tensors, metadata = weights.load(checkpoint)
        self.lexicon = Lexicon(weights.find(preset.text))
        backbone = EfficientNetLite()
        try:
            self.coarse_threshold = float(metadata["coarse_threshold"])
            self._calibration = {name: float(metadata["confidence"][name]) for name in ("slope", "offset")}
            classes = torch.cat([backbone.classifier.weight, tensors.pop("everyday.weight").float()])
            biases = torch.cat([backbone.classifier.bias, tensors.pop("everyday.bias").float()])
            self.refiner = lite_refiner(**metadata["network"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise WeightsError(f"{checkpoint} does not hold the {preset.name} network ({error!r}).") from error
        if not len(classes) == len(biases) == self.lexicon.classes:
            raise WeightsError(
                f"{checkpoint} knows {len(classes)} classes; {preset.text} needs {self.lexicon.classes}."
            )
        self.cam = LiteCam(classes, biases).to(device)
        weights.fill(self.refiner, {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}, checkpoint)  # fmt: skip
        self.refiner.to(device).requires_grad_(False).eval()
        self.backbone = backbone.to(device)
        self.remember = REMEMBERED
        self._remembered: OrderedDict[bytes, dict[str, Tensor]] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def from_preset(cls, name: str = "lite", device: str = "auto", checkpoint: str | Path | None = None) -> Segmenter:
        """Load a preset.

        Args:
            name: one of ``list_presets()``.
            device: "auto" (CUDA, then Apple's MPS, then the CPU), "cpu", "cuda", "cuda:1" or "mps".
            checkpoint: network weights to use in place of the preset's own.

        Raises:
            InputError: unknown preset or device.
            WeightsError: weights that are missing or do not fit.
        """
        preset = get_preset(name)
        return cls(preset, weights.find(checkpoint or preset.checkpoint), pick_device(device))

    def segment(
        self,
        query: ImageSource,
        supports: Sequence[ImageSource],
        label: str,
        steps: int | None = None,
        threshold: float = 0.5,
        seed: int = 0,
        aggregate: str | None = None,
    ) -> Result:
        """Segment ``label`` in ``query``, with the help of the supports.

        Args:
            query: path, PIL image or uint8 array (H, W, 3).
            supports: up to 10 of those that show the same thing; [] is zero-shot.
            label: one label, any English words.
            steps: refinement steps, 0 to 20; None takes the preset's number.
            threshold: in [0, 1], where ``Result.mask`` is cut.
            seed: for presets that draw at random; ``lite`` draws nothing, its result is a function
                of its inputs.
            aggregate: how K supports' masks become one, "vote" (supplement 2.1) or "mean"; None takes
                the preset's own.

        Raises:
            InputError: a picture, the label or a setting cannot be used.
        """
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
            raise InputError(f"The threshold must be a number from 0 to 1, not {threshold!r}.")
        count = self.check_steps(steps)
        run = self.start(query, supports, label, aggregate)
        done = [run.coarse] + [run.advance() for _ in range(count)]
        return Result(run.label, done, float(threshold), run.verdict(threshold), run.confidence, run.seconds)

    def iterate(
        self,
        query: ImageSource,
        supports: Sequence[ImageSource],
        label: str,
        steps: int | None = None,
        seed: int = 0,
        aggregate: str | None = None,
    ) -> Iterator[Step]:
        """The same steps as ``segment``, one at a time, as they are computed."""
        count = self.check_steps(steps)
        run = self.start(query, supports, label, aggregate)
        yield run.coarse
        for _ in range(count):
            yield run.advance()

    def start(
        self, query: ImageSource, supports: Sequence[ImageSource], label: str, aggregate: str | None = None
    ) -> Run:
        """Begin a run whose steps are asked for one by one (``Run.advance``)."""
        return Run(self, query, supports, label, aggregate)

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the checkpoint and the lexicon, by file name."""
        return {path.name: weights.sha256(path) for path in (self.checkpoint, weights.find(self.preset.text))}

    def check_steps(self, steps: int | None) -> int:
        """``steps``, or the preset's own number for None.

        Raises:
            InputError: not a whole number from 0 to 20.
        """
        if steps is None:
            return self.preset.steps
        if isinstance(steps, bool) or not isinstance(steps, int) or not 0 <= steps <= MAX_STEPS:
            raise InputError(f"The number of steps must be a whole number from 0 to {MAX_STEPS}, not {steps!r}.")
        return steps

    def confidence(self, evidence: float) -> float:
        """Probability that a label is in a picture, from its log-probability there (calibrated)."""
        return 1 / (1 + math.exp(-(self._calibration["slope"] * evidence + self._calibration["offset"])))

    def features(self, pictures: Sequence[Picture]) -> list[dict[str, Tensor]]:
        """Backbone features of each picture, (1, C, h, w) by layer; remembered by content."""
        keys = [hashlib.blake2b(p.pixels.tobytes() + str(p.pixels.shape).encode()).digest() for p in pictures]
        with self._lock:
            found = {key: self._remembered[key] for key in keys if key in self._remembered}
        new = {key: p for key, p in zip(keys, pictures, strict=True) if key not in found}
        if new:
            batch = torch.stack([to_square(p, self.preset.image_size) for p in new.values()]).to(self.device)
            with torch.inference_mode():
                out = self.backbone(batch)
            for i, key in enumerate(new):
                found[key] = {name: t[i : i + 1] for name, t in out.items()}
        with self._lock:
            for key in keys:
                self._remembered[key] = found[key]
                self._remembered.move_to_end(key)
            while len(self._remembered) > self.remember:
                self._remembered.popitem(last=False)
        return [found[key] for key in keys]


class Clock:
    """Seconds since it was made or last asked."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def lap(self) -> float:
        before, self._since = self._since, time.perf_counter()
        return self._since - before


def check_label(label: str) -> str:
    """The label without surrounding blanks.

    Raises:
        InputError: not text, blank, or longer than 200 characters.
    """
    if not isinstance(label, str) or not label.strip():
        raise InputError("The label is empty. Type what to look for, for example: cat")
    if len(label.strip()) > MAX_LABEL:
        raise InputError(f"The label has {len(label.strip())} characters. Accepted: up to {MAX_LABEL}.")
    return label.strip()


def pick_device(name: str) -> torch.device:
    """The torch device for a user's word.

    Raises:
        InputError: unknown, or not on this machine.
    """
    if name == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise InputError(f"There is no device “{name}”. Accepted: auto, cpu, cuda, cuda:1, mps.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"This machine has no “{name}”. Accepted here: auto, cpu.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("This machine has no “mps”. Accepted here: auto, cpu.")
    return device


def _stack(features: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([f[name] for f in features]) for name in features[0] if name != "head"}
