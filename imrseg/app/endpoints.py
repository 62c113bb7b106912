"""The two endpoints for programs, and for models by MCP; the page shows nothing of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
from gradio.components import Component

from imrseg import coco
from imrseg.app.fetching import sent_files
from imrseg.app.models import MODEL, OWN, Models
from imrseg.app.words import split_labels, told_to_visitor
from imrseg.edges import EDGES
from imrseg.errors import InputError
from imrseg.export import write_result
from imrseg.run import CONSENSUS, EDGES_ON, PROMPTS, check_threshold
from imrseg.segmenter import MAX_STEPS


class Endpoints:
    """``/segment`` and ``/segment_steps``; make it within ``gr.Blocks``.

    Their parameters stand in components that are never seen: from these Gradio makes the names, types and
    defaults of the API and of the MCP tools.
    """

    def __init__(self, models: Models) -> None:
        self.models = models
        with gr.Group(visible=False):
            parameters: list[Component] = [
                gr.File(label="query picture"),
                sent_files("support pictures"),
                gr.Textbox(label="label"),
                gr.Number(label=f"refinement steps, 0 to {MAX_STEPS}: empty for the preset's own number"),
                gr.Number(label="threshold, 0 to 1", value=0.5),
                gr.Textbox(label="preset", value=models.preset),
                gr.Textbox(label="coarse masks: empty for the preset's own, lite or clip", value=OWN),
                gr.Textbox(label="other things in the pictures, separated by commas", value=""),
                gr.Textbox(label=f"wordings: {' or '.join(PROMPTS)}", value=PROMPTS[0]),
                gr.Textbox(label=f"fit to edges: empty, {' or '.join(EDGES)}", value=""),
                gr.Textbox(label=f"whose masks are fitted: {' or '.join(EDGES_ON)}", value=EDGES_ON[0]),
                gr.Textbox(label=f"consensus of all pictures: {' or '.join(CONSENSUS)}", value=CONSENSUS[0]),
            ]
            result = gr.JSON(label="result.json")
            self.masks = gr.File(label="mask files", file_count="multiple")
            call, stream = gr.Button(), gr.Button()
        called: dict[str, Any] = {"concurrency_id": MODEL, "concurrency_limit": 1}
        call.click(self.segment, parameters, [result, self.masks], api_name="segment", **called)
        stream.click(self.segment_steps, parameters, result, api_name="segment_steps", **called)

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
        consensus: str = "on",
    ) -> tuple[dict[str, Any], list[str]]:
        """Find what a label names in a picture, with the help of pictures of the same thing.

        Args:
            query: the picture to segment.
            supports: up to 10 pictures that show the same thing; none is zero-shot.
            label: one label, for example "cheetah".
            steps: refinement steps, 0 to 20; without, the preset's own number.
            threshold: in [0, 1], where the masks are cut.
            preset: the network, for example "lite".
            coarse: what draws the coarse masks, "lite" or "clip"; empty takes the preset's own.
            distractors: other things in the pictures, separated by commas.
            prompts: "single" or "ensemble", wordings of the label.
            edges: fit the masks to the picture's edges by "guided" or "grabcut"; empty: not.
            edges_on: "last" or "every", the step whose masks are fitted.
            consensus: "on" or "off", whether all pictures' masks move towards what they together say of the object.

        Returns:
            What was found (per step: covered share, IoU with the step before, seconds; warnings; confidence), and the mask
            files: query_step0.png (the coarse mask), query_step1.png, ..., support1_step0.png, ...
        """
        with told_to_visitor():
            if query is None:
                raise InputError("There is no query picture.")
            pictures = list(supports or [])
            chosen = preset or self.models.preset, coarse
            result = self.models.segment(
                chosen, query, pictures, label, whole(steps), threshold,
                distractors=split_labels(distractors), prompts=prompts, edges=edges or None, edges_on=edges_on,
                consensus=consensus,
            )  # fmt: skip
            segmenter = self.models.get(*chosen)
            with TemporaryDirectory() as folder:
                content = write_result(result, Path(folder), query=query, supports=pictures, segmenter=segmenter)
                del content["panel"]  # no mask, and not sent
                files = sorted(Path(folder).glob("*_step*.png"), key=in_order)
                kept = [self.masks.move_resource_to_block_cache(path) or "" for path in files]
            return content, kept

    def segment_steps(
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
        consensus: str = "on",
    ) -> Iterator[dict[str, Any]]:
        """The same as segment, but one step at a time: each as soon as it is there.

        Args:
            query: the picture to segment.
            supports: up to 10 pictures that show the same thing; none is zero-shot.
            label: one label, for example "cheetah".
            steps: refinement steps, 0 to 20; without, the preset's own number.
            threshold: in [0, 1], where the masks are cut.
            preset: the network, for example "lite".
            coarse: what draws the coarse masks, "lite" or "clip"; empty takes the preset's own.
            distractors: other things in the pictures, separated by commas.
            prompts: "single" or "ensemble", wordings of the label.
            edges: fit the masks to the picture's edges by "guided" or "grabcut"; empty: not.
            edges_on: "last" or "every", the step whose masks are fitted.
            consensus: "on" or "off", whether all pictures' masks move towards what they together say of the object.

        Returns:
            For each step its number, the share of the query that its mask covers, and the mask itself in COCO's
            run lengths.
        """
        with told_to_visitor():
            if query is None:
                raise InputError("There is no query picture.")
            check_threshold(threshold)
            found = self.models.iterate(
                (preset or self.models.preset, coarse), query, list(supports or []), label, whole(steps),
                distractors=split_labels(distractors), prompts=prompts, edges=edges or None, edges_on=edges_on,
                consensus=consensus,
            )  # fmt: skip
            for step in found:
                mask = step.query_mask >= step.cut(threshold)
                rle = coco.shape(mask, label).rle
                yield {"step": step.index, "covered": float(mask.mean()), "seconds": step.seconds, "mask": rle}


def whole(steps: float | None) -> Any:
    """Gradio's numbers are floats: 3.0 as 3; anything else is left for ``Segmenter`` to refuse."""
    return int(steps) if isinstance(steps, float) and steps.is_integer() else steps


def in_order(path: Path) -> list[int | str]:
    """Sorts query before supports, and step 10 after step 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]
