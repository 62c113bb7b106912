"""What a scene looks like: its pictures in the chosen view, and the HTML around them."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import cv2
import numpy as np
from gradio.processing_utils import hash_bytes
from gradio.utils import get_upload_folder

from imrseg.app.sessions import Cell, Finding, Scene
from imrseg.postprocess import iou
from imrseg.run import UNLIKELY
from imrseg.visualize import cutout, describe, difference, heatmap, outline, overlay, percent

THUMB = 180  # pixels across, in the filmstrip
QUALITY = 80  # of JPEGs


def step_name(step: int) -> str:
    return "coarse" if step == 0 else f"step {step}"


def draw(scene: Scene, finding: Finding, step: int, picture: int, view: str, threshold: float) -> np.ndarray:
    """One picture at one step, in the chosen view: uint8 (h, w, 3)."""
    pixels, soft = scene.pictures[picture], scene.soft(finding, step, picture)
    if view == "Heat map":
        return heatmap(pixels, soft)
    if view == "Difference" and step > 0:
        cuts = finding.step(step - 1).cut(threshold), finding.step(step).cut(threshold)
        return difference(pixels, scene.soft(finding, step - 1, picture), soft, cuts)
    how: Callable[..., np.ndarray] = {"Outline": outline, "Cut-out": cutout}.get(view, overlay)
    return how(pixels, soft, finding.step(step).cut(threshold))


def caption(scene: Scene, finding: Finding, step: int, picture: int, threshold: float) -> str:
    before = scene.inside(finding, step - 1, picture, threshold) if step > 0 else None
    return describe(scene.inside(finding, step, picture, threshold), before)


def note(scene: Scene, finding: Finding, step: int, picture: int, threshold: float) -> str:
    """HTML under a picture: its name, the covered share, the change."""
    words = caption(scene, finding, step, picture, threshold)
    change = f" with {'the coarse mask' if step == 1 else f'step {step - 1}'}" if step > 0 else ""
    if picture == 0 and scene.truth is not None:
        words += f", true IoU {iou(scene.inside(finding, step, 0, threshold), scene.truth):.2f}"
    return f'<div class="words"><b>{words}{change}</b><span>{html.escape(scene.paths[picture].name)}</span></div>'


def filmstrip(
    scene: Scene, finding: Finding, view: str, threshold: float, shown: int, drawn: Mapping[int, np.ndarray]
) -> str:
    """HTML: one button for each step so far, the query above the support.

    Args:
        drawn: by picture, those of the strip as they look at step ``shown``.
    """

    def make(step: int, picture: int) -> str:
        pixels = drawn[picture] if step == shown else draw(scene, finding, step, picture, view, threshold)
        words = caption(scene, finding, step, picture, threshold) + (" with before" if step else "")
        return f'<img src="{data_uri(pixels, THUMB)}" alt=""><span>{words}</span>'

    columns = []
    for step in range(len(finding.steps)):
        cells = "".join(
            scene.remembered(Cell(finding.label, step, row, view, threshold, scene.used), partial(make, step, row))
            for row in drawn
        )
        columns.append(
            f'<button type="button" data-step="{step}"><b>{step_name(step).capitalize()}</b>{cells}</button>'
        )
    return f'<div class="strip">{"".join(columns)}</div>'


def progress(words: str, share: float) -> str:
    """HTML while a run goes on; ``share`` of it is done."""
    return f'<p>{html.escape(words)}</p><div class="bar"><div style="width: {share:.0%}"></div></div>'


def problem(words: str) -> str:
    """HTML where a run could not be made."""
    return f'<p class="problem" role="alert">{html.escape(words)}</p>'


def status(scene: Scene, finding: Finding, threshold: float) -> str:
    """HTML after a run: how sure it is, the time, and the warnings."""
    covered = scene.inside(finding, len(finding.steps) - 1, 0, threshold)
    warnings = finding.verdict(float(covered.mean()))
    seconds = sum(step.seconds for step in finding.steps)
    steps = len(finding.steps) - 1
    count = "coarse mask only" if steps == 0 else f"{steps} step{'s' * (steps > 1)}"
    items = "".join(f'<p class="warning">{html.escape(warning)}</p>' for warning in warnings)
    return f"<p>{confidence_words(finding)} <span>{count} in {seconds:.2f} s</span></p>{items}"


def confidence_words(finding: Finding) -> str:
    """HTML: whether the label is in the query at all."""
    label = f"<b>“{html.escape(finding.label)}”</b>"
    if finding.confidence is None:
        return f"{label} was looked for."
    sure = f"<span>confidence {percent(finding.confidence).replace(' ', '&nbsp;')}</span>"
    if finding.confidence < UNLIKELY:
        return f"{label} was looked for. {sure}"  # a warning follows that says more
    words = "is very likely" if finding.confidence >= 0.9 else "is likely" if finding.confidence >= 0.7 else "may be"
    return f"{label} {words} in the query picture. {sure}"


def curve(scene: Scene, finding: Finding, threshold: float) -> list[dict[str, object]]:
    """Rows of the plot: how the query's mask changes from step to step, and how it fits the true one."""
    masks = [scene.inside(finding, i, 0, threshold) for i in range(len(finding.steps))]
    rows = [{"step": i, "share": float(m.mean()), "what": "covered"} for i, m in enumerate(masks)]
    rows += [
        {"step": i, "share": iou(a, b), "what": "IoU with step before"} for i, (a, b) in enumerate(pairwise(masks), 1)
    ]
    if scene.truth is not None:
        rows += [{"step": i, "share": iou(m, scene.truth), "what": "IoU with true mask"} for i, m in enumerate(masks)]
    return rows


def data_uri(pixels: np.ndarray, width: int) -> str:
    """A small JPEG of ``pixels`` (uint8 RGB) for an ``<img>``, at most ``width`` pixels wide."""
    h, w = pixels.shape[:2]
    if w > width:
        pixels = cv2.resize(pixels, (width, max(1, round(h * width / w))), interpolation=cv2.INTER_AREA)
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg(pixels)).decode()}"


def served(pixels: np.ndarray) -> str:
    """The path of a JPEG of ``pixels`` (uint8 RGB) among Gradio's files, for a component that shows it.

    Its name is its content's. Where it is there already it stays as it is: Gradio would write it anew, and a browser
    that reads it at that moment gets a part of a picture.
    """
    data = jpeg(pixels)
    path = Path(get_upload_folder(), f"{hash_bytes(data)}.jpeg")
    try:
        os.utime(path)  # it is kept on from now
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(uuid4().hex)
        try:
            part.write_bytes(data)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)  # of a full disk
    return str(path)


def jpeg(pixels: np.ndarray) -> bytes:
    _, coded = cv2.imencode(".jpg", np.ascontiguousarray(pixels[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return coded.tobytes()
