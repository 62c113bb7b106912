"""What the page shows of a session: updates of its components, by component."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr
import numpy as np

from imrseg import bundle
from imrseg.app.downloads import all_labels
from imrseg.app.layout import Page
from imrseg.app.models import Models
from imrseg.app.rendering import curve, draw, filmstrip, note, served, step_name
from imrseg.app.sessions import Finding, Scene, Session

Updates = dict[Any, Any]


class Views:
    """The same session, as each part of the page shows it."""

    def __init__(self, page: Page, models: Models) -> None:
        self.page = page
        self.models = models

    def buttons(self, running: bool) -> Updates:
        return {self.page.run: gr.Button(interactive=not running), self.page.stop: gr.Button(visible=running)}

    def two(
        self, scene: Scene, finding: Finding, left: int, right: int, view: str, threshold: float
    ) -> tuple[str, str]:
        """Files of the query at two steps."""
        last = len(finding.steps) - 1
        one, other = (served(draw(scene, finding, min(i, last), 0, view, threshold)) for i in (left, right))
        return one, other

    def everything(
        self, session: Session, number: int, label: str, step: int, view: str, threshold: float, support: int
    ) -> Updates:
        """The two pictures, the filmstrip, and what can be chosen."""
        page, looks, scene = self.page, self.page.choices, session.scenes[number]
        finding = scene.finding(label)
        step = min(step, len(finding.steps) - 1)  # the slider may be ahead of a run that was stopped
        drawn = self.drawn(scene, finding, step, view, threshold, support)
        return self.pictures(scene, finding, step, threshold, drawn) | {
            page.welcome: gr.HTML(visible=False),
            page.stage: gr.Column(visible=True),
            page.support_column: gr.Column(visible=scene.supports > 0),
            page.strip: gr.HTML(filmstrip(scene, finding, view, threshold, step, drawn), now=step),
            looks.query: selector(session.names(), number),
            looks.label: selector([f.label for f in scene.findings], finding.label),
            looks.support: selector([str(k + 1) for k in range(scene.supports)], min(support, scene.supports - 1)),
        }

    def drawn(
        self, scene: Scene, finding: Finding, step: int, view: str, threshold: float, support: int
    ) -> dict[int, np.ndarray]:
        """The query, 0, and the support that is looked at, 1, 2, ..., at one step."""
        looked_at = [0, 1 + min(support, scene.supports - 1)] if scene.supports else [0]
        return {picture: draw(scene, finding, step, picture, view, threshold) for picture in looked_at}

    def pictures(
        self, scene: Scene, finding: Finding, step: int, threshold: float, drawn: Mapping[int, np.ndarray]
    ) -> Updates:
        """Query and support of one step, as they are ``drawn``, with what stands under them."""
        places = (self.page.query_view, self.page.query_note), (self.page.support_view, self.page.support_note)
        updates: Updates = {}
        for (view, words), (picture, pixels) in zip(places, drawn.items(), strict=False):
            name = "Support" if picture else "Query"
            updates[view] = gr.Image(served(pixels), label=f"{name}, {step_name(step)}")
            updates[words] = note(scene, finding, step, picture, threshold)
        return updates

    def aside(self, session: Session, number: int, finding: Finding, step: int, threshold: float) -> Updates:
        """What stands beside the steps once a run is over."""
        page, scene = self.page, session.scenes[number]
        last = len(finding.steps) - 1
        steps = [(step_name(i), i) for i in range(last + 1)]
        several = len(scene.findings) > 1
        names = [
            (f"{k + 1}: {scene.paths[k + 1].name} ({share:.2f})", str(k))
            for k, share in enumerate(scene.shares(finding, last, threshold))
        ] if scene.supports > 1 and last > 0 else []  # fmt: skip
        founds = [scene.found(f, len(f.steps) - 1, threshold) for f in scene.findings]
        return {
            page.used: gr.CheckboxGroup(
                choices=names, value=[str(k) for k, on in enumerate(scene.used) if on and names], visible=bool(names)
            ),
            page.labels_panel: gr.Accordion(visible=several),
            page.all_labels: served(all_labels(founds, scene.pictures[0])) if several else None,
            page.compare_steps[0]: gr.Dropdown(steps, value=0),
            page.compare_steps[1]: gr.Dropdown(steps, value=last),
            page.compare: self.two(scene, finding, 0, last, "Overlay", threshold),
            page.plot: rows_of(curve(scene, finding, threshold)),
            page.command: bundle.command(
                [s.found(f, len(f.steps) - 1, threshold) for s in session.scenes for f in s.findings],
                self.models.get(*session.chosen),
            ),
        }

    def truth(self, session: Session, number: int) -> Updates:
        """The box of the true mask: it shows that of the query that is looked at, or none."""
        truth = session.scenes[number].truth
        shown = None if truth is None else served(np.repeat(truth[..., None] * np.uint8(255), 3, 2))
        return {self.page.truth: shown}


def rows_of(rows: list[dict[str, object]]) -> Any:
    import pandas

    return pandas.DataFrame(rows)


def stepper(steps: int, step: int | None = None) -> gr.Slider:
    """The step control, from 0 to ``steps``; where it stands is left alone unless ``step`` is given."""
    moved: dict[str, Any] = {} if step is None else {"value": step}
    return gr.Slider(maximum=max(1, steps), interactive=steps > 0, **moved)


def selector(choices: list[str], value: str | int) -> gr.Radio:
    """A choice that shows only where there is one."""
    chosen = choices[value] if isinstance(value, int) and choices else value if choices else None
    return gr.Radio(choices=choices, value=chosen, visible=len(choices) > 1)
