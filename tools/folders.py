"""Data sets laid out as ``class/images`` and ``class/masks``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def put(out: Path, name: str, image: Path, mask: np.ndarray) -> None:
    """Add a picture, by a link, and its mask, bool (H, W), to the class ``name``; an earlier one is replaced."""
    for kind in ("images", "masks"):
        (out / name / kind).mkdir(parents=True, exist_ok=True)
    link = out / name / "images" / image.name
    link.unlink(missing_ok=True)
    link.symlink_to(image.resolve())
    Image.fromarray(mask.astype(np.uint8) * 255).save(out / name / "masks" / f"{image.stem}.png")
