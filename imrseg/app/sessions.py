"""What the page remembers of one visitor's last run."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from imrseg.images import Picture
from imrseg.run import Step, verdict
from imrseg.visualize import soft_mask

REMEMBERED = 200  # cells of filmstrips
DISPLAY_SIDES = (640, 960)  # least and most of the longer side of a picture on the page, in pixels


@dataclass(frozen=True, eq=False)
class Finding:
    """One label's run: its steps so far.

    Attributes:
        label, warnings, confidence: as in ``imrseg.segmenter.Run``.
        steps: step 0 and those that followed; they hold small masks, made large when shown.
    """

    label: str
    warnings: list[str]
    confidence: float | None
    steps: tuple[Step, ...]

    def followed_by(self, step: Step) -> Finding:
        return replace(self, steps=(*self.steps, step))

    def ending_with(self, step: Step) -> Finding:
        """With ``step`` in the place of the last."""
        return replace(self, steps=(*self.steps[:-1], step))

    def verdict(self, covered: float) -> list[str]:
        """``warnings``, and a sentence where the query's last mask covers nothing or the label is doubted.

        ``covered``: the share of the query that the last mask covers, in [0, 1].
        """
        return verdict(self.label, self.warnings, self.confidence, covered)


@dataclass(frozen=True, eq=False)
class Session:
    """Pictures at display size and what was found in them, label by label.

    It never changes: a run makes a new one at every step, and the page keeps the last that it received.

    Attributes:
        pictures: uint8 (h, w, 3) RGB, the query first, then the supports.
        names: of their files.
        findings: one for each label, in the order of the label box.
    """

    pictures: tuple[np.ndarray, ...]
    names: tuple[str, ...]
    findings: tuple[Finding, ...] = ()
    _cells: dict[Hashable, str] = field(default_factory=dict)

    @classmethod
    def of(cls, pictures: Sequence[Picture]) -> Session:
        return cls(tuple(fit(p.pixels) for p in pictures), tuple(p.name for p in pictures))

    def having(self, finding: Finding) -> Session:
        """With ``finding``, in the place of an earlier one for the same label or after the others."""
        labels = [old.label for old in self.findings]
        number = labels.index(finding.label) if finding.label in labels else len(labels)
        return replace(self, findings=(*self.findings[:number], finding, *self.findings[number + 1 :]))

    @property
    def supports(self) -> int:
        return len(self.pictures) - 1

    def soft(self, finding: Finding, step: int, picture: int) -> np.ndarray:
        """The soft mask of picture 0 (the query), 1, 2, ... at display size: float32 (h, w) in [0, 1]."""
        return soft_mask(finding.steps[step], picture - 1, self.pictures[picture].shape[:2])

    def remembered(self, key: Hashable, make: Callable[[], str]) -> str:
        """What ``make`` returned for ``key`` before, or now; the last few hundred are kept."""
        if key not in self._cells:
            if len(self._cells) >= REMEMBERED:
                self._cells.clear()
            self._cells[key] = make()
        return self._cells[key]


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
