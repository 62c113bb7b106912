"""``python -m imrseg evaluate``: seeded episodes, pooled IoU per class and step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from imrseg import distributed, weights
from imrseg.data import entries as data_sets
from imrseg.data.benchmarks import classes, expected, held_out
from imrseg.data.checks import tell
from imrseg.data.entries import IGNORE, Entry
from imrseg.errors import InputError, WeightsError
from imrseg.export import describe
from imrseg.images import Picture, open_picture
from imrseg.metrics import Scores
from imrseg.run import Options, check_label
from imrseg.segmenter import Segmenter

__all__ = ["classes", "evaluate", "expected", "held_out"]

REMEMBER = 2 * 2**30  # bytes of features: the pictures come again as supports


def evaluate(
    segmenter: Segmenter,
    entries: list[Entry],
    *,
    shots: int = 1,
    episodes: int = 1000,
    steps: int | None = None,
    seed: int = 0,
    zero_shot: bool = False,
    true_supports: bool = False,
    options: Options | None = None,
    uniform: bool = False,
    names: Sequence[str] = (),
    side: int | None = None,
) -> dict[str, Any]:
    """Score a segmenter on episodes drawn from ``entries``.

    Masks are cut at 0.5, step 0 at the coarse masker's own level, and scored without the query's ignore
    pixels. ``options`` are those of each run. Processes that ``torchrun`` started share the episodes, and
    each returns the scores of all.

    Args:
        true_supports: impose the supports' own masks in place of those that labels alone would give, before each step:
            few-shot segmentation as it usually is, and the most that supports can do for a query.
        uniform: draw each episode's class first, with equal chances (COCO-20i).
        names: of all classes that should be scored, so that those without a picture are told.
        side: score at side x side pixels, as HSNet does at 400 by default; None: at the query's original size.

    Returns:
        ``{"miou": [step 0, step 1, ...], "fb_iou": [...], "per_class": {name: [...]}, "skipped": [...],
        "unreached": [...], "episodes": n, "seconds": s, ...}``, all IoU in 0..1; "skipped" are classes of too few
        pictures, "unreached" those that no episode came to, "seen" those that the checkpoint was trained on; with "network" and "config", what the checkpoint says
        of itself and its training.

    Raises:
        InputError: no class has enough pictures; numbers that are too small; true masks of no supports; a class whose
            name cannot be a label.
    """
    if zero_shot and true_supports:
        raise InputError("Without supports there are no true masks of theirs. Choose zero-shot or true supports.")
    for name, value in (("shots", shots), ("episodes", episodes), ("side", 1 if side is None else side)):
        if value < 1:
            raise InputError(f"The number of {name} must be 1 or more, not {value}.")
    count, options = segmenter.check_steps(steps), segmenter.effective(options or Options())
    shots = 0 if zero_shot else shots
    drawn, skipped = data_sets.episodes(entries, shots, episodes, seed, uniform)
    check_labels(segmenter, [entries[query] for query, _ in drawn])
    scores, began = Scores(count), time.perf_counter()

    @lru_cache(maxsize=512)
    def picture(path: Path) -> Picture:
        return open_picture(path)

    own = drawn[distributed.rank() :: distributed.size()]
    kept, segmenter.remember = segmenter.remember, max(segmenter.remember, REMEMBER)
    try:
        for query, supports in tqdm(
            own, desc="evaluate", unit="episode", mininterval=1.0, disable=distributed.rank() > 0
        ):  # fmt: skip
            entry = entries[query]
            pictures = [picture(entries[i].image) for i in supports]
            target = entry.target()
            if side is not None:
                target = cv2.resize(target, (side, side), interpolation=cv2.INTER_NEAREST)
            run = segmenter.start(picture(entry.image), pictures, entry.label, options)
            if true_supports:
                run.correct(0, {k: true_marks(entries[i].target()) for k, i in enumerate(supports, 1)})
            done = [run.steps[0], *run.advance_by(count)]
            for step in [*done[:-1], run.finish()]:
                scores.add(entry.name, step.index, step.query_at(target.shape) >= step.cut(), target)
    finally:
        segmenter.remember = kept
    whole = Scores(count)
    for each in distributed.gathered(scores):
        whole.merge(each)
    unreached = {e.name for e in entries} - {entries[query].name for query, _ in drawn} - {*skipped}
    return {
        "miou": whole.miou(),
        "fb_iou": whole.fb_iou(),
        "per_class": whole.per_class(),
        "skipped": sorted({*skipped, *names} - whole.per_class().keys() - unreached),
        "unreached": sorted(unreached),
        "episodes": len(drawn),
        "shots": shots,
        "true_supports": true_supports,
        "steps": count,
        "seed": seed,
        "side": side,
        **describe(segmenter),
        **options.record(),
        **origin(segmenter),
        "seen": seen_in_training(segmenter, [entries[query] for query, _ in drawn]),
        "seconds": time.perf_counter() - began,
    }


def check_labels(segmenter: Segmenter, entries: list[Entry]) -> None:
    """See that every class's name can be read, before hours of work.

    Raises:
        InputError: one cannot; the message gives all of them.
    """
    problems: dict[str, list[str]] = {}
    for label in sorted({entry.label for entry in entries}):
        try:
            segmenter.masker.read(check_label(label), [], False)
        except InputError:
            problems.setdefault("Classes are called by what is no label", []).append(label[:40])
    tell(problems)


def true_marks(target: np.ndarray) -> np.ndarray:
    """A picture's ``Entry.target``, uint8 (H, W), as ``Run.correct`` takes it: int8 (H, W) of 1, -1, and 0 where ignored."""
    return np.where(target == IGNORE, 0, np.where(target == 1, 1, -1)).astype(np.int8)


def seen_in_training(segmenter: Segmenter, entries: list[Entry]) -> list[str]:
    """The classes of entries whose masks the checkpoint was trained on, as far as its header says."""
    try:
        trained = weights.header(segmenter.network.file).get("classes", [])
    except WeightsError:  # the authors'
        return []
    known = {data_sets.spelled_out(str(name)).casefold() for name in trained}
    return sorted({entry.name for entry in entries if entry.label.casefold() in known})


def origin(segmenter: Segmenter) -> dict[str, Any]:
    """What the checkpoint says of its network and training; of a file of the authors' what the preset says."""
    preset = segmenter.preset
    try:
        header = weights.header(segmenter.network.file)
    except WeightsError:
        header = {"network": {"name": preset.network, "backbone": preset.backbone}}
    return {name: header[name] for name in ("network", "config") if name in header}
