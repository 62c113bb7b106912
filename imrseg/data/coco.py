"""COCO's own instance annotations as masks of one class, by pycocotools."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from imrseg.data.entries import IGNORE, Entry
from imrseg.errors import InputError, install

SMALLEST = 2 * 32 * 32  # pixels of a class without which a picture is not listed (PFENet's rule, Tian et al. 2020)


class Annotations:
    """What ``instances_train2014.json`` or ``instances_val2014.json`` says.

    Attributes:
        names: of the classes, in the order of their category ids: COCO-20i's numbers 0 to 79.

    Raises:
        InputError: the file is missing or is not COCO's, or pycocotools is not installed.
    """

    def __init__(self, file: Path) -> None:
        try:
            from pycocotools import mask
            from pycocotools.coco import COCO
        except ImportError:
            raise InputError(f"COCO's annotations are read by pycocotools: {install('train')}.") from None
        if not file.is_file():
            raise InputError(f"COCO's annotations {file} are missing. Expected annotations_trainval2014.zip, unpacked.")
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress there
                self._coco: Any = COCO(str(file))
            categories = sorted(self._coco.cats.values(), key=lambda category: category["id"])
            if not categories or not self._coco.imgs:
                raise ValueError("it names no categories or no pictures")
            self.names = tuple(str(category["name"]) for category in categories)
            self._ids = [category["id"] for category in categories]
            self._pictures = {picture["file_name"]: key for key, picture in self._coco.imgs.items()}
            for one in self._coco.anns.values():
                self._check(one)
        except (AssertionError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{file} does not hold COCO's instance annotations ({str(error) or type(error).__name__})."
            ) from None
        self._rle = mask

    def _check(self, one: Mapping[str, Any]) -> None:
        """Raises ValueError where an annotation lacks what is read of it: pycocotools fails in its own ways."""
        outline, size = one.get("segmentation"), None
        try:
            size = self.size(one["image_id"])
            numbers = (*size, one["area"], one["iscrowd"])
            whole = one["category_id"] in self._coco.cats and all(isinstance(n, (int, float)) for n in numbers)
        except (KeyError, TypeError):
            whole = False
        if isinstance(outline, dict):
            fits = tuple(outline.get("size", ())) == size and _is_runs(outline.get("counts"), size)
        else:
            fits = isinstance(outline, list) and bool(outline) and all(_is_polygon(part) for part in outline)
        if not (whole and fits):
            raise ValueError(
                f"annotation {one.get('id')} needs a known image_id and category_id, area, iscrowd, its picture's"
                " width and height, and a segmentation of polygons or of that size"
            )

    def find(self, file_name: str) -> int | None:
        """The id of a picture, None where there is none of that file name."""
        return self._pictures.get(file_name)

    def size(self, picture: int) -> tuple[int, int]:
        """(height, width)."""
        return self._coco.imgs[picture]["height"], self._coco.imgs[picture]["width"]

    def target(self, picture: int, number: int) -> np.ndarray:
        """uint8 (H, W): 1 on every instance of class ``number``, 0 background.

        255 where a crowd of the class is outlined and none of its instances: as in COCO's own evaluation,
        what is found there counts neither way.
        """
        out = np.zeros(self.size(picture), np.uint8)
        found = self._coco.imgToAnns[picture]
        for one in sorted(found, key=lambda annotation: -annotation["iscrowd"]):
            if one["category_id"] == self._ids[number]:
                out[self._rle.decode(self._coco.annToRLE(one)) > 0] = IGNORE if one["iscrowd"] else 1
        return out

    def listed(self) -> dict[int, list[str]]:
        """File names by class number: pictures in which the class's instances have ``SMALLEST`` pixels or more."""
        areas: dict[tuple[int, int], float] = {}
        number = {key: i for i, key in enumerate(self._ids)}
        for one in self._coco.anns.values():
            if not one["iscrowd"]:
                key = number[one["category_id"]], one["image_id"]
                areas[key] = areas.get(key, 0.0) + one["area"]
        lists: dict[int, list[str]] = {i: [] for i in range(len(self.names))}
        for (i, picture), area in areas.items():
            if area >= SMALLEST:
                lists[i].append(self._coco.imgs[picture]["file_name"])
        return {i: sorted(files) for i, files in lists.items()}


def _is_polygon(part: object) -> bool:
    return isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 and all(map(_is_number, part))


def _is_runs(counts: object, size: tuple[int, int] | None) -> bool:
    """Whether run lengths make up a picture of that size; compressed ones are taken as they are."""
    if not isinstance(counts, list):
        return isinstance(counts, str)
    whole = all(isinstance(n, int) and n >= 0 for n in counts)
    return whole and size is not None and sum(counts) == size[0] * size[1]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and isfinite(value)


@functools.lru_cache(maxsize=2)
def read(file: Path) -> Annotations:
    """The annotations in ``file``, read once: that takes half a minute."""
    return Annotations(file)


@dataclass(frozen=True, kw_only=True)
class CocoEntry(Entry):
    """An entry whose mask is drawn from annotations; ``mask`` is their file, ``value`` the class's number."""

    annotations: Annotations = field(repr=False, compare=False)
    picture: int

    def target(self) -> np.ndarray:
        assert self.value is not None
        return self.annotations.target(self.picture, self.value)

    def shows(self, value: int) -> bool:
        """Whether instances of the class of that number are outlined, or a crowd of them."""
        return bool(self.annotations.target(self.picture, value).any())

    def mask_size(self) -> tuple[int, int]:
        return self.annotations.size(self.picture)
