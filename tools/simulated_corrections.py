"""Simulated corrections: what a click on the largest error of a mask does for the query.

    python -m tools.simulated_corrections --data DATA --splits SPLITS --json corrections.json

One support; the queries are drawn from PASCAL's ``val`` lists without repetition. The largest
connected region where a mask is wrong is clicked at its innermost point, as what it is, object or
background. The mark is a disc, like a dab of a brush, or grown along the picture's colours
(``imrseg.clicks.grow``). It enters at a step, the run goes on from there, and the query's last mask
is scored beside that of a run of as many steps without a click. For the most that a support can
give, its whole true mask is imposed as well.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from imrseg.clicks import grow
from imrseg.data import entries as data_sets
from imrseg.data.entries import Entry
from imrseg.evaluation import REMEMBER, held_out, true_marks
from imrseg.export import check_target, write_json
from imrseg.images import Picture, open_picture, to_size
from imrseg.metrics import Scores
from imrseg.run import Run
from imrseg.segmenter import Segmenter

COMPLETE = ("cat", "cow", "dog", "horse", "sheep")
QUERY, SUPPORT = 0, 1
GROWN, TRUTH = "grown", "truth"


@dataclass(frozen=True)
class Plan:
    """How a run is corrected.

    Attributes:
        picture: that is clicked, ``QUERY`` or ``SUPPORT``.
        seen: the step whose mask is looked at.
        enters: the step that the marks enter, ``seen`` or an earlier one.
        how: the radius of a disc as a share of the picture's longer side, ``GROWN``, or ``TRUTH``,
            the whole true mask.
        clicks: how many, each on the mask that followed from those before.
        steps: of the whole run.
    """

    picture: int
    seen: int
    enters: int
    how: float | str
    clicks: int = 1
    steps: int = 3

    def __str__(self) -> str:
        mark = f"disc {self.how}" if isinstance(self.how, float) else self.how
        where = "support" if self.picture == SUPPORT else "query"
        return f"{where:8}{self.seen:5}{self.enters:8}{self.steps:7}{self.clicks:8}  {mark:11}"


PLANS = (
    *(Plan(SUPPORT, 1, 1, how) for how in (0.015, 0.03, 0.06, GROWN, TRUTH)),
    Plan(SUPPORT, 0, 0, GROWN),
    *(Plan(SUPPORT, 1, 0, how) for how in (0.06, GROWN, TRUTH)),
    Plan(SUPPORT, 1, 0, GROWN, clicks=3),
    Plan(SUPPORT, 3, 3, GROWN, steps=5),
    Plan(QUERY, 1, 1, 0.06),
    Plan(QUERY, 1, 1, GROWN),
    Plan(QUERY, 1, 0, GROWN),
    Plan(QUERY, 1, 0, GROWN, clicks=3),
    Plan(QUERY, 3, 3, GROWN, steps=5),
)


def mask_of(run: Run, index: int, picture: int, size: tuple[int, ...]) -> np.ndarray:
    """A step's mask of the query or the support, bool (H, W)."""
    step = run.steps[index]
    size = size[0], size[1]
    soft = step.query_at(size) if picture == QUERY else to_size(step.support_soft[0], size)
    return soft >= step.cut()


def largest_error(mask: np.ndarray, target: np.ndarray) -> tuple[int, int, int] | None:
    """Row, column and value of the click that a mask needs most, None where nothing is wrong.

    Args:
        mask: bool (H, W).
        target: uint8 (H, W): 1 object, 0 background, 255 ignore.
    """
    largest, click = 0, None
    for value, wrong in ((1, ~mask & (target == 1)), (-1, mask & (target == 0))):
        _, regions, stats, _ = cv2.connectedComponentsWithStats(wrong.astype(np.uint8), connectivity=8)
        sizes = stats[1:, cv2.CC_STAT_AREA]
        if sizes.max(initial=0) > largest:
            largest = sizes.max()
            region = np.pad(regions == 1 + sizes.argmax(), 1).astype(np.uint8)  # the picture's edge is a border too
            depth = cv2.distanceTransform(region, cv2.DIST_L2, 5)[1:-1, 1:-1]
            y, x = np.unravel_index(depth.argmax(), depth.shape)
            click = int(y), int(x), value
    return click


def marks_for(plan: Plan, mask: np.ndarray, target: np.ndarray, pixels: np.ndarray) -> np.ndarray | None:
    """What the next click of a plan says, int8 (H, W); None where nothing is wrong."""
    if plan.how == TRUTH:
        return true_marks(target)
    click = largest_error(mask, target)
    if click is None:
        return None
    y, x, value = click
    if plan.how == GROWN:
        return grow(pixels, y, x, value)
    marks = np.zeros(target.shape, np.int8)
    cv2.circle(marks, (x, y), max(1, round(float(plan.how) * max(target.shape))), value, -1)
    return marks


