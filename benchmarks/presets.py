"""What a preset takes: stages, throughput, memory, and how the time grows.

    python benchmarks/presets.py --json benchmarks/results/presets-cpu.json
    python benchmarks/presets.py --preset imr-hsnet-resnet50 --device cuda --precision float16 --json gpu.json

Every run reads JPEG files and writes the query's last mask as PNG. A preset whose weights are not on this machine
gets drawn ones, and lite's coarse masks in place of CLIP's: as fast, but meaningless; the result says so.
``report.py`` makes tables and a plot.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch
from measure import machine, peak_memory, seconds, spread, write

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from safetensors.torch import save_file

from imrseg import Segmenter, images
from imrseg.bench import SIZE, photograph
from imrseg.errors import WeightsError
from imrseg.export import encode_mask
from imrseg.models import IMRHSNet, IMRPFENet
from imrseg.presets import get_preset, list_presets
from imrseg.weights import find

LABELS = ("cat", "dog", "horse", "cow", "sheep", "bird", "car", "bicycle")
MEGAPIXELS = {0.3: (480, 640), 1.2: (960, 1280), 12: SIZE, 48: (6000, 8000)}  # height, width
STEPS = range(1, 6)
SHOTS = (0, 1, 2, 5)
MANY = (1, 2, 4)  # labels, queries


@dataclass(frozen=True)
class Job:
    """One call as a user makes it: files in, the masks of the last step out, as PNG."""

    segmenter: Segmenter
    steps: int

    def __call__(
        self, queries: list[Path], supports: list[Path], labels: tuple[str, ...] = LABELS[:1]
    ) -> dict[str, float]:
        taken: dict[str, float] = {}
        for query in queries:
            for label in labels:
                result = self.segmenter.segment(query, supports, label, self.steps)
                taken = result.seconds | {"output": seconds(lambda: encode_mask(result.mask))}  # noqa: B023
        return taken

    def forget(self) -> None:
        """Pictures and features that were remembered."""
        images.remembered.clear()
        self.segmenter.forget()


def load(preset: str, device: str, precision: str) -> tuple[Segmenter, bool]:
    """The preset, and whether its weights were drawn."""
    known = get_preset(preset)
    try:
        find(known.checkpoint)
        return Segmenter.from_preset(preset, device, precision=precision), False
    except WeightsError:
        torch.manual_seed(0)
        net = (IMRHSNet if known.network == "imr-hsnet" else IMRPFENet)(known.backbone)
        header = {"imrseg": json.dumps({"network": {"name": known.network, **net.settings}})}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, known.checkpoint)
            save_file(net.state_dict(), path, header)
            return Segmenter.from_preset(preset, device, path, coarse="lite", precision=precision), True


def stages(job: Job, query: Path, support: Path, runs: int) -> dict[str, Any]:
    """p50 and p95 of each stage and of all, from files never seen, and for another label on files just seen."""
    new, again = [], []
    for run in range(1 + runs):
        job.forget()
        taken: dict[str, float] = {}
        total = seconds(lambda: taken.update(job([query], [support])))  # noqa: B023
        label = LABELS[1 + run % (len(LABELS) - 1)]
        other = seconds(lambda: job([query], [support], (label,)))  # noqa: B023
        if run:  # the first warms up
            new.append(taken | {"total": total})
            again.append(other)
    return {
        "seconds": {stage: spread([r[stage] for r in new]) for stage in new[0]},
        "new_label_seconds": spread(again),
    }


def growth(job: Job, folder: Path, runs: int) -> dict[str, dict[str, float]]:
    """Median seconds of a call on files never seen, as one of its sizes grows."""

    def median(call: Callable[[], Any]) -> float:
        times = []
        for _ in range(runs):
            job.forget()
            times.append(seconds(call))
        return spread(times)["p50"]

    def file(number: int, size: tuple[int, int] = MEGAPIXELS[1.2]) -> Path:
        path = folder / f"{size[1]}x{size[0]}-{number}.jpg"
        if not path.is_file():
            cv2.imwrite(str(path), photograph(size, number))
        return path

    files = [file(i) for i in range(1 + max(SHOTS))]
    large = {mp: [file(number, size) for number in range(2)] for mp, size in MEGAPIXELS.items()}
    query, supports = files[0], files[1:]
    job([query], supports[:1])
    return {
        "steps": {str(n): median(lambda: Job(job.segmenter, n)([query], supports[:1])) for n in STEPS},  # noqa: B023
        "shots": {str(k): median(lambda: job([query], supports[:k])) for k in SHOTS},  # noqa: B023
        "labels": {str(n): median(lambda: job([query], supports[:1], LABELS[:n])) for n in MANY},  # noqa: B023
        "queries": {str(n): median(lambda: job(supports[:n], [query])) for n in MANY},  # noqa: B023
        "megapixels": {str(mp): median(lambda: job(pair[:1], pair[1:])) for mp, pair in large.items()},  # noqa: B023
    }


def memory(args: argparse.Namespace, preset: str) -> dict[str, int]:
    """Bytes that one call adds at its peak, in a process of its own."""
    command = [sys.executable, __file__, "--preset", preset, "--device", args.device, "--precision", args.precision,
               "--threads", str(args.threads), "--only-memory"]  # fmt: skip
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def one_call(job: Job) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{i}.jpg") for i in range(2)]
        for i, path in enumerate(files):
            cv2.imwrite(str(path), photograph(SIZE, i))
        out = {"memory_bytes": peak_memory(lambda: job(files[:1], files[1:]))}
    if job.segmenter.device.type == "cuda":
        out["gpu_bytes"] = torch.cuda.max_memory_allocated(job.segmenter.device)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", nargs="+", default=list_presets())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only-memory", action="store_true", help="print the bytes that one call needs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.only_memory:
        segmenter = load(args.preset[0], args.device, args.precision)[0]
        print(json.dumps(one_call(Job(segmenter, segmenter.preset.steps))))
        return
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        pictures = [Path(folder, f"{name}.jpg") for name in ("query", "support")]
        for seed, path in enumerate(pictures):
            cv2.imwrite(str(path), photograph(SIZE, seed))
        for preset in args.preset:
            print(preset, file=sys.stderr, flush=True)
            segmenter, drawn = load(preset, args.device, args.precision)
            job = Job(segmenter, segmenter.preset.steps)
            found[preset] = {
                "weights": "drawn" if drawn else "shipped",
                "coarse": segmenter.masker.name,
                "steps": job.steps,
                **stages(job, *pictures, args.runs),
                "growth": growth(job, Path(folder), max(1, args.runs // 3)),
                **memory(args, preset),
            }
    write(
        {**machine(segmenter.device), "precision": segmenter.precision, "runs": args.runs, "presets": found}, args.json
    )


if __name__ == "__main__":
    main()
