"""A run as papers and talks show it: a figure of all steps, an animation of them, several labels in colours.

``pictures`` are uint8 (h, w, 3) RGB of any size, the query first, then the supports; ``steps`` as in
``Result``; masks are cut at ``threshold`` (``Step.cut``).
"""

from __future__ import annotations

import colorsys
import io
import textwrap
import threading
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from imrseg.run import Step
from imrseg.visualize import DIM, EDGE, _thumbnail, overlay, soft_mask

# The figure is laid out in pixels of its PNG.
DPI = 300
CELL, GAP, LEFT = 420, 18, 60  # a picture's width, between two, and left of all
LINE = 48  # height of a line of text
LETTER = 0.6  # mean width of a letter, as a share of its height
STYLE = {
    "font.family": ["DejaVu Sans", "sans-serif"],  # the first is Matplotlib's own, the same on every machine
    "font.size": 8,
    "pdf.fonttype": 42,  # whole fonts, which publishers ask for
    "svg.fonttype": "none",  # text that stays text
    "svg.hashsalt": "imrseg",
}
# No dates: the same run gives the same bytes.
METADATA: dict[str, dict[str, str | None]] = {
    "png": {"Software": "imrseg"},
    "pdf": {"Creator": "imrseg", "Producer": "Matplotlib", "CreationDate": None},
    "svg": {"Creator": "imrseg", "Date": None},
}
_STYLES = threading.Lock()  # Matplotlib's style belongs to the whole process

WIDTH = 900  # pixels of an animation, at most
COLUMNS = 4
WIDEST = 440  # of one picture in it
PAUSE, REST = 900, 2700  # milliseconds that a step is shown, and the last


