"""What happens on the page: a run, looking at its steps, steering it, and taking it away."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import cv2
import gradio as gr
import numpy as np
from gradio.utils import get_upload_folder

from imrseg import bundle
from imrseg.app.blocks import App
from imrseg.app.choices import Look, Settings
from imrseg.app.downloads import EVERYTHING, FORMATS
from imrseg.app.endpoints import Endpoints
from imrseg.app.examples import Example, list_examples
from imrseg.app.layout import IS, Page, lay_out
from imrseg.app.models import MODEL, Models
from imrseg.app.rendering import draw, problem, progress, served, status, step_name
from imrseg.app.sessions import Finding, Scene, Session
from imrseg.app.views import Updates, Views, stepper
from imrseg.app.words import told_to_visitor, words_for
from imrseg.clicks import grow_dabs
from imrseg.errors import InputError
from imrseg.images import open_pictures
from imrseg.run import MAX_LABEL
from imrseg.segmenter import MAX_STEPS, Segmenter

MAX_QUERIES = 20
MAX_LABELS = 20
QUEUE = 64  # requests that may wait
FORGOTTEN = "These pictures are no longer kept here. Please run again."


def build_app(segmenter: Segmenter) -> App:
    """The whole page around one segmenter, which all visitors share; each visitor's pictures are their own."""
    with App(title="imrseg", analytics_enabled=False, fill_width=True) as app:
        models = Models(segmenter)
        app.handlers = Handlers(lay_out(models), models)
        connect(app, app.handlers)
        Endpoints(models)
    app.queue(max_size=QUEUE, api_open=False)  # no call goes past the queue
    return app


def connect(app: gr.Blocks, handlers: Handlers) -> None:
    """Attach the events."""
    page = handlers.page
    inputs, looks = page.inputs, page.choices
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    choices = [page.session, *looks.all()]
    shown = [
        page.run, page.stop, page.status, page.welcome, page.stage, *looks.all(), page.query_view, page.query_note,
        page.support_column, page.support_view, page.support_note, page.more, page.strip, page.used, page.all_labels,
        page.labels_panel, *page.compare_steps, page.compare, page.plot, page.truth, page.editor, page.corrected,
        page.command, page.session, page.stopped,
    ]  # fmt: skip
    running: dict[str, Any] = {
        "concurrency_id": MODEL, "concurrency_limit": 1, "api_visibility": "private", "show_progress": "minimal",
        "show_progress_on": page.status,
    }  # fmt: skip

    # At once, before the wait for the models: an example's remembered result, or the button that stops the wait.
    how = [*inputs.settings()[1:], looks.view, looks.threshold]
    example = [inputs.queries, inputs.supports, inputs.label, page.wanted, *shown]
    page.examples.click(handlers.pick_example, how, example, js=SCROLL, concurrency_limit=None, **quiet)
    asked = gr.on(
        [page.run.click, inputs.label.submit],
        handlers.wait,
        None,
        [page.run, page.stop, page.stopped],
        js=SCROLL,
        queue=False,
        **quiet,
    )
    given = [*inputs.all(), looks.view, looks.threshold, page.session]
    runs = [trigger(handlers.run, given, shown, **running) for trigger in (asked.then, page.wanted.change)]
    runs.append(page.more.click(handlers.one_more, choices, shown, **running))
    corrections = [*choices, page.corrected, page.editor, inputs.steps, page.correct_from]
    runs.append(page.refine.click(handlers.refine, corrections, shown, **running))
    for button in (page.more, page.refine):  # as ``wait`` does for the others
        button.click(lambda: False, None, page.stopped, queue=False, **quiet)
    for run in runs:
        run.failure(handlers.failed, [page.stopped, *choices], shown, queue=False, **quiet)
    page.stop.click(handlers.stop, None, page.stopped, queue=False, **quiet)
    page.stop.click(handlers.end, choices, shown, cancels=runs, queue=False, **quiet)

    looking: dict[str, Any] = quiet | {"trigger_mode": "always_last", "concurrency_limit": None}
    looks.step.input(handlers.look, choices, shown, **looking)
    page.strip.click(handlers.pick_step, choices, shown, **looking)
    for control in (looks.view, looks.threshold, looks.support, looks.label, looks.query):
        control.input(handlers.redraw, choices, shown, **looking)
    page.used.input(handlers.count, [*choices, page.used], shown, **looking)
    page.truth.input(handlers.take_truth, [*choices, page.truth], shown, **looking)
    for side in page.compare_steps:
        side.input(handlers.compare, [*choices, *page.compare_steps], page.compare, **looking)
    page.compare_panel.expand(handlers.compare, [*choices, *page.compare_steps], page.compare, **looking)
    page.correct_panel.expand(
        handlers.open_correction,
        [*choices, page.correct_what, page.corrected],
        [page.editor, page.corrected],
        **looking,
    )
    page.begin.click(handlers.begin_correction, [*choices, page.correct_what], [page.editor, page.corrected], **looking)

    seen = quiet | {"show_progress": "minimal", "show_progress_on": page.status}  # a ZIP of much takes a while
    page.download.click(handlers.download, [*choices, page.format], page.file, **seen).success(
        None, js="() => document.querySelector('#file').click()", **quiet
    )
    for choice in (inputs.preset, inputs.coarse):
        choice.input(handlers.pick_preset, [inputs.preset, inputs.coarse], page.preset_note, **looking)
    page.share.click(handlers.link, inputs.settings(), page.link, **quiet).then(None, page.link, page.link, js=LINK)
    page.reset.click(None, js="() => { location.href = location.origin + location.pathname; }", **quiet)
    app.load(handlers.restore, None, inputs.settings(), **quiet)


