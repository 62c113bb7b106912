"""What happens on the page: a run, looking at its steps, the download, and the public endpoint."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr

from imrseg.app.layout import KEEP, Page, lay_out, list_examples
from imrseg.app.models import Models
from imrseg.app.rendering import draw, filmstrip, note, problem, progress, status, step_name
from imrseg.app.sessions import Finding, Session
from imrseg.errors import InputError, WeightsError
from imrseg.export import encode_mask, write_result
from imrseg.images import open_picture
from imrseg.run import Options
from imrseg.segmenter import Segmenter

log = logging.getLogger(__name__)

MODEL = "model"  # events of this group wait for one another

Updates = dict[Any, Any]


def build_app(segmenter: Segmenter) -> gr.Blocks:
    """The whole page around one segmenter, which all visitors share; each visitor's pictures are their own."""
    with gr.Blocks(title="imrseg", analytics_enabled=False, fill_width=True, delete_cache=(KEEP, KEEP)) as app:
        models = Models(segmenter)
        connect(lay_out(models), models)
    app.queue(max_size=64)
    return app


def connect(page: Page, models: Models) -> None:
    """Attach the events."""
    handlers = Handlers(page, models)
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    how = [page.preset, page.coarse, page.distractors, page.prompts, page.edges, page.edges_on]
    inputs = [page.query, page.supports, page.label, page.steps, page.view, page.threshold, *how]
    shown = [
        page.run, page.stop, page.status, page.welcome, page.stage, page.which_label, page.query_view, page.query_note, page.support_column,
        page.support_view, page.support_note, page.step, page.which_support, page.strip, page.download, page.session,
    ]  # fmt: skip
    choices = [page.session, page.which_label, page.step, page.view, page.threshold, page.which_support]

    running: dict[str, Any] = {
        "js": SCROLL, "concurrency_id": MODEL, "concurrency_limit": 1, "api_visibility": "private",
        "show_progress": "minimal", "show_progress_on": page.status,
    }  # fmt: skip
    example = [page.query, page.supports, page.label]
    picked = page.examples.click(handlers.pick_example, outputs=example, queue=False, **quiet)
    runs = [
        trigger(handlers.run, inputs, shown, **running) for trigger in (page.run.click, page.label.submit, picked.then)
    ]
    page.stop.click(
        handlers.end,
        [page.session, page.which_label, page.view, page.threshold],
        shown,
        cancels=runs,
        queue=False,
        **quiet,
    )

    looking: dict[str, Any] = quiet | {"trigger_mode": "always_last", "concurrency_limit": None}
    page.step.input(handlers.look, choices, shown, **looking)
    page.strip.click(handlers.pick_step, choices, shown, **looking)
    for control in (page.view, page.threshold, page.which_support, page.which_label):
        control.input(handlers.redraw, choices, shown, **looking)
    page.download.click(handlers.download, choices, page.file, **quiet).success(
        None, js="() => document.querySelector('#file').click()", **quiet
    )

    for choice in (page.preset, page.coarse):
        choice.input(handlers.pick_preset, [page.preset, page.coarse], page.preset_note, **looking)

    end = page.endpoint
    end.call.click(
        handlers.segment,
        [
            end.query, end.supports, end.label, end.steps, end.threshold, end.preset, end.coarse, end.distractors,
            end.prompts, end.edges, end.edges_on,
        ],
        [end.result, end.masks],
        api_name="segment", concurrency_id=MODEL, concurrency_limit=1,
    )  # fmt: skip


# On a narrow page the results are below the inputs: bring them into view.
SCROLL = """(...inputs) => {
    if (innerWidth < 900) document.querySelector("#results").scrollIntoView({ behavior: "smooth" });
    return inputs;
}"""