def corrected(segmenter: Segmenter, plan: Plan, pictures: Sequence[Picture], label: str, truth: np.ndarray) -> Run:
    """A run that a plan's clicks correct; ``truth`` is that of the plan's picture."""
    run = segmenter.start(pictures[QUERY], [pictures[SUPPORT]], label)
    while len(run.steps) <= plan.seen:
        run.advance()
    for _ in range(plan.clicks):
        mask = mask_of(run, plan.seen, plan.picture, truth.shape)
        marks = marks_for(plan, mask, truth, pictures[plan.picture].pixels)
        if marks is None:
            break
        run.correct(plan.enters, {plan.picture: marks})
        while len(run.steps) <= plan.seen:
            run.advance()
    while len(run.steps) <= plan.steps:
        run.advance()
    return run


def mean_iou(scores: Scores, names: Sequence[str]) -> list[float]:
    """Mean IoU of some classes per step, in percent."""
    per_class = scores.per_class()
    return (100 * np.mean([per_class[name] for name in names], 0)).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--splits", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=300, help="at most every line of the lists once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()

    check_target(args.json)
    segmenter = Segmenter.from_preset("lite")
    segmenter.remember = REMEMBER
    entries = held_out("pascal", args.data, args.splits, None)
    drawn, skipped = data_sets.episodes(entries, 1, len(entries), args.seed)
    drawn = drawn[: sum(e.name not in skipped for e in entries)]  # each picture once
    chosen = np.random.default_rng(args.seed).permutation(len(drawn))[: args.episodes]  # the lists go by fold
    drawn = [drawn[i] for i in chosen]
    most = max(plan.steps for plan in PLANS)
    without, support_alone = Scores(most), Scores(most)
    scores = [Scores(0) for _ in PLANS]

    @lru_cache(maxsize=512)
    def picture(path: Path) -> Picture:
        return open_picture(path)

    @lru_cache(maxsize=512)
    def target(entry: Entry) -> np.ndarray:
        return entry.target()

    for query, (support,) in tqdm(drawn, desc="correct", unit="episode", mininterval=1.0):
        pair = entries[query], entries[support]
        name, label = pair[0].name, pair[0].label
        pictures, truths = [picture(e.image) for e in pair], [target(e) for e in pair]
        run = segmenter.start(pictures[QUERY], [pictures[SUPPORT]], label)
        for index in range(most + 1):
            for table, which in ((without, QUERY), (support_alone, SUPPORT)):
                table.add(name, index, mask_of(run, index, which, truths[which].shape), truths[which])
            if index < most:
                run.advance()
        for plan, table in zip(PLANS, scores, strict=True):
            run = corrected(segmenter, plan, pictures, label, truths[plan.picture])
            table.add(name, 0, mask_of(run, plan.steps, QUERY, truths[QUERY].shape), truths[QUERY])

    every = sorted({entries[query].name for query, _ in drawn})
    complete = [name for name in COMPLETE if name in every]
    control = {"five": mean_iou(without, complete), "all": mean_iou(without, every)}
    rows = [
        {
            **asdict(plan),
            "five": mean_iou(table, complete)[0],
            "all": mean_iou(table, every)[0],
            "per_class": table.per_class(),
        }
        for plan, table in zip(PLANS, scores, strict=True)
    ]
    out = {
        "without": control, "without_per_class": without.per_class(),
        "support_alone": {"five": mean_iou(support_alone, complete), "all": mean_iou(support_alone, every)},
        "corrected": rows, "classes": every, "episodes": len(drawn), "seed": args.seed,
    }  # fmt: skip
    print(f"{len(drawn)} episodes; mean IoU of the query, five complete classes / all {len(every)}")
    print("without a click, steps 0, 1, ...:", ", ".join(f"{a:.1f}" for a in control["five"]), end=" / ")
    print(", ".join(f"{a:.1f}" for a in control["all"]))
    print("clicked  seen  enters  steps  clicks  mark         five          all")
    for plan, row in zip(PLANS, rows, strict=True):
        figures = [f"{row[which]:5.1f} {row[which] - control[which][plan.steps]:+5.1f}" for which in control]
        print(f"{plan}  {'   '.join(figures)}")
    write_json(args.json, out)


if __name__ == "__main__":
    main()
