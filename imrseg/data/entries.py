"""Data sets as flat lists: each entry is a picture, its mask and one class that it shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from imrseg.errors import InputError

IGNORE = 255

PASCAL = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
PASCAL_FOLDS = 4
SPELLED_OUT = {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor"}


def spelled_out(name: str) -> str:
    """A class's name in its data set as a person would type it."""
    return SPELLED_OUT.get(name, name.replace("_", " "))


@dataclass(frozen=True)
class Entry:
    """A picture and one class that it shows.

    Attributes:
        image, mask: files.
        name: the class's name in its data set.
        value: the mask's value for the class; None where the mask holds this class alone, non-zero
            = object, without an ignore label.
    """

    image: Path
    mask: Path
    name: str
    value: int | None = None

    @property
    def label(self) -> str:
        """The class as a person would type it."""
        return spelled_out(self.name)

    def target(self) -> np.ndarray:
        """uint8 (H, W): 1 object, 0 background, 255 ignore."""
        with Image.open(self.mask) as image:
            mask = np.asarray(image)
        if mask.ndim == 3:
            mask = mask.max(-1)
        if self.value is None:
            return (mask > 0).astype(np.uint8)
        return np.where(mask == IGNORE, IGNORE, mask == self.value).astype(np.uint8)


def pascal(data: Path, splits: Path, part: str, folds: Iterable[int]) -> list[Entry]:
    """PASCAL-5i entries in the order of the fold lists ``splits/part/foldK.txt`` (HSNet's format).

    Args:
        data: folder that holds ``VOC2012/``.
        part: "trn" or "val".

    Raises:
        InputError: a list or files that it names are missing; the message names up to five.
    """
    root = data / "VOC2012"
    entries = []
    for fold in folds:
        file = splits / part / f"fold{fold}.txt"
        if not file.is_file():
            raise InputError(f"The fold list {file} is missing. Expected lines such as 2008_000008__13.")
        for line in file.read_text().split():
            image, _, number = line.partition("__")
            if not number.isdigit() or not 1 <= int(number) <= len(PASCAL):
                raise InputError(f"{file} has a line “{line}”. Expected lines such as 2008_000008__13.")
            entries.append(
                Entry(
                    root / "JPEGImages" / f"{image}.jpg",
                    root / "SegmentationClassAug" / f"{image}.png",
                    PASCAL[int(number) - 1],
                    int(number),
                )
            )
    return _existing(entries)


def folder(root: Path) -> list[Entry]:
    """A plain folder, ``root/class/images`` and ``root/class/masks``, matched by stem.

    Raises:
        InputError: no class folder, or pictures without a mask; the message names up to five.
    """
    entries = []
    for home in sorted(p for p in root.glob("*") if (p / "images").is_dir()):
        masks = {p.stem: p for p in sorted((home / "masks").glob("*"))}
        for image in sorted((home / "images").glob("*")):
            entries.append(Entry(image, masks.get(image.stem, home / "masks" / f"{image.stem}.png"), home.name))
    if not entries:
        raise InputError(f"{root} holds no pictures. Expected {root}/class/images and {root}/class/masks.")
    return _existing(entries)


def _existing(entries: list[Entry]) -> list[Entry]:
    missing = sorted({str(p) for e in entries for p in (e.image, e.mask) if not p.is_file()})
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise InputError(f"Files are missing: {', '.join(missing[:5])}{more}.")
    return entries


def by_class(entries: Iterable[Entry]) -> dict[str, list[int]]:
    """Positions of the entries of each class."""
    out = defaultdict(list)
    for i, entry in enumerate(entries):
        out[entry.name].append(i)
    return dict(out)


def episodes(entries: list[Entry], shots: int, count: int, seed: int) -> tuple[list[tuple[int, list[int]]], list[str]]:
    """Seeded episodes for evaluation.

    Episode i queries entry i mod n; its supports are drawn without replacement from the other
    entries of the class. Classes with too few entries are left out.

    Returns:
        (position of the query, positions of the supports) per episode, and the classes left out.
    """
    members = by_class(entries)
    skipped = sorted(name for name, positions in members.items() if len(positions) < shots + 1)
    usable = [i for i, entry in enumerate(entries) if entry.name not in skipped]
    if not usable:
        raise InputError(f"No class has the {shots + 1} pictures that {shots} support(s) and a query need.")
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        query = usable[i % len(usable)]
        others = [j for j in members[entries[query].name] if j != query]
        out.append((query, [others[k] for k in rng.choice(len(others), shots, replace=False)]))
    return out, skipped
