"""Lay pictures of COCO out as ``class/images`` and ``class/masks``, for ``evaluate --benchmark folder``.

    python -m tools.coco_to_folder --annotations instances_val2017.json --images val2017 --out coco

Any sample of COCO will do: pictures that the annotations know and the folder lacks are passed by. A class is in a picture
where its instances, crowds apart, cover two percent of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from imrseg.data.coco import Annotations

SMALLEST = 0.02


def lay_out(annotations: Path, images: Path, out: Path) -> int:
    """How many masks were written.

    Raises:
        InputError: the annotations are not COCO's.
    """
    known, written = Annotations(annotations), 0
    for image in tqdm(sorted(images.glob("*.jpg")), mininterval=1):
        picture = known.find(image.name)
        if picture is None:
            continue
        for number, name in enumerate(known.names):
            shown = known.target(picture, number) == 1
            if shown.mean() < SMALLEST:
                continue
            for kind in ("images", "masks"):
                (out / name / kind).mkdir(parents=True, exist_ok=True)
            link = out / name / "images" / image.name
            link.unlink(missing_ok=True)
            link.symlink_to(image.resolve())
            Image.fromarray(shown.astype(np.uint8) * 255).save(out / name / "masks" / f"{image.stem}.png")
            written += 1
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    print(f"{lay_out(args.annotations, args.images, args.out)} masks")


if __name__ == "__main__":
    main()