class Handlers:
    """The events' functions. They keep nothing of a visitor: that is in the ``Session`` that is passed to them."""

    def __init__(self, page: Page, models: Models) -> None:
        self.page = page
        self.models = models

    def pick_example(self, event: gr.EventData) -> tuple[str, list[str], str]:
        example = list_examples()[int(event.example)]
        return str(example.query), [str(path) for path in example.supports], example.label

    def pick_preset(self, preset: str, coarse: str) -> str:
        """What is missing for a choice, and what to do; empty where it can run."""
        missing = self.models.missing(preset, coarse)
        return problem(missing) if missing else ""

    def run(
        self,
        query: str | None,
        supports: Sequence[tuple[str, str | None]] | None,
        label: str,
        steps: int,
        view: str,
        threshold: float,
        preset: str = "",
        coarse: str = "",
        distractors: str = "",
        prompts: str = "single",
        edges: str = "",
        edges_on: str = "last",
    ) -> Iterator[Updates]:
        """Every label's coarse mask, then each step, as soon as it is there.

        What goes wrong is said on the page, which otherwise stays as it was.
        """
        page = self.page
        yield self.buttons(running=True) | {page.status: progress("Reading the pictures", 0)}
        try:
            if query is None:
                raise InputError("There is no query picture. Drop one, or pick an example.")
            pictures = [open_picture(path) for path in (query, *(path for path, _ in supports or []))]
            session, labels = Session.of(pictures), split_labels(label) or [""]
            options = Options(None, split_labels(distractors), prompts, edges or None, edges_on)
            segmenter = self.models.get(preset or self.models.preset, coarse)
            for number, name in enumerate(labels):
                run = segmenter.start(pictures[0], pictures[1:], name, options)
                finding = Finding(run.label, run.warnings, run.confidence, (run.coarse,))
                for index in range(steps + 1):
                    if index > 0:
                        finding = finding.followed_by(run.advance())
                    if index == steps:
                        finding = finding.ending_with(run.finish())
                    session = session.having(finding)
                    yield self.everything(session, number, index, view, threshold, 0) | {
                        page.session: session,
                        page.status: progress(f"“{name}”: {step_name(index)}", (index + 1) / (steps + 1)),
                        page.step: stepper(steps, index),
                        page.which_label: selector(labels[: number + 1], name),
                        page.which_support: selector([str(k + 1) for k in range(session.supports)], 0),
                    }
        except Exception as error:
            yield self.buttons(running=False) | {page.status: problem(words_for(error))}
        else:
            yield self.end(session, labels[-1], view, threshold)

    def end(self, session: Session | None, label: str | None, view: str, threshold: float) -> Updates:
        """After a run, stopped or not: the steps that there are can be looked at.

        All is shown once more: a busy browser may skip a step that another follows at once.
        """
        updates = self.buttons(running=False)
        if session is None:
            return updates | {self.page.status: ""}
        number = find(session, label)
        finding = session.findings[number]
        last = len(finding.steps) - 1
        return (
            updates
            | self.everything(session, number, last, view, threshold, 0)
            | {
                self.page.status: status(session, finding, threshold),
                self.page.step: stepper(last, last),
            }
        )

    def buttons(self, running: bool) -> Updates:
        return {self.page.run: gr.Button(interactive=not running), self.page.stop: gr.Button(visible=running)}

    def look(
        self, session: Session | None, label: str | None, step: int, view: str, threshold: float, support: int | None
    ) -> Updates:
        """Another step of what was computed."""
        if session is None:
            return forgotten()
        return self.pictures(session, find(session, label), step, view, threshold, support or 0) | {
            self.page.strip: gr.HTML(now=step)
        }

    def pick_step(
        self,
        session: Session | None,
        label: str | None,
        step: int,
        view: str,
        threshold: float,
        support: int | None,
        event: gr.EventData,
    ) -> Updates:
        """A click in the filmstrip."""
        if session is None:
            return forgotten()
        chosen = int(event.step)
        return self.look(session, label, chosen, view, threshold, support) | {self.page.step: gr.Slider(value=chosen)}

    def redraw(
        self, session: Session | None, label: str | None, step: int, view: str, threshold: float, support: int | None
    ) -> Updates:
        """Another view, threshold, support or label of what was computed."""
        if session is None:
            return forgotten()
        number = find(session, label)
        return self.everything(session, number, step, view, threshold, support or 0) | {
            self.page.status: status(session, session.findings[number], threshold)
        }

    def everything(
        self, session: Session, number: int, step: int, view: str, threshold: float, support: int
    ) -> Updates:
        """The two pictures and the filmstrip."""
        page = self.page
        return self.pictures(session, number, step, view, threshold, support) | {
            page.welcome: gr.HTML(visible=False),
            page.stage: gr.Column(visible=True),
            page.support_column: gr.Column(visible=session.supports > 0),
            page.strip: gr.HTML(filmstrip(session, session.findings[number], view, threshold, support), now=step),
        }

    def pictures(self, session: Session, number: int, step: int, view: str, threshold: float, support: int) -> Updates:
        """Query and support of one step, with what stands under them."""
        page, finding = self.page, session.findings[number]
        step = min(step, len(finding.steps) - 1)  # the slider may be ahead of a run that was stopped
        name = step_name(step)
        updates: Updates = {
            page.query_view: gr.Image(draw(session, finding, step, 0, view, threshold), label=f"Query, {name}"),
            page.query_note: note(session, finding, step, 0, threshold),
            page.download: gr.Button(f"Download mask ({name})"),
        }
        if session.supports:
            shown = 1 + min(support, session.supports - 1)
            updates[page.support_view] = gr.Image(
                draw(session, finding, step, shown, view, threshold), label=f"Support, {name}"
            )
            updates[page.support_note] = note(session, finding, step, shown, threshold)
        return updates

    def download(
        self, session: Session | None, label: str | None, step: int, view: str, threshold: float, support: int | None
    ) -> str:
        """The query's mask as 8-bit PNG, 0 and 255, at the picture's own size."""
        with told_to_visitor():
            if session is None:
                raise InputError("There is no mask yet: run first.")
            finding = session.findings[find(session, label)]
            shown = finding.steps[min(step, len(finding.steps) - 1)]
            mask = shown.query_mask >= shown.cut(threshold)
            with TemporaryDirectory() as folder:
                path = Path(folder) / f"{file_name(finding.label)}-step{shown.index}.png"
                path.write_bytes(encode_mask(mask))
                return self.page.file.move_resource_to_block_cache(path) or ""

    def segment(
        self,
        query: str | None,
        supports: list[str] | None = None,
        label: str = "",
        steps: float | None = None,
        threshold: float = 0.5,
        preset: str = "",
        coarse: str = "",
        distractors: str = "",
        prompts: str = "single",
        edges: str = "",
        edges_on: str = "last",
    ) -> tuple[dict[str, Any], list[str]]:
        """Find what a label names in a picture, with the help of pictures of the same thing.

        Args:
            query: the picture to segment.
            supports: up to 10 pictures that show the same thing; none is zero-shot.
            label: one label, for example "cheetah".
            steps: refinement steps, 0 to 20.
            threshold: in [0, 1], where the masks are cut.
            preset: the network, for example "lite".
            coarse: what draws the coarse masks, "lite" or "clip"; empty takes the preset's own.
            distractors: other things in the pictures, separated by commas.
            prompts: "single" or "ensemble", wordings of the label.
            edges: fit the masks to the picture's edges by "guided" or "grabcut"; empty: not.
            edges_on: "last" or "every", the step whose masks are fitted.

        Returns:
            What was found (per step: covered share, change, seconds; warnings; confidence), and the mask
            files: query_step0.png (the coarse mask), query_step1.png, ..., support1_step0.png, ...
        """
        with told_to_visitor():
            if query is None:
                raise InputError("There is no query picture.")
            pictures = list(supports or [])
            count = int(steps) if steps is not None and float(steps).is_integer() else steps
            segmenter = self.models.get(preset or self.models.preset, coarse)
            result = segmenter.segment(
                query, pictures, label, count, threshold, distractors=split_labels(distractors), prompts=prompts,  # type: ignore[arg-type]
                edges=edges or None, edges_on=edges_on,
            )  # fmt: skip
            with TemporaryDirectory() as folder:
                content = write_result(result, Path(folder), query=query, supports=pictures, segmenter=segmenter)
                files = sorted(Path(folder).glob("*_step*.png"), key=in_order)
                kept = [self.page.endpoint.masks.move_resource_to_block_cache(path) or "" for path in files]
            return content, kept


