"""What is on the page, and how it looks. What happens on it is in ``handlers``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from imrseg.app.doors import MAX_FILE
from imrseg.app.downloads import EVERYTHING, FORMATS
from imrseg.app.examples import example_cards, list_examples
from imrseg.app.models import OWN, Models
from imrseg.app.painting import bounded
from imrseg.presets import get_preset
from imrseg.run import MAX_LABEL

SLIDER_STEPS = 10  # on the page; the library and the endpoint take up to MAX_STEPS
VIEWS = ("Overlay", "Heat map", "Outline", "Cut-out", "Difference")
KEEP = 3600  # seconds that a visitor's pictures and files are kept after the last run or correction
RUNNING = 'document.querySelector("#stop")?.offsetParent'  # in JavaScript: then Stop is to be seen
IS, IS_NOT = "#00c853", "#ff1744"  # brushes: this is it, this is not
FONT = ("-apple-system", "BlinkMacSystemFont", "Segoe UI", "Roboto", "Liberation Sans", "Arial", "sans-serif")
THEME = gr.themes.Base(
    primary_hue=gr.themes.colors.blue,
    neutral_hue=gr.themes.colors.slate,
    radius_size=gr.themes.sizes.radius_md,
    font=FONT,
    font_mono=("ui-monospace", "Liberation Mono", "monospace"),
).set(
    block_shadow="none", button_primary_shadow="none",
    body_text_color_subdued="*neutral_500", block_info_text_color="*neutral_500",  # dark enough on white to be read
    button_primary_background_fill="*primary_600", button_primary_background_fill_hover="*primary_700",
)  # fmt: skip

APPEARANCE: dict[str, Any] = {
    "theme": THEME,
    "css_paths": Path(__file__).with_name("style.css"),
    "js": Path(__file__).with_name("page.js").read_text("utf-8"),
    "footer_links": ["api", "settings"],
    "max_file_size": MAX_FILE,
    "ssr_mode": False,  # would need Node.js
}


class Components:
    """Dataclasses of components."""

    def all(self) -> list[Component]:
        return [getattr(self, f.name) for f in fields(self)]  # type: ignore[arg-type]


@dataclass(frozen=True)
class Inputs(Components):
    """What a run is made from, in the order in which ``Handlers.run`` takes it."""

    queries: gr.Gallery
    supports: gr.Gallery
    label: gr.Textbox
    steps: gr.Slider
    preset: gr.Dropdown
    coarse: gr.Dropdown
    distractors: gr.Textbox
    prompts: gr.Radio
    edges: gr.Radio
    edges_on: gr.Radio
    consensus: gr.Radio
    device: gr.Dropdown

    def settings(self) -> list[Component]:
        """Without the pictures: what a link restores."""
        return self.all()[2:]


@dataclass(frozen=True)
class Choices(Components):
    """What is looked at, in the order in which handlers take it behind the session."""

    query: gr.Radio
    label: gr.Radio
    step: gr.Slider
    view: gr.Radio
    threshold: gr.Slider
    support: gr.Radio


@dataclass(frozen=True)
class Page:
    """Every component that something happens to."""

    inputs: Inputs
    preset_note: gr.HTML
    run: gr.Button
    stop: gr.Button
    reset: gr.Button
    share: gr.Button
    link: gr.Textbox
    examples: gr.HTML
    wanted: gr.State
    stopped: gr.State
    status: gr.HTML
    welcome: gr.HTML
    stage: gr.Column
    choices: Choices
    query_view: gr.Image
    query_note: gr.HTML
    support_column: gr.Column
    support_view: gr.Image
    support_note: gr.HTML
    play: gr.Button
    more: gr.Button
    strip: gr.HTML
    used: gr.CheckboxGroup
    compare: gr.ImageSlider
    compare_steps: tuple[gr.Dropdown, gr.Dropdown]
    compare_panel: gr.Accordion
    all_labels: gr.Image
    labels_panel: gr.Accordion
    plot: gr.LinePlot
    truth: gr.Image
    curve_panel: gr.Accordion
    correct_panel: gr.Accordion
    correct_what: gr.Radio
    correct_from: gr.Radio
    begin: gr.Button
    editor: gr.ImageEditor
    refine: gr.Button
    corrected: gr.State
    format: gr.Dropdown
    download: gr.Button
    file: gr.DownloadButton
    command: gr.Code
    session: gr.State


def lay_out(models: Models) -> Page:
    """Put everything on the page; call within ``gr.Blocks``."""
    gr.HTML(
        "<h1>imrseg</h1><p>Type what to look for. The words give a coarse mask; then the query and the support"
        " pictures refine each other’s mask, step by step.</p>",
        elem_id="head",
    )
    session, corrected = gr.State(time_to_live=KEEP), gr.State(time_to_live=KEEP)
    wanted = gr.State()  # changes when an example is to be run
    stopped = gr.State(False)  # whether Stop was pressed, and its run has not ended yet
    with gr.Row(elem_id="page"):
        with gr.Column(elem_id="inputs", scale=0, min_width=300):
            left = _lay_out_inputs(models)
        with gr.Column(elem_id="results", scale=1, min_width=320):
            status = gr.HTML("", elem_id="status")
            welcome = gr.HTML(WELCOME, elem_id="welcome")
            with gr.Column(visible=False, elem_id="stage") as stage:
                right = _lay_out_stage(get_preset(models.preset).steps)
    return Page(
        **left, **right, status=status, welcome=welcome, stage=stage, session=session, corrected=corrected,
        wanted=wanted, stopped=stopped,
    )  # fmt: skip


def _lay_out_inputs(models: Models) -> dict[str, Any]:
    queries = _gallery("Query: the picture to segment (or several)", "queries", 150)
    supports = _gallery("Support: the same elsewhere (optional)", "supports", 132)
    label = gr.Textbox(
        label="Label",
        placeholder="cheetah",
        info="What both show. A comma separates several labels.",
        max_length=4 * MAX_LABEL,
        elem_id="label",
    )
    steps = gr.Slider(
        0, SLIDER_STEPS, get_preset(models.preset).steps, step=1, label="Refinement steps", buttons=[], elem_id="steps"
    )
    with gr.Accordion("More choices", open=False, elem_id="choices"):
        preset = gr.Dropdown(
            models.presets(), value=models.preset, label="Preset",
            info="The network, and the weights that it runs with.", elem_id="preset",
        )  # fmt: skip
        preset_note = gr.HTML("", elem_id="preset-note")
        coarse = gr.Dropdown(
            models.coarse(), value=OWN, label="Coarse masks",
            info="What draws the first mask from the words.", elem_id="coarse",
        )  # fmt: skip
        distractors = gr.Textbox(
            label="Not this", placeholder="grass, sky", max_length=4 * MAX_LABEL,
            info="Other things in the pictures, separated by commas. They change the coarse mask most.", elem_id="not",
        )  # fmt: skip
        prompts = gr.Radio(
            [("one", "single"), ("several", "ensemble")], value="single", label="Wordings",
            info="The mean of several readings of the label is steadier for rare words.", elem_id="prompts",
        )  # fmt: skip
        edges = gr.Radio(
            [("off", ""), ("guided filter", "guided"), ("GrabCut", "grabcut")], value="",
            label="Fit to edges", info="Lets the mask follow the picture’s own edges.", elem_id="edges",
        )  # fmt: skip
        edges_on = gr.Radio(
            [("last step", "last"), ("every step", "every")], value="last", label="Whose masks are fitted",
            info="Every step: a fitted mask is what the next step begins with.", elem_id="edges-on",
        )  # fmt: skip
        consensus = gr.Radio(
            [("on", "on"), ("off", "off")], value="on", label="Consensus",
            info="After each step, all pictures’ masks together say what the object is. Off: the network alone.",
            elem_id="consensus",
        )  # fmt: skip
        device = gr.Dropdown(
            models.devices(), value=models.device, label="Device", info="Where the networks run.", elem_id="device"
        )
        with gr.Row():
            share = gr.Button("Link to these settings", size="sm", elem_id="share")
            reset = gr.Button("Reset", size="sm", elem_id="reset")
        link = gr.Textbox(label="Link", visible=False, interactive=False, buttons=["copy"], elem_id="link")
    with gr.Row():
        run = gr.Button("Run", variant="primary", elem_id="run")
        stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop")
    examples = gr.HTML(
        example_cards(list_examples()), elem_id="examples", js_on_load=_clicks("example", unless=RUNNING)
    )
    inputs = Inputs(
        queries, supports, label, steps, preset, coarse, distractors, prompts, edges, edges_on, consensus, device
    )
    return {
        "inputs": inputs, "preset_note": preset_note, "run": run, "stop": stop, "reset": reset, "share": share,
        "link": link, "examples": examples,
    }  # fmt: skip


def _lay_out_stage(steps: int) -> dict[str, Any]:
    which_query = gr.Radio(visible=False, label="Query", elem_id="which-query")
    which_label = gr.Radio(visible=False, label="Label shown", elem_id="which-label")
    with gr.Row(elem_id="pair"):
        with gr.Column(min_width=260):
            query_view, query_note = _view("Query", "query-view")
        with gr.Column(min_width=260) as support_column:
            support_view, support_note = _view("Support", "support-view")
    with gr.Row(elem_id="stepper"):
        step = gr.Slider(0, steps, 0, step=1, label="Step (0 is the coarse mask)", buttons=[], elem_id="step")
        play = gr.Button("Play", size="sm", elem_id="play")
        more = gr.Button("One more step", size="sm", elem_id="more")
    strip = gr.HTML(
        "", html_template='<div data-now="${now}">${value}</div>', now=0, elem_id="strip", js_on_load=_clicks("step")
    )
    with gr.Row(elem_id="looks"):
        view = gr.Radio(VIEWS, value=VIEWS[0], label="View", elem_id="view", min_width=300)
        which_support = gr.Radio(
            visible=False, type="index", label="Support shown", elem_id="which-support", min_width=140
        )
        threshold = gr.Slider(0.05, 0.95, 0.5, step=0.01, label="Threshold", elem_id="threshold")
    used = gr.CheckboxGroup(
        visible=False, type="index", label="Supports that count", elem_id="used",
        info="The share is how far a support’s own mask of the query agrees with the answer. A consensus draws them"
        " together; to take a support out of it, remove it and run again.",
    )  # fmt: skip
    with gr.Row(elem_id="take"):
        format_ = gr.Dropdown([*FORMATS, EVERYTHING], value=next(iter(FORMATS)), label="Take it away", elem_id="format")
        download = gr.Button("Download", elem_id="download")
        file = gr.DownloadButton(elem_id="file")  # never seen: the button has its file made first
    with gr.Accordion("Correct the mask", open=False, elem_id="correct") as correct_panel:
        with gr.Row():
            correct_what = gr.Radio(["Query", "Support"], value="Query", label="Picture", elem_id="correct-what")
            correct_from = gr.Radio(
                ["the painted step", "the coarse mask"], value="the painted step", type="index", label="Refine on from",
                info="From the coarse mask, marks help most.", elem_id="correct-from",
            )  # fmt: skip
            begin = gr.Button("Paint on the step shown", size="sm", elem_id="begin")
        editor = bounded(gr.ImageEditor(
            label="Green: this is it. Red: this is not.", type="numpy", sources=[], transforms=[], layers=False,
            brush=gr.Brush(default_size=18, colors=[IS, IS_NOT], default_color=IS, color_mode="fixed"),
            eraser=gr.Eraser(default_size=18), buttons=[], height=420, elem_id="editor",
        ))  # fmt: skip
        refine = gr.Button("Refine on from here", variant="primary", elem_id="refine")
    with gr.Accordion("Compare two steps", open=False, elem_id="compare") as compare_panel:
        with gr.Row():
            first = gr.Dropdown([("coarse", 0)], value=0, label="Left", elem_id="compare-left")
            second = gr.Dropdown([("coarse", 0)], value=0, label="Right", elem_id="compare-right")
        compare = gr.ImageSlider(
            label="Query at two steps", interactive=False, buttons=[], height=420, elem_id="compare-view"
        )
    with gr.Accordion("All labels in one picture", open=False, visible=False, elem_id="labels") as labels_panel:
        all_labels = gr.Image(label="All labels", interactive=False, buttons=["fullscreen"], height=420, elem_id="all")
    with gr.Accordion("How it converges", open=False, elem_id="curve") as curve_panel:
        plot = gr.LinePlot(
            x="step", y="share", color="what", y_lim=[0, 1], x_title="step", y_title="share or IoU", height=300, x_axis_format="d",
            label="The query’s mask from step to step", show_label=False, elem_id="plot",
        )  # fmt: skip
        truth = gr.Image(
            label="The query’s true mask, if you have it (white is the object)", sources=["upload"], buttons=[],
            height=120, image_mode="L", elem_id="truth",
        )  # fmt: skip
    with gr.Accordion("Repeat it from the command line", open=False, elem_id="command"):
        command = gr.Code(language="shell", label="Command", interactive=False, buttons=["copy"], elem_id="shell")
    return {
        "choices": Choices(which_query, which_label, step, view, threshold, which_support), "query_view": query_view,
        "query_note": query_note, "support_column": support_column, "support_view": support_view,
        "support_note": support_note, "play": play, "more": more, "strip": strip, "used": used, "compare": compare,
        "compare_steps": (first, second), "compare_panel": compare_panel, "all_labels": all_labels,
        "labels_panel": labels_panel, "plot": plot, "truth": truth, "curve_panel": curve_panel,
        "correct_panel": correct_panel, "correct_what": correct_what, "correct_from": correct_from, "begin": begin, "editor": editor, "refine": refine,
        "format": format_, "download": download, "file": file, "command": command,
    }  # fmt: skip


def _gallery(label: str, elem_id: str, height: int) -> gr.Gallery:
    # File paths: ``open_picture`` knows better than Gradio what to say of a bad picture.
    return gr.Gallery(
        label=label, type="filepath", file_types=["image"], sources=["upload"], interactive=True, columns=3,
        fit_columns=False, height=height, object_fit="cover", allow_preview=False, buttons=[], elem_id=elem_id,
    )  # fmt: skip


def _view(name: str, elem_id: str) -> tuple[gr.Image, gr.HTML]:
    picture = gr.Image(label=name, interactive=False, buttons=["fullscreen"], height=360, elem_id=elem_id)
    return picture, gr.HTML(elem_classes="note", elem_id=f"{elem_id}-note")


def _clicks(name: str, unless: str = "false") -> str:
    """JavaScript that reports a click on an element with ``data-NAME`` as an event that carries the number."""
    return f"""element.addEventListener("click", (event) => {{
        const hit = event.target.closest("[data-{name}]");
        if (hit && !({unless})) trigger("click", {{ {name}: Number(hit.dataset.{name}) }});
    }});"""


WELCOME = """<div class="welcome">
<svg viewBox="0 0 132 44" aria-hidden="true"><g fill="none" stroke="currentColor" stroke-width="1.5">
<rect x="1" y="1" width="38" height="42" rx="5"/><rect x="47" y="1" width="38" height="42" rx="5"/>
<rect x="93" y="1" width="38" height="42" rx="5"/></g>
<g fill="var(--color-accent)"><ellipse cx="20" cy="22" rx="14" ry="15" opacity=".25"/>
<path d="M55 20c0-9 6-13 12-13s11 4 11 12-2 17-11 17-12-8-12-16z" opacity=".55"/>
<path d="M104 12c2-3 3-4 4-3l3 3h3l3-3c1-1 2 0 4 3 2 4 2 8 0 11s-1 12-8 12-6-8-9-12c-2-3-2-7 0-11z"/></g></svg>
<h2>The masks will appear here</h2>
<ol><li>Drop a query picture, and pictures that show the same kind of thing.</li>
<li>Type what it is, and run.</li><li>Go through the steps, from the coarse mask to the last.</li></ol>
<p>Or begin with one of the examples.</p></div>"""
