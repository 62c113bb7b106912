"""From a click to the region that was meant: pixels joined to it along alike colours."""

from __future__ import annotations

import cv2
import numpy as np

from imrseg.errors import InputError

SIDE = 96  # cells on the longer side of the grid that a region grows on; the network's masks have 80
REACH = 0.5  # of a region: way plus change of colour
DAB = 0.06  # longer side of a painted mark that counts as a click, in longer sides of the picture
DOT = 0.015  # radius of what is marked in any case


def grow(pixels: np.ndarray, y: int, x: int, value: int) -> np.ndarray:
    """Marks for ``Run.correct`` from one click.

    A cell is marked where some way to the click is shorter than ``REACH``. The length of a way is the
    number of its cells, in longer sides of the picture, plus every change of colour on it (CIE L*a*b*,
    in hundredths of the units): a geodesic distance as in Bai and Sapiro, "Geodesic matting", IJCV
    2009, without their colour models. The constants were chosen on PASCAL ``trn`` pictures of classes
    that the network had not seen.

    Args:
        pixels: uint8 (H, W, 3) RGB.
        y, x: the pixel that was clicked.
        value: 1 "this is it", -1 "this is not".

    Returns:
        int8 (H, W), ``value`` in the region and 0 elsewhere.

    Raises:
        InputError: the click is outside the picture, or another value.
    """
    h, w = pixels.shape[:2]
    if not (0 <= y < h and 0 <= x < w):
        raise InputError(f"The click at row {y}, column {x} is outside the picture of {h} rows and {w} columns.")
    if value not in (1, -1):
        raise InputError(f"A click says 1, this is it, or -1, this is not; it cannot say {value!r}.")
    scale = SIDE / max(h, w)
    rows, columns = max(1, round(h * scale)), max(1, round(w * scale))
    small = cv2.resize(np.ascontiguousarray(pixels), (columns, rows), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) / 100
    down = 1 / SIDE + np.linalg.norm(np.diff(lab, axis=0), axis=-1)
    right = 1 / SIDE + np.linalg.norm(np.diff(lab, axis=1), axis=-1)
    far = np.full((rows, columns), np.inf, np.float32)
    far[y * rows // h, x * columns // w] = 0
    for _ in range(round(REACH * SIDE)):  # no way within reach has more cells
        np.minimum(far[1:], far[:-1] + down, out=far[1:])
        np.minimum(far[:-1], far[1:] + down, out=far[:-1])
        np.minimum(far[:, 1:], far[:, :-1] + right, out=far[:, 1:])
        np.minimum(far[:, :-1], far[:, 1:] + right, out=far[:, :-1])
    inside = cv2.resize((far < REACH).astype(np.uint8), (w, h), interpolation=cv2.INTER_NEAREST)
    cv2.circle(inside, (x, y), round(DOT * max(h, w)), 1, -1)
    return inside.astype(np.int8) * np.int8(value)


def grow_dabs(marks: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Painted marks, each dab of the brush grown like a click; longer strokes stay as they were painted.

    Args:
        marks: int8 (h, w) of 1, -1 and 0, over the whole picture.
        pixels: uint8 (H, W, 3) RGB.

    Returns:
        int8 (H, W).
    """
    h, w = pixels.shape[:2]
    marks = cv2.resize(marks, (w, h), interpolation=cv2.INTER_NEAREST)
    out = np.zeros_like(marks)
    for value in (1, -1):
        _, _, boxes, centres = cv2.connectedComponentsWithStats((marks == value).astype(np.uint8))
        for box, (x, y) in zip(boxes[1:], centres[1:], strict=True):
            if max(box[cv2.CC_STAT_WIDTH], box[cv2.CC_STAT_HEIGHT]) <= DAB * max(h, w):
                grown = grow(pixels, round(y), round(x), value)
                out = np.where(out == 0, grown, out)
    return np.where(marks != 0, marks, out)
