"""Lay pictures of COCO out as ``class/images`` and ``class/masks``, for ``evaluate --benchmark folder``.

    python -m tools.coco_to_folder --annotations instances_val2017.json --images val2017 --out coco

Any sample of COCO will do: pictures that the annotations know and the folder lacks are passed by. A class is in a picture
where its instances, crowds apart, cover two percent of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from imrseg.data.coco import Annotations
from tools.folders import put

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
            put(out, name, image, shown)
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
