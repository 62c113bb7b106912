"""``train`` against a plain loop: the same episodes, network and losses, in turns.

    python benchmarks/training.py --data DATA --splits DATA/splits/pascal --json benchmarks/results/training-cpu.json

The plain loop is what one writes first: it decodes the pictures of each episode, runs the frozen backbone over them,
and computes in float32, one thing after the other. ``train`` maps features from disk, which were made once, prepares
the next batch while it computes, and multiplies in bfloat16.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import machine, seconds, write
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from imrseg.data.benchmarks import gather
from imrseg.models.efficientnet import EfficientNetLite
from imrseg.segmenter import pick_device
from imrseg.training.config import get_config
from imrseg.training.data import Batch, Loaded, Look, TrainingSet, make_batch
from imrseg.training.loop import Forward, backward, batches
from imrseg.training.starts import CoarseMasks
from imrseg.training.trainees import new_trainee


class Plain:
    """Coarse masks of pictures, through the backbone, whose features take the pictures' place."""

    def __init__(self, coarse: CoarseMasks, device: torch.device) -> None:
        self.coarse, self.device = coarse, device
        self.backbone = EfficientNetLite().to(device)

    @torch.no_grad()
    def masks(self, looks: Sequence[Look], loaded: Loaded) -> Tensor:
        features = self.backbone(loaded.pop("picture").float().to(self.device))
        loaded.update({name: each.cpu() for name, each in features.items()})
        return self.coarse.masks(looks, loaded)


class Loop:
    """A network in training, and the batches that it is given."""

    def __init__(self, config: Any, coming: Iterator[Batch], device: torch.device) -> None:
        self.config, self.coming, self.waited = config, coming, 0.0
        trainee = new_trainee(config, device)
        self.model = Forward(trainee, config, device).train()
        self.optimizer = torch.optim.AdamW(trainee.refiner.parameters(), config.learning_rate)

    def __call__(self) -> None:
        start = time.perf_counter()
        batch = next(self.coming)
        self.waited += time.perf_counter() - start
        self.optimizer.zero_grad()
        backward(self.model, batch, self.config)
        self.optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--splits", type=Path, required=True)
    parser.add_argument("--extra", nargs="*", default=[], metavar="folder:DIR", help="a further data set")
    parser.add_argument("--cache", type=Path, help="where features are kept")
    parser.add_argument("--config", default="lite", help="one of lite's")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--iterations", type=int, default=10, help="timed, of each loop; two more warm up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    config = get_config(args.config, iterations=args.iterations + 2)
    with tempfile.TemporaryDirectory() as folder:
        cache = args.cache or Path(folder)
        sources, pictures = gather("pascal", args.data, args.splits, "1", args.extra)
        training = TrainingSet(sources, pictures, config, config.side, cache)
        coarse = CoarseMasks(training)
        exact = replace(config, precision="float32")
        live = TrainingSet(sources, pictures, exact, config.side, None)
        plain = Plain(coarse, device)
        coming = (make_batch(live, plain, exact, i) for i in itertools.count())
        loops = Loop(exact, coming, device), Loop(config, batches(training, coarse, config, 0), device)
        times: list[list[float]] = [[], []]
        for i in range(args.iterations + 2):
            for loop, taken in zip(loops, times, strict=True):
                took = seconds(loop)
                if i >= 2:
                    taken.append(took)
                else:
                    loop.waited = 0.0
    result = {
        **machine(device),
        "config": args.config,
        "iterations": args.iterations,
        "plain_seconds": median(times[0]),
        "train_seconds": median(times[1]),
        "ratio": median(a / b for a, b in zip(*times, strict=True)),
        "plain_share_loading": loops[0].waited / sum(times[0]),
        "train_share_waiting": loops[1].waited / sum(times[1]),
    }
    write(result, args.json)


if __name__ == "__main__":
    main()
