"""Masks as COCO's JSON, which annotation tools and training code read (cocodataset.org/#format-data).

Run lengths are exact; polygons follow the mask's edge within a pixel, and fill its holes, for which COCO's
have no place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as rle

from imrseg import __version__

TOLERANCE = 0.5  # pixels that a polygon may leave the edge by; less than half a pixel's diagonal, so none vanishes
SEGMENTATIONS = ("rle", "polygons")


@dataclass(frozen=True)
class Shape:
    """What one label's mask is in COCO's terms. Pixel (0, 0) covers x and y from 0 to 1.

    Attributes:
        label: the category's name.
        score: probability in [0, 1] that the label is there, or None.
        rle: {"size": [height, width], "counts": compressed run lengths, column by column}.
        polygons: [x0, y0, x1, y1, ...] of the outline of each connected part.
        area: pixels inside the mask.
        bbox: x, y, width and height of the box around it.
    """

    label: str
    score: float | None
    rle: dict[str, Any]
    polygons: list[list[float]]
    area: int
    bbox: list[float]


def shape(mask: np.ndarray, label: str, score: float | None = None) -> Shape:
    """The bool (H, W) mask of ``label``."""
    coded = rle.encode(np.asfortranarray(mask, np.uint8))
    text = {"size": [int(n) for n in coded["size"]], "counts": coded["counts"].decode("ascii")}
    return Shape(label, score, text, outlines(mask), int(rle.area(coded)), rle.toBbox(coded).tolist())


def outlines(mask: np.ndarray) -> list[list[float]]:
    """A polygon around each connected part of a bool (H, W) mask, holes filled: [x0, y0, x1, y1, ...].

    OpenCV's contours go through the middle of pixels, COCO's around them. So contours are drawn on the
    grid of the pixels' corners, of which each pixel inside sets its four.
    """
    corners = cv2.dilate(np.pad(mask.astype(np.uint8), ((0, 1), (0, 1))), np.ones((2, 2), np.uint8))
    contours, _ = cv2.findContours(corners, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [cv2.approxPolyDP(c, TOLERANCE, closed=True).ravel().tolist() for c in contours]


def dataset(images: Sequence[tuple[str, tuple[int, int], Sequence[Shape]]], segmentation: str) -> dict[str, Any]:
    """COCO's JSON for a set of pictures.

    Args:
        images: (file name, (height, width), what was found in it) of each picture.
        segmentation: "rle" or "polygons"; an annotation of COCO's holds one of them.

    Returns:
        One image for each picture, one category for each label, and an annotation for each mask that is
        not empty. ``iscrowd`` is 0 everywhere: evaluation skips what has 1.
    """
    labels = list(dict.fromkeys(s.label for _, _, shapes in images for s in shapes))
    number = {label: i for i, label in enumerate(labels, 1)}
    annotations: list[dict[str, Any]] = []
    for image, (_, _, shapes) in enumerate(images, 1):
        for s in (s for s in shapes if s.area):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": number[s.label],
                    "segmentation": s.rle if segmentation == "rle" else s.polygons,
                    "area": s.area,
                    "bbox": s.bbox,
                    "iscrowd": 0,
                }
                | ({} if s.score is None else {"score": s.score})
            )
    return {
        "info": {"description": "Masks found by imrseg", "version": __version__},
        "licenses": [],
        "images": [
            {"id": i, "file_name": name, "width": width, "height": height}
            for i, (name, (height, width), _) in enumerate(images, 1)
        ],
        "categories": [{"id": i, "name": label, "supercategory": ""} for label, i in number.items()],
        "annotations": annotations,
    }
