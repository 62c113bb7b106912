"""Masks made visible: overlays, heat maps, outlines, cut-outs, and the panel of all steps side by side.

Pure functions of NumPy arrays. ``pixels`` is always uint8 (H, W, 3) RGB and ``mask`` float (H, W) in
[0, 1] or bool, at the same size; what comes back is a new uint8 (H, W, 3) RGB picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from imrseg.images import to_size
from imrseg.postprocess import iou
from imrseg.run import Step

ACCENT = (41, 121, 255)  # the object, in every view: a blue that photographs seldom hold
EDGE = (255, 255, 255)
GAINED, LOST = (0, 200, 120), (235, 60, 60)  # between two steps
TINT = 0.36  # share of the accent inside the object
DIM = 0.5  # brightness outside it
CHECKER = ((255, 255, 255), (226, 229, 234))


def overlay(pixels: np.ndarray, mask: np.ndarray, cut: float = 0.5) -> np.ndarray:
    """The object tinted and outlined, the rest dimmed. ``cut``: the level at which the mask is cut."""
    inside, (tinted, dimmed) = _inside(pixels, mask, cut), _shades()
    picture = cv2.LUT(pixels, dimmed)
    cv2.copyTo(cv2.LUT(pixels, tinted), inside.view(np.uint8), picture)
    return _draw_edge(picture, inside)


def outline(pixels: np.ndarray, mask: np.ndarray, cut: float = 0.5) -> np.ndarray:
    """The photograph as it is, with the object's edge drawn."""
    return _draw_edge(pixels.copy(), _inside(pixels, mask, cut))


def cutout(pixels: np.ndarray, mask: np.ndarray, cut: float = 0.5) -> np.ndarray:
    """The object alone, on the chequers that stand for transparency."""
    h, w = pixels.shape[:2]
    square = max(4, round(max(h, w) / 36))
    rows, columns = np.arange(h)[:, None] // square, np.arange(w)[None] // square
    chequers = np.asarray(CHECKER, np.uint8)[(rows + columns) % 2]
    return np.where(_inside(pixels, mask, cut)[..., None], pixels, chequers)


