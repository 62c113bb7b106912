"""Mean IoU and foreground-background IoU, pooled as in HSNet's evaluator."""

from __future__ import annotations

import numpy as np

from imrseg.data.entries import IGNORE


class Scores:
    """Pools intersections and unions per class and step.

    IoU of a class = its pooled intersection / its pooled union over all episodes; mIoU = mean over
    the classes that had episodes; FB-IoU = mean of the object's and the background's IoU, pooled
    over all classes.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._areas: dict[str, np.ndarray] = {}

    def add(self, name: str, step: int, mask: np.ndarray, target: np.ndarray) -> None:
        """Count one mask, bool (H, W), against a target of 1 object, 0 background, 255 ignore."""
        valid, truth = target != IGNORE, target == 1
        areas = self._areas.setdefault(name, np.zeros((self.steps + 1, 2, 2), np.int64))
        for row, (found, wanted) in enumerate(((mask, truth), (~mask, ~truth))):
            areas[step, row, 0] += np.count_nonzero(found & wanted & valid)
            areas[step, row, 1] += np.count_nonzero((found | wanted) & valid)

    def merge(self, other: Scores) -> None:
        """Count all that ``other`` has counted, too."""
        for name, areas in other._areas.items():
            self._areas[name] = self._areas.get(name, 0) + areas

    def per_class(self) -> dict[str, list[float]]:
        """IoU per step, 0..1, by class name."""
        return {name: _ratio(areas[:, 0]) for name, areas in sorted(self._areas.items())}

    def miou(self) -> list[float]:
        """Mean IoU per step, 0..1."""
        return np.mean(list(self.per_class().values()), 0).tolist()

    def fb_iou(self) -> list[float]:
        """Foreground-background IoU per step, 0..1."""
        total = np.sum(list(self._areas.values()), 0)
        return np.mean([_ratio(total[:, row]) for row in (0, 1)], 0).tolist()


def _ratio(areas: np.ndarray) -> list[float]:
    return (areas[:, 0] / np.maximum(areas[:, 1], 1)).tolist()