def words_for(error: Exception) -> str:
    """Bad input is told in its own words; anything unexpected is told in short and logged in full."""
    if isinstance(error, (InputError, WeightsError)):
        return str(error)
    log.error("unexpected error in a request", exc_info=error)
    return "Something unexpected went wrong. Please try again; the server's log has the details."


@contextmanager
def told_to_visitor() -> Iterator[None]:
    """Raises every error as Gradio's own, which shows on the page or reaches the endpoint's caller."""
    try:
        yield
    except Exception as error:
        raise gr.Error(words_for(error), print_exception=False) from None


def split_labels(text: str) -> list[str]:
    """Labels as typed, separated by commas, without repeats."""
    return list(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))


def find(session: Session, label: str | None) -> int:
    """The number of the finding for ``label``; the first where it is not among them."""
    labels = [finding.label for finding in session.findings]
    return labels.index(label) if label in labels else 0


def file_name(label: str) -> str:
    return re.sub(r"[^\w-]+", "-", label).strip("-")[:60] or "mask"


def in_order(path: Path) -> list[int | str]:
    """Sorts query before supports, and step 10 after step 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def stepper(steps: int, step: int | None = None) -> gr.Slider:
    """The step control, from 0 to ``steps``; where it stands is left alone unless ``step`` is given."""
    moved: dict[str, Any] = {} if step is None else {"value": step}
    return gr.Slider(maximum=max(1, steps), interactive=steps > 0, **moved)


def forgotten() -> Any:
    """The answer to a visitor whose pictures are no longer kept: a word, and no change."""
    gr.Warning("These pictures are no longer kept here. Please run again.")
    return gr.skip()


def selector(choices: list[str], value: str | int) -> gr.Radio:
    """A choice that shows only where there is one."""
    chosen = choices[value] if isinstance(value, int) and choices else value if choices else None
    return gr.Radio(choices=choices, value=chosen, visible=len(choices) > 1)
