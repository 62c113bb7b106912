"""Backbone features of a training set, made once and kept on disk.

The backbone is frozen, so its features of every picture, and of a crop of it, are computed once
and mapped from disk in float16; an epoch then costs only the refiner.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from imrseg.errors import InputError
from imrseg.images import open_picture, stretch
from imrseg.locks import alone
from imrseg.models.efficientnet import BACKBONE, EFFICIENTNET_LITE2, EfficientNetLite

BATCH = 8
STRIDE = {
    "s4": 4,
    "s8": 8,
    "s16a": 16,
    "s16b": 16,
    "s16c": 16,
    "s16d": 16,
    "s32a": 32,
    "s32b": 32,
    "s32c": 32,
    "head": 32,
}
CHANNELS = {**EFFICIENTNET_LITE2, "head": 1280}


class View:
    """One look at every picture: the whole, or a random crop with changed colours.

    Args:
        images: the pictures, in the order of the rows.
        index: 0 for the whole pictures; 1, 2, ... for crops drawn with this seed.
        side: of the square that the backbone sees.
    """

    def __init__(self, images: list[Path], index: int, side: int) -> None:
        self.images, self.index, self.side = images, index, side

    def crop(self, array: np.ndarray, row: int) -> np.ndarray:
        """The part of a picture or mask (H, W, ...) that this view shows."""
        if self.index == 0:
            return array
        h, w = array.shape[:2]
        top, left, bottom, right = self._box(row)
        y, x = int(top * h), int(left * w)
        return array[y : max(y + 1, int(bottom * h)), x : max(x + 1, int(right * w))]

    def _box(self, row: int) -> tuple[float, float, float, float]:
        rng = np.random.default_rng([self.index, row])
        size, shape = rng.uniform(0.55, 1.0), np.exp(rng.uniform(-0.2, 0.2))
        h, w = min(1.0, size * shape), min(1.0, size / shape)
        top, left = rng.uniform(0, 1 - h), rng.uniform(0, 1 - w)
        return top, left, top + h, left + w

    def pixels(self, row: int) -> np.ndarray:
        """What the view shows of a picture, stretched to uint8 (side, side, 3)."""
        pixels = self.crop(open_picture(self.images[row]).pixels, row)
        if self.index > 0:
            rng = np.random.default_rng([self.index, row, 1])
            x = pixels.astype(np.float32) * rng.uniform(0.7, 1.3) + rng.uniform(-20, 20)
            grey = x.mean(2, keepdims=True)
            x = (grey + (x - grey) * rng.uniform(0.5, 1.4)) * rng.uniform(0.93, 1.07, 3)
            if rng.random() < 0.2:
                x = cv2.GaussianBlur(x, (0, 0), rng.uniform(0.5, 1.5))
            pixels = x.clip(0, 255).astype(np.uint8)
        return stretch(pixels, self.side)


class CachedView(View):
    """A view whose features are made once and then read from disk.

    Args:
        folder: where the features are kept; made on first use, found again by backbone and by names, folders and sizes
            of the files of ``images``, wherever these folders are. Of several processes one makes them.

    Raises:
        InputError: the disk has no room for them.
    """

    def __init__(self, images: list[Path], index: int, side: int, folder: Path) -> None:
        super().__init__(images, index, side)
        files = "\n".join(f"{path.parent.name}/{path.name}\t{path.stat().st_size}" for path in images)
        digest = hashlib.sha256(files.encode(errors="surrogateescape")).hexdigest()[:12]
        self.folder = folder / f"{BACKBONE}-{digest}-{side}-view{index}"
        if not (self.folder / "complete").is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            with alone(self.folder / ".lock", f"Another process makes the features in {self.folder}; waiting for it."):
                if not (self.folder / "complete").is_file():
                    self._make()
        self._maps = {name: np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in CHANNELS}

    def features(self, row: int, flip: bool) -> dict[str, Tensor]:
        """Features (C, h, w), float32, of one picture; ``flip`` mirrors them left to right."""
        out = {name: torch.from_numpy(m[row].astype(np.float32)) for name, m in self._maps.items()}
        return {name: t.flip(-1) for name, t in out.items()} if flip else out

    @property
    def heads(self) -> np.ndarray:
        """The last feature maps of all pictures, float16 (N, 1280, h, w)."""
        return self._maps["head"]

    def pooled(self, row: int) -> np.ndarray:
        """The last feature map's spatial mean, float32 (1280,)."""
        return self.heads[row].astype(np.float32).mean((1, 2))

    def _make(self) -> None:
        for left in self.folder.glob("*.npy"):  # by a making that was broken off
            left.unlink()
        count = len(self.images)
        shapes = {name: (count, channels, *[self.side // STRIDE[name]] * 2) for name, channels in CHANNELS.items()}
        need, free = sum(2 * math.prod(shape) for shape in shapes.values()), shutil.disk_usage(self.folder).free
        if need > free:  # writing to a mapped file on a full disk would kill the process
            raise InputError(
                f"Features of {count} pictures take {need / 1e9:.1f} GB in {self.folder}, where {free / 1e9:.1f} GB"
                " are free. Make room, or name another folder with --cache."
            )
        maps = {
            name: np.lib.format.open_memmap(self.folder / f"{name}.npy", "w+", np.float16, shape)
            for name, shape in shapes.items()
        }
        backbone = EfficientNetLite()
        for start in tqdm(range(0, count, BATCH), desc=f"features, view {self.index}", mininterval=1.0):
            rows = range(start, min(start + BATCH, count))
            batch = torch.from_numpy(np.stack([self.pixels(row) for row in rows])).permute(0, 3, 1, 2).float()
            with torch.inference_mode():
                for name, t in backbone(batch).items():
                    maps[name][start : start + len(rows)] = t.half().numpy()
        for m in maps.values():
            m.flush()
        (self.folder / "complete").touch()
