"""How well the confidence tells whether a label is in a picture at all: AUROC over pictures and labels.

    python -m tools.presence --data DATA --splits SPLITS                                # the shipped checkpoint
    python -m tools.presence --data DATA --splits SPLITS --fold 1 --checkpoint runs/fold1/lite.safetensors

Every picture of the ``val`` lists is asked for every class of ``--fold`` that has pictures there (or of all folds);
it counts as present where the picture's mask shows it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from imrseg.data.benchmarks import FOLDS, PASCAL, pascal
from imrseg.data.entries import spelled_out
from imrseg.images import open_picture
from imrseg.segmenter import Segmenter


def auroc(scores: np.ndarray, present: np.ndarray) -> float:
    """Share of pairs (present, absent) in which the present one scores higher; ties count half."""
    absent = np.sort(scores[~present])
    below = np.searchsorted(absent, scores[present], "left") + np.searchsorted(absent, scores[present], "right")
    return float(below.mean() / 2 / len(absent))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--splits", type=Path, required=True)
    parser.add_argument("--fold", type=int, choices=range(FOLDS), help="whose classes are asked for")
    parser.add_argument("--checkpoint", type=Path)
    args = parser.parse_args()

    segmenter = Segmenter.from_preset("lite", checkpoint=args.checkpoint)
    folds = range(FOLDS) if args.fold is None else [args.fold]
    asked = sorted({e.name for e in pascal(args.data, args.splits, "val", folds)})
    pictures = {e.image: e for e in pascal(args.data, args.splits, "val", range(FOLDS))}
    masker = segmenter.masker
    readings = {name: masker.read(spelled_out(name), (), False) for name in asked}
    scores, present = np.zeros((len(pictures), len(asked))), np.zeros((len(pictures), len(asked)), bool)
    for i, (path, entry) in enumerate(tqdm(pictures.items(), mininterval=1)):
        seen = segmenter.features(masker.encoder, [open_picture(path)])
        with Image.open(entry.mask) as mask:
            values = set(np.unique(np.asarray(mask)).tolist())
        for k, name in enumerate(asked):
            scores[i, k] = masker.masks(seen, readings[name])[1][0]
            present[i, k] = PASCAL.index(name) + 1 in values
    for k, name in enumerate(asked):
        print(f"{name:12s} {present[:, k].sum():4d} pictures  {auroc(scores[:, k], present[:, k]):.3f}")
    print(f"all pairs    {present.sum():4d} present   {auroc(scores.ravel(), present.ravel()):.3f}")


if __name__ == "__main__":
    main()
