"""The cross-fold table: five complete classes, each scored by a model that never saw it.

    python -m tools.cross_fold --data DATA --splits SPLITS --runs runs/seed0 runs/seed1 runs/seed2 --json cross-fold.json

``RUNS/fold1``, ``fold2`` and ``fold3`` are outputs of ``train --fold 1``, 2 and 3, and what is there is scored: fold 1
has cat and cow, 2 dog and horse, 3 sheep. Several ``RUNS`` are trainings with several seeds, of which mean and spread
(standard deviation) are given. Beside the steps it prints the coarse
mask at the level that suits these very episodes best, the fairest thing to beat. ``python -m imrseg tables`` takes
the JSON.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from imrseg.data import entries as data_sets
from imrseg.evaluation import evaluate, held_out
from imrseg.export import check_target, write_json
from imrseg.metrics import Scores
from imrseg.run import Options
from imrseg.segmenter import Segmenter

COMPLETE = ("cat", "cow", "dog", "horse", "sheep")
FOLDS = (1, 2, 3)
LEVELS = np.arange(0.05, 0.65, 0.05)


def best_coarse(segmenter: Segmenter, entries: list[data_sets.Entry]) -> dict[str, list[float]]:
    """IoU of the coarse masks per class at each of ``LEVELS``, once for each entry."""
    scores = Scores(len(LEVELS) - 1)
    for entry in entries:
        target = entry.target()
        soft = segmenter.start(entry.image, [], entry.label).steps[0].query_at(target.shape)
        for i, level in enumerate(LEVELS):
            scores.add(entry.name, i, soft >= level, target)
    return scores.per_class()


def folds_of(runs: list[Path]) -> list[int]:
    """The folds that every run has been trained on, for means of unlike classes would say nothing."""
    there = {run: [fold for fold in FOLDS if any((run / f"fold{fold}").glob("*.safetensors"))] for run in runs}
    if [] in there.values() or len({*map(tuple, there.values())}) > 1:
        found = "; ".join(
            f"{run} has {', '.join(f'fold{fold}' for fold in folds) or 'none'}" for run, folds in there.items()
        )
        raise SystemExit(f"Every run must have a checkpoint of the same folds, of fold1, fold2 and fold3: {found}.")
    return there[runs[0]]


def score_run(
    run: Path, folds: list[int], args: argparse.Namespace
) -> tuple[list[dict[str, Any]], dict[str, list[float]], np.ndarray]:
    """Of one training: each fold's result, its classes' rows, and the coarse masks' mean at ``LEVELS``."""
    results, per_class, coarse, without = [], {}, {}, []
    for fold in folds:
        (checkpoint,) = (run / f"fold{fold}").glob("*.safetensors")
        segmenter = Segmenter.from_preset(args.preset, checkpoint=checkpoint, coarse=args.coarse)
        entries = [e for e in held_out("pascal", args.data, args.splits, fold) if e.name in COMPLETE]
        result = evaluate(
            segmenter, entries, shots=args.shots, episodes=args.episodes, steps=args.steps, seed=args.seed,
            zero_shot=args.zero_shot, true_supports=args.true_supports,
            options=Options(aggregate=args.aggregate, consensus=args.consensus),
        )  # fmt: skip
        results.append({**result, "benchmark": "pascal", "fold": fold})
        without += result["skipped"] + result["unreached"]
        per_class |= result["per_class"]
        coarse |= best_coarse(segmenter, entries)
    if without:
        raise SystemExit(f"{args.episodes} episodes per fold are too few: {', '.join(without)} had none.")
    return results, per_class, np.mean([coarse[name] for name in per_class], 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--splits", type=Path, required=True)
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--preset", default="lite")
    parser.add_argument("--coarse", help="what makes the coarse masks, not the preset's own")
    parser.add_argument("--episodes", type=int, default=1000, help="per fold")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--aggregate", help="vote or mean")
    parser.add_argument("--consensus", default="on", help="on or off")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--zero-shot", action="store_true")
    parser.add_argument("--true-supports", action="store_true")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()

    check_target(args.json)
    folds = folds_of(args.runs)
    scored = [score_run(run, folds, args) for run in args.runs]
    names = list(scored[0][1])
    rows = np.array([[per_class[name] for name in names] for _, per_class, _ in scored])  # (runs, classes, steps)
    means, sweep = rows.mean(1), np.mean([levels for _, _, levels in scored], 0)
    spread = means.std(0, ddof=1) if len(scored) > 1 else np.zeros(means.shape[1])
    table = {
        "per_class": dict(zip(names, rows.mean(0).tolist(), strict=True)),
        "miou": means.mean(0).tolist(),
        "spread": spread.tolist(),
        "runs": dict(zip(map(str, args.runs), means.tolist(), strict=True)),
        "coarse_at_best_level": float(sweep.max()),
        "best_level": float(LEVELS[sweep.argmax()]),
        "coarse_by_level": {f"{level:.2f}": float(value) for level, value in zip(LEVELS, sweep, strict=True)},
        "episodes_per_fold": args.episodes,
        "shots": 0 if args.zero_shot else args.shots,
        "true_supports": args.true_supports,
        "seed": args.seed,
        "folds": [result for results, _, _ in scored for result in results],
    }
    for name, row in [*table["per_class"].items(), ("mean", table["miou"]), ("spread", table["spread"])]:
        print(f"{name:6}", " ".join(f"{x:.3f}" for x in row))
    print(f"coarse at its best level, {table['best_level']:.2f}: {table['coarse_at_best_level']:.3f}")
    write_json(args.json, table)


if __name__ == "__main__":
    main()
