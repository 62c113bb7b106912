"""``python -m imrseg evaluate``: seeded episodes, pooled IoU per class and step."""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path

from tqdm import tqdm

from imrseg.data import entries as data_sets
from imrseg.data.entries import Entry
from imrseg.errors import InputError
from imrseg.export import describe
from imrseg.images import Picture, open_picture
from imrseg.metrics import Scores
from imrseg.run import Options
from imrseg.segmenter import Segmenter

REMEMBER = 2 * 2**30  # bytes of features: the pictures come again as supports
BENCHMARKS = ("pascal", "folder")


def held_out(benchmark: str, data: Path, splits: Path | None, fold: int | None) -> list[Entry]:
    """The entries that are scored: ``val/foldK``, all folds for None; of a folder, everything.

    Raises:
        InputError: unknown benchmark or fold, missing files.
    """
    if benchmark == "folder":
        return data_sets.folder(data)
    if benchmark != "pascal":
        raise InputError(f"There is no benchmark “{benchmark}”. Accepted: {', '.join(BENCHMARKS)}.")
    if splits is None:
        raise InputError("pascal needs --splits, the folder that holds val/fold0.txt to val/fold3.txt.")
    if fold is not None and not 0 <= fold < data_sets.PASCAL_FOLDS:
        raise InputError(f"There is no fold {fold}. Accepted: 0 to {data_sets.PASCAL_FOLDS - 1}.")
    return data_sets.pascal(data, splits, "val", range(data_sets.PASCAL_FOLDS) if fold is None else [fold])


def classes(benchmark: str, entries: list[Entry]) -> tuple[str, ...]:
    """The whole class list of a data set, spelled out."""
    if benchmark == "pascal":
        return tuple(data_sets.spelled_out(name) for name in data_sets.PASCAL)
    return tuple(sorted({entry.label for entry in entries}))


def evaluate(
    segmenter: Segmenter,
    entries: list[Entry],
    *,
    shots: int = 1,
    episodes: int = 1000,
    steps: int | None = None,
    seed: int = 0,
    zero_shot: bool = False,
    options: Options | None = None,
) -> dict:
    """Score a segmenter on episodes drawn from ``entries``.

    Masks are cut at 0.5, step 0 at the coarse masker's own level, and scored at the query's
    original size without its ignore pixels. ``options`` are those of each run.

    Returns:
        ``{"miou": [step 0, step 1, ...], "fb_iou": [...], "per_class": {name: [...]}, "skipped":
        [...], "episodes": n, "seconds": s, ...}``, all IoU in 0..1.

    Raises:
        InputError: no class has enough pictures.
    """
    count, options = segmenter.check_steps(steps), options or Options()
    drawn, skipped = data_sets.episodes(entries, shots, episodes, seed)
    scores, began = Scores(count), time.perf_counter()

    @lru_cache(maxsize=512)
    def picture(path: Path) -> Picture:
        return open_picture(path)

    segmenter.remember = REMEMBER
    for query, supports in tqdm(drawn, desc="evaluate", unit="episode", mininterval=1.0):
        entry = entries[query]
        pictures = [] if zero_shot else [picture(entries[i].image) for i in supports]
        target = entry.target()
        run = segmenter.start(picture(entry.image), pictures, entry.label, options)
        done = [run.steps[0], *(run.advance() for _ in range(count))]
        for step in [*done[:-1], run.finish()]:
            scores.add(entry.name, step.index, step.query_at(target.shape) >= step.cut(), target)
    return {
        "miou": scores.miou(),
        "fb_iou": scores.fb_iou(),
        "per_class": scores.per_class(),
        "skipped": skipped,
        "episodes": len(drawn),
        "shots": 0 if zero_shot else shots,
        "steps": count,
        "seed": seed,
        **describe(segmenter),
        **options.record(),
        "seconds": time.perf_counter() - began,
    }
