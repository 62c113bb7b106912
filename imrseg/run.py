"""One run: a label on a set of pictures, from the coarse masks through as many steps as are asked for."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from torch import Tensor

from imrseg.edges import EDGES, clean
from imrseg.errors import InputError, shown
from imrseg.images import ImageSource, open_pictures, to_size
from imrseg.models.refiner import RefinerState, held
from imrseg.postprocess import AGGREGATES, aggregate
from imrseg.timing import Clock, Laps

if TYPE_CHECKING:
    from imrseg.models.consensus import Consensus
    from imrseg.segmenter import Segmenter

MAX_SUPPORTS = 10
MAX_LABEL = 200  # characters
MAX_DISTRACTORS = 20
TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # would reorder the text around a label
UNLIKELY = 0.5  # confidence under which a label is called probably absent
REENTRY = (100, 100)  # cells of a coarse mask that was fitted to edges, as the network is given it
CORRECTED = "Corrected by hand: the command repeats the run without the corrections."
MARKS = (-1, 0, 1)  # "this is not", nothing said, "this is it"
EMPTY = 0.001  # covered share under which a mask counts as empty
PROMPTS = ("single", "ensemble")
EDGES_ON = ("last", "every")
CONSENSUS = ("on", "off")


@dataclass(frozen=True)
class Options:
    """How a run goes about its label.

    Attributes:
        aggregate: how K supports' masks become one, "vote" (supplement 2.1) or "mean"; None: the preset's.
        distractors: other things in the pictures, which the label is told apart from.
        prompts: "single": the label in one wording; "ensemble": the mean of several.
        edges: fit masks to the picture's edges by "guided" filter or "grabcut"; None: not.
        edges_on: the "last" step's masks, or "every" step's before they enter the next.
        consensus: "on": after each step all pictures' masks move towards what they together say of the object
            (``models.consensus``; only ``lite`` has one); "off": the network alone.

    Raises:
        InputError: a value that is none of these.
    """

    aggregate: str | None = None
    distractors: Sequence[str] = ()
    prompts: str = "single"
    edges: str | None = None
    edges_on: str = "last"
    consensus: str = "on"

    def __post_init__(self) -> None:
        for name, accepted in (
            ("aggregate", (None, *AGGREGATES)), ("prompts", PROMPTS), ("edges", (None, *EDGES)), ("edges_on", EDGES_ON),
            ("consensus", CONSENSUS),
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, str | None) or value not in accepted:
                words = ", ".join(filter(None, accepted)) + (", or left out" if None in accepted else "")
                raise InputError(f"{name} must be one of {words}, not {shown(value)}.")
        if not isinstance(self.distractors, (list, tuple)) or len(self.distractors) > MAX_DISTRACTORS:
            raise InputError(f"The distractors must be a list of up to {MAX_DISTRACTORS} words.")
        object.__setattr__(self, "distractors", tuple(check_label(d, "distractor") for d in self.distractors))

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "distractors": list(self.distractors)}


@dataclass(frozen=True, eq=False)
class Step:
    """The masks after one refinement; step 0 holds the coarse masks.

    The masks are kept at a small size and are made at a picture's own size when asked for.

    Attributes:
        index: 0 for the coarse masks, then 1, 2, ...
        query_soft: float32 (K, h, w) in [0, 1], one for each support (K = 1 in zero-shot and step 0).
        support_soft: float32 (h, w) in [0, 1], one for each support; () in zero-shot.
        query_size: (height, width) of the query picture.
        support_sizes: the same for each support.
        level: where this step's masks are cut at a threshold of 0.5: 0.5 itself, but for the coarse
            masks the level at which they fit best in training.
        how: how the K query masks become one (``postprocess.aggregate``).
        seconds: time that this step took.
    """

    index: int
    query_soft: np.ndarray
    support_soft: tuple[np.ndarray, ...]
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
        return aggregate([to_size(m, size) for m in self.query_soft], self.how)

    def cut(self, threshold: float = 0.5) -> float:
        """The level at which this step's soft masks are cut for a user's ``threshold``."""
        return min(threshold * self.level / 0.5, 1.0)


@dataclass(frozen=True, eq=False)
class Result:
    """What ``Segmenter.segment`` returns.

    Attributes:
        label: as it was given, on one line.
        steps: N + 1 steps; ``steps[0]`` holds the coarse masks.
        threshold: at which ``mask`` is cut.
        warnings: what was converted, cut or guessed, and whether anything was found.
        confidence: probability in [0, 1] that the label is in the query at all; None where the coarse
            masks come without one.
        options: how the run went about it.
        seconds: time by stage: "decode", "features", "coarse" and "step1", "step2", ...
    """

    label: str
    steps: list[Step]
    threshold: float
    warnings: list[str]
    confidence: float | None
    options: Options = field(default_factory=Options)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def mask(self) -> np.ndarray:
        """bool (H, W) at the query's own size: the last query mask, cut at the threshold."""
        last = self.steps[-1]
        return last.query_mask >= last.cut(self.threshold)


