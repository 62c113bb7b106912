"""What the page remembers of one visitor's last run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from imrseg.bundle import Found
from imrseg.images import Picture
from imrseg.postprocess import iou
from imrseg.run import CORRECTED, Options, Run, Step, verdict
from imrseg.visualize import soft_mask

REMEMBERED = 400  # cells of filmstrips
DISPLAY_SIDES = (640, 960)  # least and most of the longer side of a picture on the page, in pixels


@dataclass(frozen=True, eq=False)
class Finding:
    """One label in one query: its steps so far.

    Attributes:
        label, warnings, confidence, options: as in ``imrseg.run.Result``.
        steps: step 0 and those that followed; they hold small masks, made large when shown.
        run: goes on from the last step.
    """

    label: str
    warnings: list[str]
    confidence: float | None
    options: Options
    steps: tuple[Step, ...]
    run: Run | None = None

    @classmethod
    def of(cls, run: Run, finished: bool) -> Finding:
        """What a run has found so far; ``finished``: its last step is the answer."""
        steps = (*run.steps[:-1], run.finish()) if finished else tuple(run.steps)
        return cls(run.label, run.warnings, run.confidence, run.options, steps, run)

    def step(self, index: int, used: Sequence[bool] = ()) -> Step:
        """A step, the last where there is no such; ``used``: the supports whose masks count."""
        step = self.steps[min(index, len(self.steps) - 1)]
        if len(step.query_soft) < 2 or all(used) or not any(used):
            return step
        return replace(step, query_soft=step.query_soft[np.array(used)])

    def verdict(self, covered: float) -> list[str]:
        """``warnings``, and a sentence where the query's last mask covers nothing or the label is doubted.

        ``covered``: the share of the query that the last mask covers, in [0, 1].
        """
        return verdict(self.label, self.warnings, self.confidence, covered)


class Cell(NamedTuple):
    """One place in a filmstrip, and all that it depends on beside the pictures and the steps."""

    label: str
    step: int
    picture: int
    view: str
    threshold: float
    used: tuple[bool, ...]


@dataclass(frozen=True, eq=False)
class Scene:
    """One query with the supports, and what was found in it, label by label.

    Attributes:
        pictures: uint8 (h, w, 3) RGB at display size, the query first, then the supports.
        paths: of their files.
        findings: one for each label, in the order of the label box.
        used: for each support, whether its mask of the query counts.
        truth: the query's true mask, bool (h, w) at display size, where the visitor gave one.
    """

    pictures: tuple[np.ndarray, ...]
    paths: tuple[Path, ...]
    findings: tuple[Finding, ...] = ()
    used: tuple[bool, ...] = ()
    truth: np.ndarray | None = None
    _cells: dict[Cell, str] = field(default_factory=dict)

    @classmethod
    def of(cls, pictures: Sequence[Picture], paths: Sequence[str | Path]) -> Scene:
        shown = tuple(fit(p.pixels) for p in pictures)
        return cls(shown, tuple(map(Path, paths)), used=(True,) * (len(shown) - 1))

    def measured(self, before: Sequence[Scene]) -> Scene:
        """With the true mask that one of these scenes has of the same query."""
        same = (scene.truth for scene in before if np.array_equal(scene.pictures[0], self.pictures[0]))
        return replace(self, truth=next(same, None))

    def having(self, finding: Finding) -> Scene:
        """With ``finding``, in the place of an earlier one for the same label or after the others."""
        labels = [old.label for old in self.findings]
        number = labels.index(finding.label) if finding.label in labels else len(labels)
        before = self.findings[number].steps if number < len(labels) else ()
        same = len(list(takewhile(lambda steps: steps[0] is steps[1], zip(before, finding.steps, strict=False))))
        cells = {
            cell: made for cell, made in list(self._cells.items()) if cell.label != finding.label or cell.step < same
        }
        return replace(self, findings=(*self.findings[:number], finding, *self.findings[number + 1 :]), _cells=cells)

    def finding(self, label: str | None) -> Finding:
        """What was found for ``label``; the first where it is not among them."""
        return next((f for f in self.findings if f.label == label), self.findings[0])

    @property
    def name(self) -> str:
        return self.paths[0].name

    @property
    def supports(self) -> int:
        return len(self.pictures) - 1

    def soft(self, finding: Finding, step: int, picture: int) -> np.ndarray:
        """The soft mask of picture 0 (the query), 1, 2, ... at display size: float32 (h, w) in [0, 1]."""
        return soft_mask(finding.step(step, self.used), picture - 1, self.pictures[picture].shape[:2])

    def inside(self, finding: Finding, step: int, picture: int, threshold: float) -> np.ndarray:
        """The cut mask, bool (h, w)."""
        return self.soft(finding, step, picture) >= finding.step(step).cut(threshold)

    def shares(self, finding: Finding, step: int, threshold: float) -> list[float]:
        """How much of each support's own mask of the query agrees with the answer: their IoU."""
        shown = finding.step(step)
        answer = self.inside(finding, step, 0, threshold)
        return [
            iou(replace(shown, query_soft=one[None]).query_at(answer.shape) >= shown.cut(threshold), answer)
            for one in shown.query_soft
        ]

    def found(self, finding: Finding, step: int, threshold: float) -> Found:
        """For taking away: the steps up to ``step``, with the supports that count."""
        on = [k for k in range(self.supports) if self.used[k] or not any(self.used)]
        steps = []
        for index in range(min(step, len(finding.steps) - 1) + 1):
            shown = finding.step(index, self.used)
            supports = tuple(shown.support_soft[k] for k in on), tuple(shown.support_sizes[k] for k in on)
            steps.append(replace(shown, support_soft=supports[0], support_sizes=supports[1]))
        warnings = finding.verdict(float(self.inside(finding, step, 0, threshold).mean()))
        if finding.run is not None and finding.run.corrected:
            warnings.append(CORRECTED)
        if len(on) < self.supports and finding.options.consensus == "on":
            warnings.append("Supports were switched off: the command runs without them, in the consensus, too.")
        return Found(
            finding.label, steps, threshold, warnings, finding.confidence, finding.options, self.paths[0],
            [self.paths[1 + k] for k in on],
        )  # fmt: skip

    def all_found(self, threshold: float) -> list[Found]:
        """For taking away: every label with all its steps."""
        return [self.found(finding, len(finding.steps) - 1, threshold) for finding in self.findings]

    def remembered(self, cell: Cell, make: Callable[[], str]) -> str:
        """What ``make`` returned for ``cell`` before, or now; the last few hundred are kept."""
        made = self._cells.get(cell)
        if made is None:
            made = make()
            if len(self._cells) >= REMEMBERED:  # visitors of an example share them: one may clear them any time
                self._cells.clear()
            self._cells[cell] = made
        return made


