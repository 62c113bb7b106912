"""``python -m imrseg bench``: how long a user waits, from two photographs on disk to a mask on disk."""

from __future__ import annotations

import os
import platform
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch

from imrseg.export import encode_mask
from imrseg.images import remembered
from imrseg.segmenter import Segmenter
from imrseg.timing import Clock

SIZE = (3000, 4000)  # height, width of the pictures: 12 megapixels, a telephone's
RUNS = 7


def bench(
    preset: str = "lite",
    device: str = "auto",
    precision: str = "float32",
    launch: str = "eager",
    side: int | None = None,
    runs: int = RUNS,
) -> dict[str, Any]:
    """Time a preset with one support and the preset's own number of steps; arguments as for ``Segmenter.from_preset``.

    Every run reads two 12-megapixel JPEGs, having forgotten all that it knew of them, and writes the last
    query mask as PNG. The models are warm: they have run twice before.

    Returns:
        Medians over ``runs``, in seconds: ``"seconds"`` by stage and their ``"total"``;
        ``"new_label_seconds"``: the same with pictures and features remembered; ``"load_seconds"``:
        making the segmenter. And what was measured on.

    Raises:
        InputError: unknown preset, device, precision, launch or side.
        WeightsError: weights that are missing or do not fit.
    """
    clock = Clock()
    segmenter = Segmenter.from_preset(preset, device, precision=precision, launch=launch, side=side)
    load = clock.lap()
    with tempfile.TemporaryDirectory() as folder:
        query, support = Path(folder, "query.jpg"), Path(folder, "support.jpg")
        for seed, path in enumerate((query, support)):
            cv2.imwrite(str(path), photograph(SIZE, seed))

        def run(label: str, known: bool) -> dict[str, float]:
            if not known:
                segmenter.forget()
                remembered.clear()
            clock = Clock()
            result = segmenter.segment(query, [support], label)
            found = clock.lap()
            (query.parent / "mask.png").write_bytes(encode_mask(result.mask))
            output = clock.lap()
            return {**result.seconds, "output": output, "total": found + output}

        cold = [run("cat", known=False) for _ in range(2 + runs)][2:]
        known = [run(label, known=True) for label in ["cat", "dog", "horse"] * (1 + runs // 3)][1:]
        megabytes = query.stat().st_size / 1e6
    return {
        "preset": preset,
        "steps": segmenter.preset.steps,
        "precision": segmenter.precision,
        "launch": launch,
        "lite_side": segmenter.network.side,
        "device": str(segmenter.device),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "pictures": {"size": {"width": SIZE[1], "height": SIZE[0]}, "megabytes": round(megabytes, 2)},
        "runs": runs,
        "seconds": {stage: median(r[stage] for r in cold) for stage in cold[0]},
        "new_label_seconds": median(r["total"] for r in known),
        "load_seconds": load,
    }


def photograph(size: tuple[int, int], seed: int) -> np.ndarray:
    """A drawn picture, uint8 (H, W, 3), with the statistics of a photograph.

    Colour amplitudes fall as 1/f, as in natural scenes, and a sensor's grain lies on top, so that it
    makes a JPEG of a photograph's size and takes a photograph's time to decode.
    """
    rng = np.random.default_rng(seed)
    h, w = size[0] // 4, size[1] // 4
    frequency = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None])
    frequency[0, 0] = np.inf
    noise = rng.standard_normal((3, h, w))
    scene = np.fft.irfft2(np.fft.rfft2(noise) / frequency, (h, w)).transpose(1, 2, 0)
    scene = cv2.resize(128 + 48 * (scene / scene.std()).astype(np.float32), size[::-1], interpolation=cv2.INTER_CUBIC)
    scene += rng.normal(0, 3, (*size, 1)).astype(np.float32)
    return np.clip(scene, 0, 255).astype(np.uint8)


def table(measured: dict[str, Any]) -> str:
    """``bench``'s result for the terminal."""
    width, height = measured["pictures"]["size"].values()
    seen = f" seen at {measured['lite_side']}" if measured["lite_side"] else ""
    lines = [
        f"{measured['preset']} in {measured['precision']}, {measured['steps']} steps, one support, two JPEGs of {width} x {height} pixels{seen}",
        f"{measured['device']}, {measured['threads']} of {measured['cores']} cores, torch {measured['torch']};"
        f" median of {measured['runs']} warm runs",
        *(f"  {stage:<10}{seconds:8.3f} s" for stage, seconds in measured["seconds"].items()),
        f"  another label on the same pictures: {measured['new_label_seconds']:.3f} s",
        f"  loading the preset: {measured['load_seconds']:.1f} s",
    ]
    return "\n".join(lines)