class Run:
    """One label on one set of pictures. Made by ``Segmenter.start``.

    Attributes:
        steps: step 0, the coarse masks, and those that followed.
        warnings, confidence, seconds: as in ``Result``; they grow while the run goes on.
        segmenter: that computes it. A run that was pickled leaves it behind, and must be given one to go on.
    """

    def __init__(
        self, segmenter: Segmenter, query: ImageSource, supports: Sequence[ImageSource], label: str, options: Options
    ) -> None:
        self.label, self.options, self.segmenter = check_label(label), options, segmenter
        if not isinstance(supports, (list, tuple)):
            raise InputError(f"The supports must be a list of pictures, not {type(supports).__name__}.")
        if len(supports) > MAX_SUPPORTS:
            raise InputError(f"{len(supports)} support pictures were given. Accepted: up to {MAX_SUPPORTS}.")
        clock = Clock()
        self.query, *self.supports = open_pictures([query, *supports])
        self.seconds = {"decode": clock.lap()}
        masker = segmenter.masker
        reading = masker.read(self.label, options.distractors, options.prompts == "ensemble")
        pictures = [self.query, *self.supports]
        self.warnings = [w for p in pictures for w in p.warnings] + list(reading.warnings) + segmenter.notes
        if "," in self.label:
            self.warnings.append(f"“{self.label}” is one label: a comma separates none here. Ask for each by itself.")

        seen = segmenter.features(masker.encoder, pictures)
        prepared = segmenter.prepare(pictures)
        self._consensus: Consensus | None = None  # made before the first step
        self.seconds["features"] = clock.lap()
        with torch.inference_mode():
            cams, confidences = masker.masks(seen, reading)
        self.confidence = confidences[0]
        coarse = Step(
            index=0,
            query_soft=_array(cams[:1]),
            support_soft=tuple(_array(cams[1:])),
            query_size=self.query.size,
            support_sizes=tuple(p.size for p in self.supports),
            level=masker.threshold,
            how=options.aggregate or segmenter.preset.aggregate,
            seconds=0.0,
        )
        if self._cleans_every_step:
            coarse = self._clean(coarse)
            cams = self._masks(coarse, REENTRY)
        with torch.inference_mode():
            support_masks = cams[1:] if supports else cams
            states = segmenter.network.begin(prepared, cams[:1], support_masks)
        self._states: list[list[RefinerState]] = [states]  # of every step, to go on from any
        self._marks: dict[int, np.ndarray] = {}
        self._history: list[tuple[int, dict[int, np.ndarray]] | None] = []  # corrections, None for a step
        self.seconds["coarse"] = clock.lap()
        self.steps = [replace(coarse, seconds=self.seconds["coarse"])]

    @property
    def _cleans_every_step(self) -> bool:
        return self.options.edges is not None and self.options.edges_on == "every"

    def advance(self) -> Step:
        """One more refinement step from the carried state."""
        return self.advance_by(1)[0]

    def advance_by(self, count: int) -> list[Step]:
        """``count`` more steps, none of which waits for the device before the next is launched.

        But for steps whose masks are changed on the host, by marks or edges. Where the device's memory is full,
        with less at once.
        """
        if isinstance(count, bool) or not isinstance(count, Integral) or count < 0:
            raise InputError(f"The number of steps must be a whole number of 0 or more, not {shown(count)}.")
        if count > 1 and (self._marks or self._cleans_every_step):
            return [self.advance() for _ in range(count)]
        return self._sparing(count) if count else []

    def _sparing(self, count: int) -> list[Step]:
        while True:
            try:
                return self._advance(count)
            except torch.OutOfMemoryError:
                self.segmenter = self.segmenter.spared()
            self.release()
            self.warnings += self.segmenter.notes

    def _advance(self, count: int) -> list[Step]:
        self._remember()
        launched, states = [], self._states[-1]
        laps = Laps(states[0].masks.device)
        if self.options.consensus == "on" and self._consensus is None:
            self._consensus = self.segmenter.consensus([self.query, *self.supports])
        with torch.inference_mode():
            for _ in range(count):
                states = [self.segmenter.network.step(state) for state in states]
                if self._consensus is not None:
                    if self._marks:  # what is known teaches the others
                        states = self._marked(self._seen(states, self.steps[-1]), states)[1]
                    states = self._consensus.move(states)
                launched.append(states)
                laps.lap()
            steps = [self._seen(states, replace(self.steps[-1], level=0.5)) for states in launched]
        clock, seconds = Clock(), laps.seconds()
        for step, states, taken in zip(steps, launched, seconds, strict=True):
            step = replace(step, index=self.steps[-1].index + 1)
            if self._cleans_every_step:
                step = self._clean(step)
                states = self._carrying(step, states)
            if self._marks:
                step, states = self._marked(step, states)
            taken += clock.lap()
            self.seconds[f"step{step.index}"] = taken
            self.steps.append(replace(step, seconds=taken))
            self._states.append(states)
            self._history.append(None)
        return self.steps[-count:]

    def correct(self, index: int, marks: Mapping[int, np.ndarray]) -> Step:
        """Say what is the object and what is not, and go on from there.

        The marked places keep their value in this and every later step, and what the marks change
        enters the next refinement as that picture's mask. Steps after ``index`` are taken back.

        Args:
            index: of the step that is corrected.
            marks: by picture, 0 the query, 1, 2, ... the supports: int8 (h, w) of any size, spread over
                the whole picture: 1 "this is it", -1 "this is not", 0 nothing said.

        Returns:
            The corrected step.

        Raises:
            InputError: no such step or picture, or other values.
        """
        if not isinstance(index, Integral) or not 0 <= index < len(self.steps):
            raise InputError(f"There is no step {index}; the last is {len(self.steps) - 1}.")
        if not isinstance(marks, Mapping):
            raise InputError(f"Marks must be given by picture, as in {{0: marks}}, not as {type(marks).__name__}.")
        given = {picture: self._checked(picture, values) for picture, values in marks.items()}
        self._remember()
        for picture, values in given.items():
            before = self._marks.get(picture)
            if before is not None:  # a new mark counts more than an old one; neither is lost in coarser cells
                size = [max(sides) for sides in zip(before.shape, values.shape, strict=True)]
                before, values = (cv2.resize(m, size[::-1], interpolation=cv2.INTER_NEAREST) for m in (before, values))
                values = np.where(values == 0, before, values)
            self._marks[picture] = values
        for step in self.steps[index + 1 :]:
            self.seconds.pop(f"step{step.index}", None)
        del self.steps[index + 1 :], self._states[index + 1 :]
        with torch.inference_mode():
            self.steps[index], self._states[index] = self._marked(self.steps[index], self._states[index])
        self._history.append((index, given))
        return self.steps[index]

    def _checked(self, picture: int, values: np.ndarray) -> np.ndarray:
        """Marks of a picture as int8, a copy of the caller's.

        Raises:
            InputError: as for ``correct``.
        """
        if not isinstance(picture, Integral) or not 0 <= picture <= len(self.supports):
            raise InputError(f"There is no picture {picture}; 0 is the query, {len(self.supports)} the last support.")
        if (
            not isinstance(values, np.ndarray)
            or values.ndim != 2
            or not values.size
            or not np.isin(values, MARKS).all()
        ):
            raise InputError("Marks must be an array (h, w) of 1, -1 and 0.")
        return np.array(values, np.int8)

    @property
    def held(self) -> int:
        """Bytes of what ``release`` would let go of."""
        return held([self._states, self._consensus])

    @property
    def corrected(self) -> bool:
        """Whether marks of the user's took part."""
        return bool(self._marks)

    def __copy__(self) -> Run:
        return self.copy()

    def copy(self) -> Run:
        """A run that goes on from here by itself."""
        other = Run.__new__(Run)
        for name, value in vars(self).items():
            setattr(other, name, copy(value) if isinstance(value, (list, dict)) else value)
        return other

    def release(self) -> None:
        """Let go of what the next step would need, many megabytes; it is computed anew if the run goes on."""
        self._states, self._consensus = [], None

    def __getstate__(self) -> dict[str, Any]:
        """For another process: no models, and what ``release`` lets go of left behind."""
        kept = {name: value for name, value in vars(self).items() if name != "segmenter"}
        return kept | {"_states": [], "_consensus": None}

    def _remember(self) -> None:
        """What ``release`` let go of, by doing everything once more.

        Raises:
            InputError: the run was pickled and has no model.
        """
        if not hasattr(self, "segmenter"):
            raise InputError("This run comes without a model. To go on, set run.segmenter to a Segmenter.")
        if self._states:
            return
        again = self.segmenter.start(self.query, self.supports, self.label, self.options)
        for done in self._history:
            again.advance() if done is None else again.correct(*done)
        self._states = again._states
        if again.segmenter is not self.segmenter:  # the device was full: the states are where another computes
            self.segmenter = again.segmenter
            self.warnings += self.segmenter.notes

    def finish(self) -> Step:
        """The last step as the run's answer: cleaned, where edges are to be cleaned on the last step."""
        if self.options.edges is None or self._cleans_every_step:
            return self.steps[-1]
        clock = Clock()
        step = self._keeping(self._clean(self.steps[-1]))
        self.seconds["edges"] = clock.lap()
        return step

    def result(self, threshold: float = 0.5) -> Result:
        """What was found so far, the last step as the answer (``finish``).

        Raises:
            InputError: a threshold that is not in [0, 1].
        """
        check_threshold(threshold)
        steps = [*self.steps[:-1], self.finish()]
        said = self.verdict(threshold, steps[-1]) + [CORRECTED] * self.corrected
        return Result(self.label, steps, float(threshold), said, self.confidence, self.options, dict(self.seconds))

    def verdict(self, threshold: float = 0.5, answer: Step | None = None) -> list[str]:
        """``warnings``, and a sentence where the ``answer``, the last step by default, is empty or the label is doubted."""
        last = answer or self.steps[-1]
        small = last.query_at(last.query_soft.shape[-2:])
        return verdict(self.label, self.warnings, self.confidence, float((small >= last.cut(threshold)).mean()))

    def _seen(self, states: Sequence[RefinerState], like: Step) -> Step:
        """The step ``like`` with the masks of ``states``."""
        return replace(
            like,
            query_soft=_array(torch.cat([s.query_masks for s in states])),
            support_soft=tuple(_array(torch.cat([s.support_masks for s in states])))[: len(self.supports)],
        )

    def _clean(self, step: Step) -> Step:
        """The step with its masks fitted to the pictures' edges."""
        how = self.options.edges
        assert how is not None
        masks = [*step.query_soft, *step.support_soft]
        pictures = [*[self.query] * len(step.query_soft), *self.supports]
        with ThreadPoolExecutor() as pool:  # OpenCV lets other threads run meanwhile
            fitted = list(pool.map(lambda soft, p: clean(soft, p.pixels, how, step.level), masks, pictures))
        count = len(step.query_soft)
        return replace(step, query_soft=np.stack(fitted[:count]), support_soft=tuple(fitted[count:]))

    def _marked(self, step: Step, states: list[RefinerState]) -> tuple[Step, list[RefinerState]]:
        """Step and states with what the user has marked."""
        step = self._keeping(step, (states[0].masks.shape[-2], states[0].masks.shape[-1]))
        return step, self._carrying(step, states)

    def _keeping(self, step: Step, size: tuple[int, int] | None = None) -> Step:
        """The step with what the user has marked, its masks at ``size``; None leaves their sizes."""

        def mark(soft: np.ndarray, picture: int) -> np.ndarray:
            soft = soft if size is None else to_size(soft, size)
            if picture not in self._marks:
                return soft
            marks = self._marks[picture]
            is_, is_not = (
                cv2.resize((marks == value).astype(np.float32), soft.shape[::-1], interpolation=cv2.INTER_AREA)
                for value in (1, -1)
            )
            strength = np.minimum(np.abs(is_ - is_not) * 2, 1)  # all of it in a cell half of which is marked
            # A mark that fills half of no cell has the one that it is most in.
            strength[(strength > 0) & (strength == cv2.dilate(strength, np.ones((3, 3))))] = 1
            return soft * (1 - strength) + (is_ > is_not) * strength

        query = np.stack([mark(soft, 0) for soft in step.query_soft])
        support = tuple(mark(soft, 1 + k) for k, soft in enumerate(step.support_soft))
        return replace(step, query_soft=query, support_soft=support)

    def _carrying(self, step: Step, states: Sequence[RefinerState]) -> list[RefinerState]:
        """``states`` with the step's masks in the place of their own."""
        size = states[0].masks.shape[-2:]
        masks = self._masks(step, (size[0], size[1]))
        query, support = masks[: len(step.query_soft)], masks[len(step.query_soft) :]
        if not self.supports:
            support = query
        pairs = sum(len(s.query_masks) for s in states)
        query = query.expand(pairs, -1, -1, -1)  # one coarse mask of the query serves all supports
        out, done = [], 0
        for state in states:
            end = done + len(state.query_masks)
            out.append(replace(state, masks=torch.cat([query[done:end], support[done:end]]).to(state.masks)))
            done = end
        return out

    def _masks(self, step: Step, size: tuple[int, int]) -> Tensor:
        """A step's masks, queries before supports, as the network takes them: (B, 1, *size)."""
        masks = [torch.from_numpy(to_size(m, size)) for m in (*step.query_soft, *step.support_soft)]
        return torch.stack(masks).unsqueeze(1).to(self.segmenter.network.encoder.device)


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