@dataclass(frozen=True, eq=False)
class Session:
    """One visitor's last run: a scene for each query.

    It never changes: a run makes a new one at every step, and the page keeps the last that it received. Only where
    all visitors together hold too much, those who came longest ago are forgotten: theirs is empty, and false.
    ``preset``, ``coarse`` and ``device`` name the models that the run was made with.
    """

    scenes: tuple[Scene, ...]
    preset: str
    coarse: str
    device: str = ""

    def __bool__(self) -> bool:
        return bool(self.scenes)

    def forget(self) -> None:
        """Let go of everything."""
        object.__setattr__(self, "scenes", ())

    def arrays(self) -> dict[int, int]:
        """Bytes of what it holds, by the identity of each array and thumbnail: sessions share some."""
        held: list[np.ndarray | None] = []
        cells: dict[int, int] = {}
        for scene in self.scenes:
            cells |= {id(made): len(made) for made in list(scene._cells.values())}
            held += [*scene.pictures, scene.truth]
            for finding in scene.findings:
                held += [mask for step in finding.steps for mask in (step.query_soft, *step.support_soft)]
                if finding.run is not None:
                    held += [picture.pixels for picture in (finding.run.query, *finding.run.supports)]
        return cells | {id(array): array.nbytes for array in held if array is not None}

    @property
    def chosen(self) -> tuple[str, str, str]:
        """What ``Models.get`` takes."""
        return self.preset, self.coarse, self.device

    def having(self, number: int, scene: Scene) -> Session:
        """With ``scene`` as scene ``number``, in the place of the old one or after the others."""
        return replace(self, scenes=(*self.scenes[:number], scene, *self.scenes[number + 1 :]))

    def copied(self) -> Session:
        """The same for another visitor, whose runs go on by themselves."""
        scenes = (
            replace(scene, findings=tuple(replace(f, run=f.run and f.run.copy()) for f in scene.findings))
            for scene in self.scenes
        )
        return replace(self, scenes=tuple(scenes))

    def scene(self, name: str | None) -> int:
        """The number of the scene called ``name``; 0 where it is not among them."""
        return next((i for i, choice in enumerate(self.names()) if choice == name), 0)

    def found(self, threshold: float) -> list[Found]:
        """For taking away: everything."""
        return [found for scene in self.scenes for found in scene.all_found(threshold)]

    def files(self) -> set[Path]:
        """Of all pictures."""
        return {path for scene in self.scenes for path in scene.paths}

    def names(self) -> list[str]:
        """Of the scenes, each other than the rest."""
        return [f"{i}. {scene.name}" for i, scene in enumerate(self.scenes, 1)]


def fit(pixels: np.ndarray) -> np.ndarray:
    """``pixels`` at display size: its longer side within ``DISPLAY_SIDES``.

    A small picture is enlarged so that what is drawn on it is sharp.
    """
    h, w = pixels.shape[:2]
    side = min(max(h, w, DISPLAY_SIDES[0]), DISPLAY_SIDES[1])
    if max(h, w) == side:
        return pixels
    scale = side / max(h, w)
    size = max(1, round(w * scale)), max(1, round(h * scale))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