# On a narrow page the results are below the inputs: bring them into view.
SCROLL = """(...inputs) => {
    if (innerWidth < 900) document.querySelector("#results").scrollIntoView({ behavior: "smooth" });
    return inputs;
}"""
LINK = "(query) => location.origin + location.pathname + query"


class Handlers:
    """The events' functions. They keep nothing of a visitor: that is in the ``Session`` that is passed to them.

    Most take the session and the choices of what is looked at (``layout.Choices``, in its order), then what else
    they need.
    """

    def __init__(self, page: Page, models: Models) -> None:
        self.page = page
        self.models = models
        self.views = Views(page, models)
        self.ready: dict[int, Session] = {}  # of examples, by number

    # ---- a run

    def pick_example(self, event: gr.EventData, *how: Any) -> Updates:
        """An example's pictures and label; with the usual settings its remembered result too, else it is run."""
        number = int(event.example)
        example = list_examples()[number]
        inputs = self.page.inputs
        *settings, view, threshold = how
        updates: Updates = {
            inputs.queries: [str(example.query)],
            inputs.supports: [str(path) for path in example.supports],
            inputs.label: example.label,
        }
        ready = self.ready.get(number)
        if ready is None or settings != self.usual_settings():
            return updates | self.wait() | {self.page.wanted: uuid4().hex}
        session = ready.copied()
        last = session.scenes[-1].findings[-1].label  # as a run ends
        return updates | self.nothing_painted() | self.end(session, session.names()[-1], last, 0, view, threshold, 0)

    def prepare_examples(self, most: int | None = None) -> None:
        """Run the examples with the usual settings and remember what they show: the first ``most``, or all."""
        for number, example in enumerate(list_examples()[:most]):
            if number in self.ready:
                continue
            session = self.example(example)
            for finding in session.scenes[0].findings:
                if finding.run is not None:
                    finding.run.release()
            self.ready[number] = session

    def example(self, example: Example) -> Session:
        settings = Settings(example.label, *self.usual_settings())
        *_, (session, *_) = self.find([str(example.query)], list(map(str, example.supports)), settings)
        return session

    def usual_settings(self) -> list[Any]:
        """The settings as the page opens, without the label."""
        return [component.value for component in self.page.inputs.settings()[1:]]

    def wait(self) -> Updates:
        return self.views.buttons(running=True) | {self.page.stopped: False}

    def stop(self) -> bool:
        return True

    def failed(self, stopped: bool, session: Session | None, *choices: Any) -> Updates:
        """A run was stopped; or the queue is full, or the server ends: then it was not taken at all."""
        if stopped:  # once more, for a step may have come after ``end``
            return self.end(session, *choices) | {self.page.stopped: False}
        words = "The server could not take this run. Please try again in a minute."
        return self.views.buttons(running=False) | {self.page.status: problem(words)}

    def pick_preset(self, preset: str, coarse: str) -> str:
        """What is missing for a choice, and what to do; empty where it can run."""
        missing = self.models.missing(preset, coarse)
        return problem(missing) if missing else ""

    def run(
        self,
        queries: Sequence[tuple[str, str | None]] | None,
        supports: Sequence[tuple[str, str | None]] | None,
        *given: Any,
    ) -> Iterator[Updates]:
        """Every label's coarse mask in every query, then each step, as soon as it is there.

        What goes wrong is said on the page, which otherwise stays as it was.

        Args:
            given: the settings, the view and the threshold, and the visitor's last session.
        """
        page, looks = self.page, self.page.choices
        *settings, view, threshold, before = given
        asked = Settings(*settings)
        yield self.views.buttons(running=True) | {page.status: progress("Reading the pictures", 0)}
        paths = [path for path, _ in queries or []]
        try:
            found = self.find(paths, [path for path, _ in supports or []], asked, before)
            fresh = self.nothing_painted()
            for session, number, name, index, share in found:
                where = f" in {session.scenes[number].name} ({number + 1} of {len(paths)})" if len(paths) > 1 else ""
                yield (
                    fresh
                    | self.views.everything(Look(session, number, name, index, view, threshold))
                    | {
                        page.session: session,
                        page.status: progress(f"“{name}”{where}: {step_name(index)}", share),
                        looks.step: stepper(asked.steps, index),
                    }
                )
                fresh = {}
        except Exception as error:
            yield self.views.buttons(running=False) | {page.status: problem(words_for(error))}
        else:
            yield self.end(session, session.names()[-1], name, index, view, threshold, 0)

    def find(
        self, queries: Sequence[str], supports: Sequence[str], asked: Settings, before: Session | None = None
    ) -> Iterator[tuple[Session, int, str, int, float]]:
        """A run: after each step the session so far, the number of the query, the label, the step, the share done.

        ``before``: the visitor's last one, whose true masks still count for the same pictures.
        """
        if not queries:
            raise InputError("There is no query picture. Drop one, or pick an example.")
        if len(queries) > MAX_QUERIES:
            raise InputError(f"{len(queries)} query pictures were given. Accepted: up to {MAX_QUERIES} at once.")
        labels, options = asked.labels, asked.options
        if len(labels) > MAX_LABELS:
            raise InputError(f"{len(labels)} labels were given. Accepted: up to {MAX_LABELS} at once.")
        touch(*queries, *supports)
        pictures = open_pictures([*queries, *supports])
        opened, helpers = pictures[: len(queries)], pictures[len(queries) :]
        session = Session((), *asked.models)
        done, whole = 0, len(opened) * len(labels) * (asked.steps + 1)
        for number, (picture, path) in enumerate(zip(opened, queries, strict=True)):
            scene = Scene.of([picture, *helpers], [path, *supports]).measured(before.scenes if before else ())
            for name in labels:
                runs = self.models.begin(asked.models, picture, helpers, name, options, asked.steps)
                for index, run in enumerate(runs):
                    done += 1
                    scene = scene.having(Finding.of(run, finished=index == asked.steps))
                    session = session.having(number, scene)
                    yield session, number, name, index, done / whole

    def end(self, session: Session | None, *choices: Any) -> Updates:
        """After a run, stopped or not: the steps that there are can be looked at, the last first.

        All is shown once more: a busy browser may skip a step that another follows at once.
        """
        updates = self.views.buttons(running=False)
        if not session:
            return updates | {self.page.status: ""}
        self.models.remember(session)
        look = Look.at(session, *choices)
        look = look.but(step=look.last)
        return (
            updates
            | self.views.everything(look)
            | self.views.aside(look)
            | self.views.truth(look.scene)
            | {
                self.page.status: status(look.scene, look.finding, look.threshold),
                self.page.choices.step: stepper(look.last, look.last),
                self.page.session: session,
            }
        )

    def nothing_painted(self) -> Updates:
        """What was painted on another run's pictures is gone with it."""
        return {self.page.editor: None, self.page.corrected: None}

    # ---- going on

    def one_more(self, session: Session | None, *choices: Any) -> Iterator[Updates]:
        """One more step from the carried state of what is looked at."""
        if not session:
            yield forgotten()
            return
        look = Look.at(session, *choices)
        run = look.finding.run
        touch(*session.files())
        try:
            assert run is not None
            if len(run.steps) > MAX_STEPS:
                raise InputError(f"{MAX_STEPS} steps are the most.")
            (run,) = self.models.go_on(session.chosen, run, 1)
            scene = look.scene.having(Finding.of(run, finished=True))
            yield self.end(look.having(scene).session, *choices)
        except Exception as error:
            yield self.views.buttons(running=False) | {self.page.status: problem(words_for(error))}

    def begin_correction(self, session: Session | None, *given: Any) -> tuple[Any, Any]:
        """The picture to paint on: what is shown, as an overlay; and what it is."""
        if not session:
            return forgotten(), None
        *choices, what = given
        look = Look.at(session, *choices)
        supports = look.scene.supports
        picture = 1 + min(look.support, supports - 1) if what == "Support" and supports else 0
        return canvas(look, picture), (look.query, look.label, look.shown, picture)

    def open_correction(self, session: Session | None, *given: Any) -> Any:
        """As ``begin_correction``, where nothing is painted on yet."""
        *rest, corrected = given
        return self.begin_correction(session, *rest) if corrected is None else gr.skip()

    def refine(self, session: Session | None, *given: Any) -> Iterator[Updates]:
        """The marks enter the loop at the painted step or with the coarse masks; as many steps follow as asked for."""
        page = self.page
        if not session:
            yield forgotten()
            return
        *choices, corrected, painted, steps, from_coarse = given
        try:
            marks = marks_of(painted)
            if corrected is None or not marks.any():
                raise InputError(
                    "Nothing is painted yet. Show a step to paint on, then mark what is the object or not."
                )
            query, label, index, picture = corrected
            index = 0 if from_coarse else index
            look = Look.at(session, query, label, *choices[2:]).but(support=max(0, picture - 1))
            run = look.finding.run
            assert run is not None
            touch(*session.files())
            yield self.views.buttons(running=True) | {page.status: progress("Taking your marks", 0)}
            last = max(steps, index + 1)
            marks = grow_dabs(marks, look.scene.pictures[picture])
            found = self.models.go_on(session.chosen, run, last - index, index, {picture: marks})
            for following, run in enumerate(found, index):
                scene = look.scene.having(Finding.of(run, finished=following == last))
                look = look.having(scene).but(step=following)
                yield self.views.everything(look) | {
                    page.session: look.session,
                    page.status: progress(f"“{label}”: {step_name(following)}", following / last),
                    page.choices.step: stepper(last, following),
                }
            yield self.end(look.session, query, label, last, look.view, look.threshold, look.support) | {
                page.editor: canvas(look, picture), page.corrected: (query, label, last, picture)
            }  # fmt: skip
        except Exception as error:
            yield self.views.buttons(running=False) | {page.status: problem(words_for(error))}

    # ---- looking

    def look(self, session: Session | None, *choices: Any) -> Updates:
        """Another step of what was computed."""
        if not session:
            return forgotten()
        look = Look.at(session, *choices)
        return self.views.pictures(look, self.views.drawn(look)) | {self.page.strip: gr.HTML(now=look.shown)}

    def pick_step(self, event: gr.EventData, session: Session | None, *choices: Any) -> Updates:
        """A click in the filmstrip."""
        if not session:
            return forgotten()
        query, label, _, *how = choices
        step = int(event.step)
        return self.look(session, query, label, step, *how) | {self.page.choices.step: gr.Slider(value=step)}

    def redraw(self, session: Session | None, *choices: Any) -> Updates:
        """Another view, threshold, support, label or query of what was computed."""
        if not session:
            return forgotten()
        look = Look.at(session, *choices)
        return (
            self.views.everything(look)
            | self.views.aside(look)
            | (self.views.truth(look.scene) if len(session.scenes) > 1 else {})
            | {
                self.page.status: status(look.scene, look.finding, look.threshold),
                self.page.choices.step: stepper(look.last, look.last if look.step > look.last else None),
            }
        )

    def count(self, session: Session | None, *given: Any) -> Updates:
        """Other supports that count; none of them means all."""
        if not session:
            return forgotten()
        *choices, used = given
        look = Look.at(session, *choices)
        counts = tuple(k in used or not used for k in range(look.scene.supports))
        session = look.having(replace(look.scene, used=counts, _cells={})).session
        updates = self.redraw(session, *choices) | {self.page.session: session}
        if used:  # what is ticked is left alone: another click may have changed it since
            updates[self.page.used] = gr.CheckboxGroup(choices=updates[self.page.used].choices)
        return updates

    def take_truth(self, session: Session | None, *given: Any) -> Updates:
        """The query's true mask: every step is measured against it."""
        if not session:
            return forgotten()
        *choices, truth = given
        look = Look.at(session, *choices)
        h, w = look.scene.pictures[0].shape[:2]
        mask = None if truth is None else cv2.resize(truth, (w, h), interpolation=cv2.INTER_NEAREST) >= 128
        session = look.having(replace(look.scene, truth=mask, _cells={})).session
        return self.redraw(session, *choices) | {self.page.session: session}

    def compare(self, session: Session | None, *given: Any) -> Any:
        """The query at two steps."""
        if not session:
            return forgotten()
        *choices, left, right = given
        return self.views.two(Look.at(session, *choices), left, right)

    # ---- taking away

    def download(self, session: Session | None, *given: Any) -> str:
        """What is looked at in the chosen format, at the picture's own size; or everything in one ZIP."""
        with told_to_visitor():
            if session is None:
                raise InputError("There is no mask yet: run first.")
            if not session or not all(map(os.path.isfile, session.files())):
                raise InputError(FORGOTTEN)
            segmenter = self.models.get(*session.chosen)
            *choices, wish = given
            look = Look.at(session, *choices)
            found = look.scene.found(look.finding, look.step, look.threshold)
            with TemporaryDirectory() as folder:
                if wish == EVERYTHING:
                    path = Path(folder) / "imrseg.zip"
                    bundle.write_zip(path, session.found(look.threshold), segmenter)
                else:
                    ending, encode = FORMATS[wish]
                    path = Path(folder) / f"{bundle.safe_name(found.label, ())}-step{found.steps[-1].index}{ending}"
                    path.write_bytes(encode(found, segmenter))
                return self.page.file.move_resource_to_block_cache(path) or ""

    def link(self, label: str, *settings: Any) -> Any:
        """The query string of an address that restores label and settings."""
        usual = [None, *self.usual_settings()]
        kept = {
            n: v
            for n, v, u in zip(self.settings_names(), (label, *settings), usual, strict=True)
            if v not in (u, None, "")
        }
        return gr.Textbox("?" + urlencode(kept), visible=True)

    def restore(self, request: gr.Request) -> Any:
        """The settings in the page's address; what it does not say, or says wrongly, stays as it is."""
        given = dict(request.query_params)
        out = []
        for name, component in zip(self.settings_names(), self.page.inputs.settings(), strict=True):
            value: Any = given.get(name)
            if isinstance(component, gr.Slider):
                ok = re.fullmatch("[0-9]{1,3}", str(value)) is not None and int(value) <= component.maximum
                value = int(value) if ok else None
            elif isinstance(component, (gr.Dropdown, gr.Radio)):
                value = value if value in [choice for _, choice in component.choices] else None
            elif value is not None:
                value = value[: 4 * MAX_LABEL]
            out.append(gr.skip() if value is None else value)
        return out

    def settings_names(self) -> list[str]:
        return ["label", "steps", "preset", "coarse", "not", "prompts", "edges", "edges_on", "consensus", "device"]