def check_threshold(threshold: float) -> None:
    """See that masks can be cut there.

    Raises:
        InputError: not a number from 0 to 1.
    """
    if isinstance(threshold, bool) or not isinstance(threshold, Real) or not 0 <= threshold <= 1:
        raise InputError(f"The threshold must be a number from 0 to 1, not {shown(threshold)}.")


def check_label(label: str, kind: str = "label") -> str:
    """The label on one line, with single blanks between its words and none around them.

    Raises:
        InputError: not text, blank, longer than 200 characters, or with characters that do not stand for
            themselves: control characters, halves of surrogate pairs, marks that turn the direction of the
            text around them.
    """
    if not isinstance(label, str):
        raise InputError(f"The {kind} must be text, not {type(label).__name__}.")
    if not label.strip():
        what = "what to look for, for example: cat" if kind == "label" else "a word, or leave it out."
        raise InputError(f"The {kind} is empty. Type {what}")
    if len(label) > MAX_LABEL:
        raise InputError(f"The {kind} has {len(label)} characters. Accepted: up to {MAX_LABEL}.")
    plain = " ".join(label.split())
    if any(unicodedata.category(c) in ("Cc", "Cs") or c in TURNING for c in plain):
        raise InputError(f"The {kind} holds control characters. Accepted: letters, digits, blanks and punctuation.")
    return plain


def _array(masks: Tensor) -> np.ndarray:
    return masks[:, 0].float().cpu().numpy()
