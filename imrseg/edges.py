"""Masks that follow the picture's own edges: beyond the paper, whose conclusion leaves it open.

Guided filter: He, Sun, Tang, "Guided image filtering", TPAMI 2013, with a colour guide (equations 19 to
21). GrabCut: Rother, Kolmogorov, Blake, SIGGRAPH 2004, begun from the soft mask in place of a box.
The constants were chosen on PASCAL ``trn`` pictures with ``lite``'s masks.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from imrseg.images import to_size

EDGES = ("guided", "grabcut")

SIDES = {"guided": 320, "grabcut": 200}  # longer side at which masks are fitted; more scores the same and takes longer
RADIUS = 0.15  # of the filter's window, in roots of the object's area; larger ones eat small objects
EPSILON = 1e-4  # variance, of colours in 0..1, that counts as an edge
SURE_OBJECT = 0.6  # way from the level up to 1 beyond which GrabCut may not take a pixel away
SURE_BACKGROUND = 0.2  # share of the level under which it may not add one
ROUNDS = 1  # of GrabCut; a second one scores the same


def clean(soft: np.ndarray, pixels: np.ndarray, how: str, level: float = 0.5) -> np.ndarray:
    """Fit a soft mask to the edges of its picture.

    A mask whose object, the cut at ``level``, is empty or everything is only resized. So is one that
    would lose its whole object, and for GrabCut one that is nowhere sure of it. The result is a
    function of the arguments: OpenCV's random generator is seeded.

    Args:
        soft: (h, w) in [0, 1], of any size; it covers the whole picture.
        pixels: uint8 (H, W, 3) RGB.
        how: "guided" or "grabcut".
        level: at which the mask is cut, before and after.

    Returns:
        float32 in [0, 1] of the picture's aspect, at most ``SIDES[how]`` on the longer side. After GrabCut
        the old values are squeezed, those in the new object into ``level`` to 1 and the others into
        0 to ``level``: another cut still means more or less of what the mask was sure of.
    """
    small = _small(pixels, SIDES[how])
    soft = to_size(soft, small.shape[:2])
    inside = soft >= level
    if inside.all() or not inside.any():
        return soft
    if how == "guided":
        radius = max(1, round(RADIUS * math.sqrt(np.count_nonzero(inside))))
        out = _guided(soft, small.astype(np.float32) / 255, radius)
    else:
        out = _grabcut(soft, small, level)
    return out if (out >= level).any() else soft


def _small(pixels: np.ndarray, side: int) -> np.ndarray:
    h, w = pixels.shape[:2]
    scale = side / max(h, w)
    if scale >= 1:
        return pixels
    size = max(1, round(w * scale)), max(1, round(h * scale))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def _guided(soft: np.ndarray, guide: np.ndarray, radius: int) -> np.ndarray:
    """The filter's output (h, w): in each window the mask is a linear function of the guide's colour.

    Args:
        soft: float32 (h, w).
        guide: float32 (h, w, 3) in [0, 1].
        radius: of the square windows, in pixels.
    """

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(values, -1, (2 * radius + 1, 2 * radius + 1), borderType=cv2.BORDER_REFLECT)

    colour, average = mean(guide), mean(soft)
    within = np.stack([mean(guide * guide[..., k : k + 1]) for k in range(3)], -1)
    covariance = within - colour[..., None] * colour[..., None, :] + EPSILON * np.eye(3, dtype=np.float32)
    along = mean(guide * soft[..., None]) - colour * average[..., None]
    slope = np.linalg.solve(covariance, along[..., None])[..., 0]
    offset = average - (slope * colour).sum(-1)
    return np.clip((mean(slope) * guide).sum(-1) + mean(offset), 0, 1)


def _grabcut(soft: np.ndarray, pixels: np.ndarray, level: float) -> np.ndarray:
    """The mask (h, w) moved above ``level`` where GrabCut sees the object, by colours and edges, else below."""
    sure = soft >= level + SURE_OBJECT * (1 - level)
    if not sure.any():
        return soft
    marks = np.where(soft >= level, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    marks[sure] = cv2.GC_FGD
    marks[soft < SURE_BACKGROUND * level] = cv2.GC_BGD
    models = np.zeros((2, 1, 65))
    cv2.setRNGSeed(0)
    cv2.grabCut(pixels, marks, (0, 0, 1, 1), models[0], models[1], ROUNDS, cv2.GC_INIT_WITH_MASK)
    found = (marks == cv2.GC_FGD) | (marks == cv2.GC_PR_FGD)
    return np.where(found, level + (1 - level) * soft, level * soft).astype(np.float32)
