"""Measure a lite checkpoint's coarse level and confidence anew, where the coarse stage has changed since its training.

    python tools/calibrate.py runs/all/lite.safetensors --data DATA --splits SPLITS --fold all --extra folder:msrc/trn \
        --cache features --out checkpoints/lite.safetensors

The weights stay as they are. ``train`` does the same at its end, on half as many pictures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save

from imrseg import weights
from imrseg.networks import EVERYDAY
from imrseg.training import CONFIGS, gather
from imrseg.training.calibrate import calibrate
from imrseg.training.data import TrainingSet
from imrseg.training.loop import write_whole
from imrseg.training.starts import CoarseMasks

PICTURES = 800


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--splits", type=Path, required=True)
    parser.add_argument("--fold", default="all", help="as it was trained")
    parser.add_argument("--extra", nargs="*", default=[], metavar="folder:DIR")
    parser.add_argument("--cache", type=Path, required=True, help="of the features")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    tensors, metadata = weights.load(args.checkpoint)
    sources, pictures = gather("pascal", args.data, args.splits, args.fold, args.extra)
    config = CONFIGS["lite"]
    training = TrainingSet(sources, pictures, config, config.side, args.cache)
    coarse = CoarseMasks(training)
    own = coarse.weight, coarse.bias  # learned again from the same pictures: the checkpoint's, to rounding
    for learned, kept in zip(own, (tensors[f"{EVERYDAY}weight"], tensors[f"{EVERYDAY}bias"]), strict=True):
        torch.testing.assert_close(learned, kept.float(), atol=1e-2, rtol=1e-2)
    measured = calibrate(training, coarse, config, PICTURES)
    print(measured)
    write_whole(args.out, save(tensors, {"imrseg": json.dumps({**metadata, **measured})}))


if __name__ == "__main__":
    main()
