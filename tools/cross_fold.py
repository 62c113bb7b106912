"""The cross-fold table: five complete classes, each scored by a model that never saw it.

    python tools/cross_fold.py --data DATA --splits SPLITS --runs runs --json cross-fold.json

``RUNS/fold1``, ``fold2`` and ``fold3`` are outputs of ``train --fold 1``, 2 and 3. Beside the steps it
prints the coarse mask at the level that suits these very episodes best, the fairest thing to beat.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from imrseg.data import entries as data_sets
from imrseg.evaluation import evaluate, held_out
from imrseg.metrics import Scores
from imrseg.segmenter import Segmenter

COMPLETE = ("cat", "cow", "dog", "horse", "sheep")
FOLDS = (1, 2, 3)
LEVELS = np.arange(0.05, 0.65, 0.05)


def best_coarse(segmenter: Segmenter, entries: list[data_sets.Entry]) -> dict[str, list[float]]:
    """IoU of the coarse masks per class at each of ``LEVELS``, once for each entry."""
    scores = Scores(len(LEVELS) - 1)
    for entry in entries:
        target = entry.target()
        soft = segmenter.start(entry.image, [], entry.label).coarse.query_at(target.shape)
        for i, level in enumerate(LEVELS):
            scores.add(entry.name, i, soft >= level, target)
    return scores.per_class()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--splits", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=1000, help="per fold")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--zero-shot", action="store_true")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()

    per_class, coarse = {}, {}
    for fold in FOLDS:
        segmenter = Segmenter.from_preset("lite", checkpoint=args.runs / f"fold{fold}" / "lite.safetensors")
        entries = [e for e in held_out("pascal", args.data, args.splits, fold) if e.name in COMPLETE]
        result = evaluate(
            segmenter, entries, shots=args.shots, episodes=args.episodes, steps=args.steps, seed=args.seed,
            zero_shot=args.zero_shot,
        )  # fmt: skip
        per_class |= result["per_class"]
        coarse |= best_coarse(segmenter, entries)

    rows = [per_class[name] for name in COMPLETE]
    sweep = np.mean([coarse[name] for name in COMPLETE], 0)
    table = {
        "per_class": {name: per_class[name] for name in COMPLETE},
        "miou": np.mean(rows, 0).tolist(),
        "coarse_at_best_level": float(sweep.max()),
        "best_level": float(LEVELS[sweep.argmax()]),
        "episodes_per_fold": args.episodes,
        "shots": 0 if args.zero_shot else args.shots,
        "seed": args.seed,
    }
    args.json.write_text(json.dumps(table, indent=2))
    for name, row in [*zip(COMPLETE, rows, strict=True), ("mean", table["miou"])]:
        print(f"{name:6}", " ".join(f"{x:.3f}" for x in row))
    print(f"coarse at its best level, {table['best_level']:.2f}: {table['coarse_at_best_level']:.3f}")


if __name__ == "__main__":
    main()