def figure(
    pictures: Sequence[np.ndarray],
    steps: Sequence[Step],
    threshold: float,
    label: str,
    kinds: Sequence[str] = ("png", "pdf", "svg"),
) -> dict[str, bytes]:
    """All steps side by side, as a file of each of ``kinds``.

    A row for the query and for each support; columns are the pictures as they came, the coarse masks,
    then step 1, 2, ... Lettering is text in PDF and SVG, and a label is never read as formulas or markup.
    May be called from several threads.
    """
    import matplotlib.style  # half a second, which nobody shall wait for before they ask for a figure
    from matplotlib.figure import Figure

    rows = [[picture, *cells] for picture, *cells in _cells(pictures, steps, threshold, CELL)]
    heads = ["Input", *(name(step) for step in steps)]
    width = LEFT + len(heads) * (CELL + GAP)
    title = textwrap.wrap(f"“{plain(label)}”", int(width / (8 / 72 * DPI * LETTER)))
    top = GAP + LINE * (len(title) + 1)
    height = top + sum(row[0].shape[0] + GAP for row in rows)
    with _STYLES, matplotlib.style.context(["default", STYLE]):
        page = Figure((width / DPI, height / DPI))

        def write(x: float, y: float, words: str, **how: Any) -> None:
            page.text(x / width, 1 - y / height, words, parse_math=False, **how)

        write(LEFT, GAP, "\n".join(title), va="top")
        for column, head in enumerate(heads):
            write(LEFT + column * (CELL + GAP) + CELL / 2, top - LINE / 3, head, ha="center")
        y = top
        for row, who in zip(rows, names(len(pictures)), strict=True):
            h, w = row[0].shape[:2]
            write(LEFT / 2, y + h / 2, who, ha="center", va="center", rotation="vertical")
            for column, cell in enumerate(row):
                x = LEFT + column * (CELL + GAP) + (CELL - w) // 2
                axes = page.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))
                axes.imshow(cell, aspect="auto")
                axes.axis("off")
            y += h + GAP
        files = {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # a box stands for what the font has not
            for kind in kinds:
                file = io.BytesIO()
                page.savefig(file, format=kind, dpi=DPI, metadata=METADATA[kind])
                files[kind] = file.getvalue()
    return files


def animation(
    pictures: Sequence[np.ndarray],
    steps: Sequence[Step],
    threshold: float,
    label: str,
    kinds: Sequence[str] = ("gif", "webp"),
) -> dict[str, bytes]:
    """One frame for each step, the last shown longest, over and over, as a file of each of ``kinds``.

    Query and supports stand side by side, four in a row; frames are at most 900 pixels wide.
    """
    columns = min(len(pictures), COLUMNS)
    gap, line = 12, 26
    cell = min(WIDEST, (WIDTH - gap) // columns - gap)
    large, small = font(17), font(13)
    width = max(gap + columns * (cell + gap), WIDEST)
    cells = _cells(pictures, steps, threshold, cell)
    shelves = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    heights = [max(row[0].shape[0] for row in shelf) for shelf in shelves]
    size = (width, gap + line + sum(heights) + (line + gap) * len(shelves))
    frames = []
    for index, step in enumerate(steps, 1):
        frame = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(frame)
        stage = name(step) if step.index == 0 else f"{name(step)} of {len(steps) - 1}"
        room = width - 3 * gap - large.getlength(stage)
        draw.text((width - gap, gap), stage, (70, 78, 92), large, anchor="ra")
        draw.text((gap, gap), shortened(f"“{plain(label)}”", large, room), (20, 24, 32), large)
        y, who = gap + line, iter(names(len(pictures)))
        for shelf, high in zip(shelves, heights, strict=True):
            for column, row in enumerate(shelf):
                x = gap + column * (cell + gap)
                h, w = row[index].shape[:2]
                frame.paste(Image.fromarray(row[index]), (x + (cell - w) // 2, y))
                draw.text((x + cell // 2, y + h + 4), next(who), (70, 78, 92), small, anchor="ma")
            y += high + line + gap
        frames.append(frame)
    pauses = [PAUSE] * (len(frames) - 1) + [REST]
    files = {}
    for kind in kinds:
        images, file = _indexed(frames) if kind == "gif" else frames, io.BytesIO()
        images[0].save(file, kind, save_all=True, append_images=images[1:], duration=pauses, loop=0, quality=85)
        files[kind] = file.getvalue()
    return files


def labelled(pixels: np.ndarray, index: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Several labels in one picture, each in its colour, with a legend below.

    Args:
        pixels: uint8 (H, W, 3) RGB.
        index: uint8 (H, W), 0 where there is nothing and k where the k-th of ``labels`` is.

    Returns:
        uint8 (H', W, 3) RGB, higher than ``pixels`` by the legend.
    """
    h, w = index.shape
    colours = palette(len(labels))
    tinted = cv2.addWeighted(pixels, 0.5, colours[index], 0.5, 0)
    picture = np.where(index[..., None] > 0, tinted, cv2.convertScaleAbs(pixels, alpha=DIM))
    thin = max(1, round(max(h, w) / 500))
    for k in range(1, len(labels) + 1):
        contours, _ = cv2.findContours((index == k).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, contours, -1, EDGE, thin, cv2.LINE_AA)

    size = max(12, round(w / 45))
    letters, line, gap = font(size), round(size * 1.6), size // 2
    placed, x, y = [], gap, gap
    for k, label in enumerate(labels, 1):
        words = shortened(plain(label), letters, w - 3 * gap - size)
        wide = size + gap + letters.getlength(words)
        if x > gap and x + wide + gap > w:
            x, y = gap, y + line
        placed.append((x, y, k, words))
        x += round(wide) + 2 * gap
    page = Image.new("RGB", (w, h + y + line), "white")
    page.paste(Image.fromarray(picture))
    draw = ImageDraw.Draw(page)
    for x, y, k, words in placed:
        draw.rectangle((x, h + y, x + size, h + y + size), tuple(colours[k].tolist()))
        draw.text((x + size + gap, h + y + size / 2), words, (20, 24, 32), letters, anchor="lm")
    return np.asarray(page)


def palette(labels: int) -> np.ndarray:
    """Colours that are easy to tell apart, uint8 (labels + 1, 3) RGB: black for nothing, then one for each label."""
    golden = (5**0.5 - 1) / 2  # of the circle of hues: every new one falls into a wide gap between those before
    hues = [(0.6 + k * golden) % 1 for k in range(labels)]
    colours = [colorsys.hsv_to_rgb(hue, (0.85, 0.6)[k % 2], 1) for k, hue in enumerate(hues)]
    return (np.asarray([(0, 0, 0), *colours]) * 255).round().astype(np.uint8)


def name(step: Step) -> str:
    return f"Step {step.index}" if step.index else "Coarse"


def names(pictures: int) -> list[str]:
    """Of the query and the supports."""
    return ["Query", "Support"] if pictures == 2 else ["Query", *(f"Support {k}" for k in range(1, pictures))]


def plain(words: str) -> str:
    """On one line, and without what no font can show: control characters and broken ones."""
    return " ".join("".join(c if c.isprintable() else " " for c in words).split())


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which Matplotlib brings along; ``size`` in pixels."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def shortened(words: str, letters: ImageFont.FreeTypeFont, room: float) -> str:
    """``words``, or their beginning where they are wider than ``room`` pixels."""
    if letters.getlength(words) <= room:
        return words
    return next(part for n in range(len(words), -1, -1) if letters.getlength(part := words[:n] + "…") <= room or not n)


def _indexed(frames: Sequence[Image.Image]) -> list[Image.Image]:
    """The frames in 256 colours that all share, so that nothing flickers."""
    small = [np.asarray(frame.reduce(3)) for frame in frames]
    colours = Image.fromarray(np.concatenate(small)).quantize(256)
    return [frame.quantize(palette=colours) for frame in frames]


def _cells(
    pictures: Sequence[np.ndarray], steps: Sequence[Step], threshold: float, width: int
) -> list[list[np.ndarray]]:
    """For each picture: itself, then with each step's mask laid over; at most ``width`` wide, 1.2 times as high."""
    rows = []
    for number, pixels in enumerate(pictures):
        picture = _thumbnail(pixels, width, round(width * 1.2))
        masks = [soft_mask(step, number - 1, picture.shape[:2]) >= step.cut(threshold) for step in steps]
        rows.append([picture, *(overlay(picture, mask) for mask in masks)])
    return rows