def heatmap(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The soft mask in colour, dark blue for 0 to red for 1, over the greyed photograph."""
    soft = _fitting(pixels, mask).astype(np.float32).clip(0, 1)  # of a mask of 0 and 255, too
    colours = cv2.applyColorMap((soft * 255).round().astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    grey = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(grey, 0.4, np.ascontiguousarray(colours), 0.6, 0)


def difference(pixels: np.ndarray, before: np.ndarray, after: np.ndarray, cuts: tuple[float, float]) -> np.ndarray:
    """What a step added and took away, over the greyed photograph; what stayed keeps its colours.

    ``before`` and ``after`` are masks, ``cuts`` the levels at which each is cut.
    """
    old, new = _inside(pixels, before, cuts[0]), _inside(pixels, after, cuts[1])
    grey = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    picture = np.where((old & new)[..., None], pixels, cv2.convertScaleAbs(grey, alpha=DIM))
    for place, colour in ((new & ~old, GAINED), (old & ~new, LOST)):
        mixed = cv2.addWeighted(grey, 0.35, np.full_like(pixels, colour), 0.65, 0)
        picture = np.where(place[..., None], mixed, picture)
    return _draw_edge(picture, new)


def panel(
    query_pixels: np.ndarray,
    support_pixels: Sequence[np.ndarray],
    steps: Sequence[Step],
    threshold: float,
    label: str,
    cell: int = 300,
) -> np.ndarray:
    """All steps side by side: the query's row on top, a row for each support below.

    Columns are the pictures as they came, the coarse masks, then step 1, 2, ... Under each mask stands
    the share that it covers and its intersection over union with the step before.

    Args:
        query_pixels: uint8 (H, W, 3), any size.
        support_pixels: the same for each support; [] is zero-shot.
        steps: at least one; ``steps[0]`` holds the coarse masks.
        threshold: in [0, 1], where the masks are cut (``Step.cut``).
        label: drawn as the title.
        cell: width of one picture in the panel, in pixels.

    Returns:
        uint8 (H', W', 3) RGB.
    """
    pad, line = round(cell * 0.07), round(cell * 0.075)
    small, large = _font(round(line * 0.68)), _font(round(line * 1.15))
    pictures = [_thumbnail(p, cell, round(cell * 1.2)) for p in (query_pixels, *support_pixels)]
    names = ["Query", *(f"Support {k + 1}" if len(support_pixels) > 1 else "Support" for k in range(len(support_pixels)))]  # fmt: skip
    heads = ["Picture", *("Coarse" if s.index == 0 else f"Step {s.index}" for s in steps)]

    width = pad + (cell + pad) * len(heads)
    top = pad + round(line * 1.6) + line + pad // 2
    heights = [p.shape[0] for p in pictures]
    page = Image.new("RGB", (width, top + sum(heights) + (round(line * 1.2) + pad // 2) * len(pictures) + pad), "white")
    draw = ImageDraw.Draw(page)
    draw.text((pad, pad), f"“{label}”", (20, 24, 32), large)
    for column, head in enumerate(heads):
        draw.text((pad + column * (cell + pad), top - line - pad // 4), head, (70, 78, 92), small)

    y = top
    for row, (picture, name) in enumerate(zip(pictures, names, strict=True)):
        before: np.ndarray | None = None
        for column in range(len(heads)):
            x = pad + column * (cell + pad) + (cell - picture.shape[1]) // 2
            shown, words = picture, name
            if column > 0:
                step = steps[column - 1]
                soft = soft_mask(step, row - 1, picture.shape[:2])
                inside = soft >= step.cut(threshold)
                shown, words = overlay(picture, inside), describe(inside, before)
                before = inside
            page.paste(Image.fromarray(shown), (x, y), _rounded(shown.shape[:2], max(2, cell // 40)))
            draw.text((pad + column * (cell + pad), y + heights[row] + line // 4), words, (70, 78, 92), small)
        y += heights[row] + round(line * 1.2) + pad // 2
    return np.asarray(page)


def soft_mask(step: Step, support: int, size: tuple[int, int]) -> np.ndarray:
    """A step's soft mask, float32 (H, W) in [0, 1] at ``size``: of support 0, 1, ..., or of the query for -1."""
    return step.query_at(size) if support < 0 else to_size(step.support_soft[support], size)


def describe(inside: np.ndarray, before: np.ndarray | None) -> str:
    """What stands under a mask: the covered share, and its agreement with the step before."""
    words = f"covers {percent(float(inside.mean()))}"
    return words if before is None else f"{words}, IoU {iou(inside, before):.2f}"


def percent(share: float) -> str:
    """0.243 as "24 %", with one decimal where it is below 10 %."""
    digits = 0 if share >= 0.0995 or share == 0 else 1
    return f"{share * 100:.{digits}f} %"


def _fitting(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    if mask.shape != pixels.shape[:2]:
        raise ValueError(f"The mask is {mask.shape}, the picture {pixels.shape[:2]}: they must be of one size.")
    return mask


def _inside(pixels: np.ndarray, mask: np.ndarray, cut: float) -> np.ndarray:
    mask = _fitting(pixels, mask)
    return mask if mask.dtype == bool else mask >= cut


@cache
def _shades() -> tuple[np.ndarray, np.ndarray]:
    """What each brightness becomes in each channel, uint8 (256, 1, 3): inside the object, and outside."""
    levels = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, 2)
    tinted = cv2.addWeighted(levels, 1 - TINT, np.full_like(levels, ACCENT), TINT, 0)
    return tinted, cv2.convertScaleAbs(levels, alpha=DIM)


def _draw_edge(picture: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Draw the edge of ``inside`` into ``picture``: a line of the accent, in a wider white one to stand out."""
    thin = max(1, round(max(inside.shape) / 360))
    # An object that runs out of the picture goes on in a border around it, so that no line follows the frame.
    border = 2 * thin + 2
    framed = np.pad(inside.astype(np.uint8), border, mode="edge")
    contours, _ = cv2.findContours(framed, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    picture = np.ascontiguousarray(picture)
    for colour, thickness in ((EDGE, thin * 2 + 1), (ACCENT, thin)):
        cv2.drawContours(picture, contours, -1, colour, thickness, cv2.LINE_AA, offset=(-border, -border))
    return picture


def _thumbnail(pixels: np.ndarray, width: int, tallest: int) -> np.ndarray:
    h, w = pixels.shape[:2]
    scale = min(width / w, tallest / h)
    size = max(1, round(w * scale)), max(1, round(h * scale))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def _rounded(size: tuple[int, int], radius: int) -> Image.Image:
    """An opacity mask with round corners, drawn at four times its size for smooth edges."""
    h, w = size
    mask = Image.new("L", (w * 4, h * 4))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, w * 4 - 1, h * 4 - 1), radius * 4, fill=255)
    return mask.resize((w, h), Image.Resampling.BOX)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
