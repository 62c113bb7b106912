"""Make pictures of everyday things, as ``class/images`` and ``class/masks``, for ``train --extra``.

    apt-get install tuxpaint-stamps-default
    python -m tools.msrc_to_folder --data MSRC --out msrc
    python -m tools.stamps_to_folder --stamps /usr/share/tuxpaint/stamps --backgrounds msrc/trn --out stamps

PASCAL's lists hold cats and dogs by the hundred and hardly anything of what lies on a table. Tux Paint's stamps are
photographs of single things that come cut out: one to three of them, of all sizes, are pasted into a picture of
MSRC, over one another and over its edges, some of them mirrored, brighter or darker, some pictures out of focus. Stamps
and backgrounds that show a class of the cross-fold (``HELD_OUT``) stay out, so that its networks may see these pictures.
``docs/results.md`` has what training on them is worth; the shipped checkpoint has not seen them.
"""

from __future__ import annotations

import argparse
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from imrseg import weights
from imrseg.coarse.lexicon import EVERYDAY, LEXICON, Lexicon
from imrseg.images import open_picture, stretch
from tools.everyday_objects import Stamp, stamps

HELD_OUT = {"cat", "cow", "bull", "dog", "horse", "sheep", "ram", "goat"}
SIDE = 384  # pixels of a picture
LONGER = (0.2, 1.1)  # of a stamp's sides, as a share of the picture's; all scales alike
MOST = 3  # stamps on a picture
OUTSIDE = 0.2  # share of a stamp's sides that may lie beyond the picture's edge
SMALLEST = 0.006  # share of the picture that a label's mask covers


def plain(folders: list[Path]) -> list[Path]:
    """The pictures in folders of classes that do not lie under a class of ``HELD_OUT``."""
    files = {f.name: f for folder in folders for f in sorted(folder.glob("*/images/*"))}
    held = {f.name for folder in folders for name in HELD_OUT for f in (folder / name / "images").glob("*")}
    return [file for name, file in sorted(files.items()) if name not in held]


def paste(picture: np.ndarray, stamp: Stamp, rng: np.random.Generator) -> np.ndarray:
    """Set a stamp somewhere on ``picture`` (SIDE, SIDE, 3); returns where it covers it, bool (SIDE, SIDE)."""
    image = stamp.image[:, ::-1] if rng.random() < 0.5 else stamp.image
    scale = SIDE * np.exp(rng.uniform(*np.log(LONGER))) / max(image.shape[:2])
    size = [max(2, int(scale * n)) for n in image.shape[1::-1]]
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    image = cv2.resize(np.ascontiguousarray(image), size, interpolation=how).astype(np.float32)
    light = image[..., :3] * rng.uniform(0.75, 1.2) + rng.uniform(-12, 12, 3)
    h, w = image.shape[:2]
    beyond = [int(OUTSIDE * n) for n in (h, w)]
    y, x = (int(rng.integers(-b, SIDE - n + b + 1)) for n, b in zip((h, w), beyond, strict=True))
    whole = np.zeros((SIDE + 2 * h, SIDE + 2 * w, 4), np.float32)
    whole[h + y : 2 * h + y, w + x : 2 * w + x] = np.dstack([light.clip(0, 255), image[..., 3:] / 255])
    seen = whole[h : h + SIDE, w : w + SIDE]
    picture[:] = (seen[..., 3:] * seen[..., :3] + (1 - seen[..., 3:]) * picture).round()
    return seen[..., 3] > 0.5


def pictures(found: list[Stamp], behind: list[Path], count: int) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """``count`` pictures (SIDE, SIDE, 3) in RGB, always the same, and what each shows: label and mask, bool."""
    rng = np.random.default_rng(0)
    order: list[int] = []
    for _ in range(count):
        picture = stretch(open_picture(behind[rng.integers(len(behind))]).pixels, SIDE).copy()
        masks: dict[str, np.ndarray] = {}
        for _ in range(rng.integers(1, MOST + 1)):
            order = order or rng.permutation(len(found)).tolist()
            stamp = found[order.pop()]
            covered = paste(picture, stamp, rng)
            masks = {label: mask & ~covered for label, mask in masks.items()}
            masks[stamp.label] = masks.get(stamp.label, False) | covered
        if rng.random() < 0.3:
            picture = cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.4, 1.2)))
        yield picture, {label: mask for label, mask in masks.items() if mask.mean() >= SMALLEST}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stamps", type=Path, required=True)
    parser.add_argument("--backgrounds", type=Path, nargs="+", required=True, help="folders of classes")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=300)
    args = parser.parse_args()

    found = stamps(args.stamps, Lexicon(weights.find(LEXICON)))
    # Everyday classes are learned from image-level labels, and backgrounds show more of them than is pasted.
    found = [stamp for stamp in found if not {*HELD_OUT, *EVERYDAY} & {*stamp.label.split()}]
    behind = plain(args.backgrounds)
    if not found or not behind:
        raise SystemExit(f"{len(found)} stamps and {len(behind)} backgrounds were found; both are needed.")
    seen: Counter[str] = Counter()
    for i, (picture, masks) in enumerate(
        tqdm(pictures(found, behind, args.pictures), total=args.pictures, mininterval=1)
    ):
        for label, mask in masks.items():
            seen[label] += 1
            for kind in ("images", "masks"):
                (args.out / label / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(args.out / label / "images" / f"{i:05d}.jpg", quality=92)
            Image.fromarray(mask.astype(np.uint8) * 255).save(args.out / label / "masks" / f"{i:05d}.png")
    for label in (label for label, count in seen.items() if count == 1):  # an episode needs two
        shutil.rmtree(args.out / label)


if __name__ == "__main__":
    main()
