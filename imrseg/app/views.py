"""What the page shows of a session: updates of its components, by component."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr
import numpy as np

from imrseg import bundle
from imrseg.app.choices import Look
from imrseg.app.downloads import all_labels
from imrseg.app.layout import Page
from imrseg.app.models import Models
from imrseg.app.rendering import curve, draw, filmstrip, note, served, step_name
from imrseg.app.sessions import Scene

Updates = dict[Any, Any]


class Views:
    """The same session, as each part of the page shows it."""

    def __init__(self, page: Page, models: Models) -> None:
        self.page = page
        self.models = models

    def buttons(self, running: bool) -> Updates:
        return {self.page.run: gr.Button(interactive=not running), self.page.stop: gr.Button(visible=running)}

    def two(self, look: Look, left: int, right: int) -> tuple[str, str]:
        """Files of the query at two steps."""
        steps = (min(i, look.last) for i in (left, right))
        one, other = (served(draw(look.scene, look.finding, i, 0, look.view, look.threshold)) for i in steps)
        return one, other

    def everything(self, look: Look) -> Updates:
        """The two pictures, the filmstrip, and what can be chosen."""
        page, looks, scene = self.page, self.page.choices, look.scene
        drawn = self.drawn(look)
        strip = filmstrip(scene, look.finding, look.view, look.threshold, look.shown, drawn)
        return self.pictures(look, drawn) | {
            page.welcome: gr.HTML(visible=False),
            page.stage: gr.Column(visible=True),
            page.support_column: gr.Column(visible=scene.supports > 0),
            page.strip: gr.HTML(strip, now=look.shown),
            looks.query: selector(look.session.names(), look.number),
            looks.label: selector([f.label for f in scene.findings], look.label),
            looks.support: selector([str(k + 1) for k in range(scene.supports)], min(look.support, scene.supports - 1)),
        }

    def drawn(self, look: Look) -> dict[int, np.ndarray]:
        """The query, 0, and the support that is looked at, 1, 2, ..., at one step."""
        scene = look.scene
        looked_at = [0, 1 + min(look.support, scene.supports - 1)] if scene.supports else [0]
        return {
            picture: draw(scene, look.finding, look.shown, picture, look.view, look.threshold) for picture in looked_at
        }

    def pictures(self, look: Look, drawn: Mapping[int, np.ndarray]) -> Updates:
        """Query and support of one step, as they are ``drawn``, with what stands under them."""
        places = (self.page.query_view, self.page.query_note), (self.page.support_view, self.page.support_note)
        updates: Updates = {}
        for (view, words), (picture, pixels) in zip(places, drawn.items(), strict=False):
            name = "Support" if picture else "Query"
            updates[view] = gr.Image(served(pixels), label=f"{name}, {step_name(look.shown)}")
            updates[words] = note(look.scene, look.finding, look.shown, picture, look.threshold)
        return updates

    def aside(self, look: Look) -> Updates:
        """What stands beside the steps once a run is over."""
        page, scene, finding, last, threshold = self.page, look.scene, look.finding, look.last, look.threshold
        steps = [(step_name(i), i) for i in range(last + 1)]
        several = len(scene.findings) > 1
        names = [
            (f"{k + 1}: {scene.paths[k + 1].name} ({share:.2f})", str(k))
            for k, share in enumerate(scene.shares(finding, last, threshold))
        ] if scene.supports > 1 and last > 0 else []  # fmt: skip
        return {
            page.used: gr.CheckboxGroup(
                choices=names, value=[str(k) for k, on in enumerate(scene.used) if on and names], visible=bool(names)
            ),
            page.labels_panel: gr.Accordion(visible=several),
            page.all_labels: served(all_labels(scene.all_found(threshold), scene.pictures[0])) if several else None,
            page.compare_steps[0]: gr.Dropdown(steps, value=0),
            page.compare_steps[1]: gr.Dropdown(steps, value=last),
            page.compare: self.two(look.but(view="Overlay"), 0, last),
            page.plot: rows_of(curve(scene, finding, threshold)),
            page.command: bundle.command(look.session.found(threshold), self.models.get(*look.session.chosen)),
        }

    def truth(self, scene: Scene) -> Updates:
        """The box of the true mask: it shows that of the query that is looked at, or none."""
        truth = scene.truth
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
