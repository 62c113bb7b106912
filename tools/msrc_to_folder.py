"""Lay MSRC v2 out as ``class/images`` and ``class/masks``, for ``train --extra`` and ``evaluate``.

    python -m tools.msrc_to_folder --data MSRC --out msrc

``MSRC/images/*.jpg``, ``MSRC/masks/*.png`` (index = line of ``MSRC/classes.txt``, 255 = void). A class
is in a picture where it covers half a percent of it. The unlabelled seam around an object (void) goes
to the object up to 4 pixels wide, since a plain folder has no ignore label. Every fifth picture goes to ``OUT/val``, the
rest to ``OUT/trn``. ``person`` joins face and body; horse and mountain have too few pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from tools.folders import put

LEFT_OUT = {"horse", "mountain", "body"}
HELD_OUT_EVERY = 5
SMALLEST = 0.005
SEAM = np.ones((9, 9), np.uint8)
VOID = 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    numbers = {}
    for line in (args.data / "classes.txt").read_text().splitlines():
        number, name = line.split()
        numbers[name] = [int(number)]
    numbers["person"] = numbers["face"] + numbers["body"]

    for i, path in enumerate(tqdm(sorted((args.data / "images").glob("*.jpg")))):
        mask = np.asarray(Image.open(args.data / "masks" / f"{path.stem}.png"))
        part = args.out / ("val" if i % HELD_OUT_EVERY == 0 else "trn")
        for name, values in numbers.items():
            shown = np.isin(mask, values)
            if name in LEFT_OUT or shown.mean() < SMALLEST:
                continue
            grown = cv2.dilate(shown.astype(np.uint8), SEAM) > 0
            shown = shown | (grown & (mask == VOID))
            put(part, name, path, shown)


if __name__ == "__main__":
    main()
