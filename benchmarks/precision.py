"""What a lower precision changes on real pictures: pixels of the last mask, and time.

    python benchmarks/precision.py --data DATA --splits DATA/splits/pascal --json benchmarks/results/precision.json

As many episodes as the lists have lines, a picture and a class each, with one support, in float32 and in the lower
precision, in turns. Lines of a class that has no second picture make way for the first lines again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median

import numpy as np
from measure import in_turns, machine, write

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from imrseg import Segmenter
from imrseg.data.benchmarks import held_out
from imrseg.data.entries import episodes
from imrseg.precision import PRECISIONS
from imrseg.run import Result

FOLDS = range(4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--splits", type=Path, required=True)
    parser.add_argument("--preset", default="lite")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=PRECISIONS[1:], default="bfloat16")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    exact, lower = (
        Segmenter.from_preset(args.preset, args.device, args.checkpoint, precision=precision)
        for precision in ("float32", args.precision)
    )
    entries = [entry for fold in FOLDS for entry in held_out("pascal", args.data, args.splits, fold)]
    changed, ratios = [], []
    for query, supports in episodes(entries, 1, len(entries), seed=0)[0]:
        found: dict[Segmenter, Result] = {}

        def segment(segmenter: Segmenter) -> None:
            files = [entries[i].image for i in (query, *supports)]  # noqa: B023
            found[segmenter] = segmenter.segment(files[0], files[1:], entries[query].label)  # noqa: B023

        # The second time features are known: what is left is what the precision is of.
        (first,), (second,) = in_turns([lambda: segment(exact), lambda: segment(lower)], 1)
        ratios.append(first / second)
        changed.append(float(np.mean(found[exact].mask != found[lower].mask)))
    write(
        {
            **machine(exact.device), "preset": args.preset, "precision": lower.precision, "pairs": len(changed),
            "changed_pixels": float(np.mean(changed)), "changed_pixels_p95": float(np.percentile(changed, 95)),
            "ratio": median(ratios),
        },
        args.json,
    )  # fmt: skip


if __name__ == "__main__":
    main()