def marks_of(painted: dict[str, Any] | None) -> np.ndarray:
    """What was painted, int8 (h, w): 1 where the first brush went, -1 where the second did, else 0."""
    layers = [layer for layer in (painted or {}).get("layers") or [] if layer is not None]
    if not layers:
        return np.zeros((1, 1), np.int8)
    marks = np.zeros(layers[0].shape[:2], np.int8)
    is_colour = np.array([int(IS[i : i + 2], 16) for i in (1, 3, 5)])
    for layer in layers:
        painted_there = layer[..., 3] >= 128
        near = np.abs(layer[..., :3].astype(int) - is_colour).sum(-1) < 200
        marks[painted_there] = np.where(near, 1, -1)[painted_there]
    return marks


def canvas(look: Look, picture: int) -> dict[str, Any]:
    """A picture of what is looked at, 0 the query, as the editor takes it: an overlay with nothing painted on it."""
    path = served(draw(look.scene, look.finding, look.shown, picture, "Overlay", look.threshold))
    return {"background": path, "layers": [], "composite": path}  # Gradio would write an array anew each time


def touch(*paths: str | Path) -> None:
    """A visitor's files are kept on from now; the page's own examples stay in any case."""
    folder = Path(get_upload_folder())
    for path in paths:
        with suppress(OSError, ValueError):  # ``open_picture`` says it better
            if Path(path).is_relative_to(folder):
                os.utime(path)


def forgotten() -> Any:
    """The answer to a visitor whose pictures are no longer kept: a word, and no change."""
    gr.Warning(FORGOTTEN)
    return gr.skip()
