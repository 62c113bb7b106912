"""Data sets as flat lists: each entry is a picture, its mask and one class that it shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from imrseg.errors import InputError

IGNORE = 255
COLOURS = "Masks hold colours, not the numbers of classes"
UNREADABLE = (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError)  # PIL raises them

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
        value: the mask's value for the class; None where the mask holds this class alone, without an
            ignore label.
        above: where the mask holds the class alone: the object is what is brighter than this, and not transparent.
    """

    image: Path
    mask: Path
    name: str
    value: int | None = None
    above: int = 0

    @property
    def label(self) -> str:
        """The class as a person would type it."""
        return spelled_out(self.name)

    def target(self) -> np.ndarray:
        """uint8 (H, W): 1 object, 0 background, 255 ignore.

        Raises:
            InputError: the mask cannot be read.
        """
        try:
            with Image.open(self.mask) as image:
                mask = np.asarray(image) if self.value is not None else brightness(image)
        except UNREADABLE as error:
            raise InputError(f"The mask {self.mask} cannot be read ({error}).") from None
        if self.value is None:
            return (mask > self.above).astype(np.uint8)
        return np.where(mask == IGNORE, IGNORE, mask == self.value).astype(np.uint8)

    def shows(self, value: int) -> bool:
        """Whether the mask has the class of that value, too. Not of a mask that holds one class alone."""
        return self.value is not None and bool((replace(self, value=value).target() == 1).any())

    def mask_size(self) -> tuple[int, int]:
        """(height, width) of the mask, without reading all of it.

        Raises:
            InputError: it holds colours where it should hold the numbers of classes.
        """
        with Image.open(self.mask) as image:
            if self.value is not None and len(image.getbands()) > 1:
                raise InputError(COLOURS)
            return image.height, image.width


def brightness(image: Image.Image) -> np.ndarray:
    """How bright each pixel is (H, W), 0 where it is transparent; of a drawing in black on nothing how opaque."""
    if not image.has_transparency_data:
        if len(image.getbands()) == 1 and image.mode != "P":
            return np.asarray(image.convert("L") if image.mode == "1" else image)
        bright = np.asarray(image.convert("RGB")).max(-1)
        return np.asarray(image) if image.mode == "P" and not bright.any() else bright  # numbers without colours
    rgba = np.asarray(image.convert("RGBA"))
    bright, opaque = rgba[..., :3].max(-1), rgba[..., 3]
    if not opaque.any():
        return bright
    if not bright[opaque > 0].any():  # then its shape, if any, is in what is opaque
        bright = np.where(opaque > opaque.min(), opaque, 0)
    return np.where(opaque > 0, bright, 0)


def by_class(entries: Iterable[Entry]) -> dict[str, list[int]]:
    """Positions of the entries of each class."""
    out = defaultdict(list)
    for i, entry in enumerate(entries):
        out[entry.name].append(i)
    return dict(out)


def episodes(
    entries: list[Entry], shots: int, count: int, seed: int, uniform: bool = False
) -> tuple[list[tuple[int, list[int]]], list[str]]:
    """Seeded episodes for evaluation.

    Episode i queries entry i mod n; where ``uniform``, an entry of a class that is drawn with the same
    chance as all others. Its supports are drawn without replacement from the other entries of the class.
    Classes with too few entries are left out.

    Returns:
        (position of the query, positions of the supports) per episode, and the classes left out.

    Raises:
        InputError: no class has enough entries.
    """
    members = by_class(entries)
    skipped = sorted(name for name, positions in members.items() if len(positions) < shots + 1)
    usable = [i for i, entry in enumerate(entries) if entry.name not in skipped]
    if not usable:
        raise InputError(f"No class has the {shots + 1} pictures that {shots} support(s) and a query need.")
    names = sorted(members.keys() - set(skipped))
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        query = int(rng.choice(members[str(rng.choice(names))])) if uniform else usable[i % len(usable)]
        others = [j for j in members[entries[query].name] if j != query]
        out.append((query, [others[k] for k in rng.choice(len(others), shots, replace=False)]))
    return out, skipped
