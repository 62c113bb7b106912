"""Results of ``evaluate`` as tables of text: one by class, and the paper's own, published rows beside ours."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from imrseg.complexity import cost
from imrseg.errors import InputError
from imrseg.presets import STEPS
from imrseg.published import TABLES, Row, Table

FOLDS = range(4)
LITE = "efficientnet-lite2"
LITE_STEPS = 3  # that the network on lite's backbone is trained with
NOT_RUN, OURS = "not run", "ours"
FOLD_NAMES = {"pascal": "5^{}", "coco": "20^{}"}
COSTED = "S5"  # the table that has columns for costs
CLIP = "RN50"  # the paper's
# What the paper has not, or has in one way alone.
PLAIN = {
    "consensus": "off", "true_supports": False, "edges": None, "prompts": "single", "distractors": (),
    "contrast": "softmax", "clip_side": None,
}  # fmt: skip
CELLS = {"None": "none", "Conv": "conv", "Group conv": "group"}

Result = dict[str, Any]
log = logging.getLogger(__name__)


def by_class(result: Result) -> str:
    """One row per class, then mIoU and FB-IoU; one column per step, in percent."""
    rows = {**result["per_class"], "mIoU": result["miou"], "FB-IoU": result["fb_iou"]}
    wide = max(len(name) for name in rows)
    heads = ["coarse", *(f"step {i}" for i in range(1, len(result["miou"])))]
    lines = [" " * wide + "".join(f"{head:>9}" for head in heads)]
    lines += [f"{name:<{wide}}" + "".join(f"{100 * value:9.1f}" for value in row) for name, row in rows.items()]
    return "\n".join(lines)


def load_results(paths: Iterable[Path]) -> list[Result]:
    """Results in files, and in folders all that lie there; of a cross-fold table those of its folds.

    Raises:
        InputError: a file that is missing, or that is none of these.
    """
    results: dict[Path, list[Result]] = {}  # a file that is named twice counts once
    for path in paths:
        for file in sorted(p for p in path.rglob("*.json") if p.is_file()) if path.is_dir() else [path]:
            try:
                content = json.loads(file.read_text("utf-8"))
                results[file.resolve()] = [checked(one) for one in content.get("folds", [content])]
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                if path.is_dir() and not isinstance(error, OSError):
                    log.warning("%s is not a result of evaluate and is passed over.", file)  # a folder may hold others
                    continue
                raise InputError(f"{file} is not a result of evaluate ({type(error).__name__}: {error}).") from None
    return [result for found in results.values() for result in found]


def checked(result: Result) -> Result:
    """Raises what ``load_results`` catches where a result lacks what the tables read of it."""
    rows = [result["miou"], *result["per_class"].values()]
    if not all(isinstance(value, float | int) and isfinite(value) for row in rows for value in row) or not all(rows):
        raise ValueError("its IoU are not numbers")
    if not isinstance(result["shots"], int):
        raise ValueError(f"{result['shots']!r} shots")
    if result.get("fold") not in (None, *FOLDS) or isinstance(result.get("fold"), bool):
        raise ValueError(f"there is no fold {result['fold']!r}")
    facts(result)
    return result


def facts(result: Result) -> dict[str, Any]:
    """What tells an evaluation apart: its data, the network, how that was trained, and the coarse masks.

    The authors' weights say nothing of their training; theirs is the paper's.
    """
    network, config, clip = (result.get(key) or {} for key in ("network", "config", "clip"))
    name = network.get("name", "lite")
    own = {"imr-hsnet": "hsnet", "imr-pfenet": "pfenet"}.get(name)
    return {
        "benchmark": result["benchmark"],
        "shots": result["shots"],
        "backbone": network.get("backbone", LITE),
        "neck": own or network.get("neck", "lite"),
        "cell": network.get("cell", "group"),
        "residual": network.get("residual", True),
        "masking": network.get("masking", "features" if own else "correlations"),
        "schedule": config.get("schedule", "same"),
        "start": config.get("start", "coarse"),
        "trained": config.get("steps", STEPS.get(result["benchmark"], LITE_STEPS) if own else LITE_STEPS),
        "coarse": clip.get("method") or str(result.get("coarse")).partition(":")[0],
        "clip": str(result.get("coarse")).partition(":")[2].removesuffix("/openai") or None,
        "clip_side": clip.get("side"),
        "contrast": clip.get("contrast", "softmax"),
        "consensus": result.get("consensus", "off"),
        "true_supports": result.get("true_supports", False),
        "edges": result.get("edges"),
        "prompts": result.get("prompts", "single"),
        "distractors": tuple(result.get("distractors") or ()),
    }


def scaled_down(ours: Mapping[str, Any]) -> dict[str, Any]:
    """The same row on lite's backbone, with lite's coarse masks."""
    steps = LITE_STEPS if ours["trained"] != 1 else 1
    return {**ours, "backbone": LITE, "coarse": "lite", "clip": None, "trained": steps}


def step_of(result: Result, step: int | None) -> int:
    """Whose masks count: ``step``'s; for None those of the step that the network was trained to end with."""
    return int(facts(result)["trained"]) if step is None else step


def find(results: Sequence[Result], wanted: Mapping[str, Any], step: int | None) -> list[Result]:
    """The results of which all of ``wanted`` is true, and that go as far as the step that counts."""
    if step == 0:  # of coarse masks there is no consensus yet
        wanted = {name: value for name, value in wanted.items() if name != "consensus"}
    there = (result for result in results if wanted.items() <= facts(result).items())
    return [result for result in there if step_of(result, step) < len(result["miou"])]


def alike(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Results in groups that may be averaged, by what is not the paper's in their setting and tells no row apart."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        own = facts(result)["backbone"] != LITE
        said = {
            "trained here": own and "config" in result,
            "trained on its classes": bool(result.get("seen")),
            f"the weights of {weights_of(result)}": weights_of(result),
            f"in {result.get('precision')}": result.get("precision", "float32") != "float32",
            "the authors' preprocessing": (result.get("clip") or {}).get("centre"),
            f"scored at {result.get('side')} pixels": result.get("side"),
            f"seen at {result.get('lite_side')} pixels": result.get("lite_side"),
            f"supports by {result.get('aggregate')}": result["shots"] > 1 and result.get("aggregate") == "mean",
        }
        groups.setdefault("; ".join(words for words, true in said.items() if true), []).append(result)
    return groups


def weights_of(result: Result) -> str | None:
    """The data and fold that weights of the authors' are for, as their file is called, where they are not the result's."""
    names = (re.search(r"-(pascal|coco)-(\d)\.", name) for name in result.get("weights") or {})
    given = next((found for found in names if found and "config" not in result), None)
    same = given is None or (given[1], given[2]) == (result["benchmark"], str(result.get("fold")))
    return None if same or given is None else f"{given[1]}-{given[2]}"


def folds_of(results: Sequence[Result], step: int | None) -> tuple[list[float | None], str]:
    """IoU in percent of four folds and their mean, and what must be said of them.

    Results of one fold, such as those of several training seeds, are averaged. Without all four folds the
    mean is over those there are, or of one result over all folds together. ``step`` is that of ``step_of``.
    """
    by_fold: dict[int | None, list[float]] = {}
    for result in results:
        by_fold.setdefault(result.get("fold"), []).append(100 * result["miou"][step_of(result, step)])
    means = {fold: float(np.mean(values)) for fold, values in by_fold.items()}
    there = [fold for fold in FOLDS if fold in means]
    values: list[float | None] = [means.get(fold) for fold in FOLDS]
    notes = []
    if there:
        values.append(float(np.mean([means[fold] for fold in there])))
        if len(there) < len(FOLDS):
            notes.append(f"mean of fold {', '.join(map(str, there))}")
    else:
        values.append(means.get(None))
        if None in means:
            notes.append("all folds together")
    lacking = {name for result in results for key in ("skipped", "unreached") for name in result.get(key) or ()}
    if lacking:
        notes.append(f"without {', '.join(sorted(lacking)[:3])}{', ...' if len(lacking) > 3 else ''}")
    most = max((len(values) for values in by_fold.values()), default=0)
    if most > 1:
        notes.append(f"mean of up to {most} runs")
    return values, "; ".join(notes)


def render(table: Table, results: Sequence[Result]) -> str:
    """A table of the paper, its rows as published, and below each that ours repeats, ours."""
    name = FOLD_NAMES[table.benchmark]
    lines = [[*table.heads, "", *(name.format(fold) for fold in FOLDS), "Mean", ""]]
    for row in table.rows:
        if row.values:
            lines.append([*row.name, "paper", *map(number, row.values), ""])
        for label, wanted in variants(row):
            groups = alike(find(results, wanted, row.step)) or ({"": []} if label == OURS else {})
            for setting, found in groups.items():
                values, note = folds_of(found, row.step)
                heads = costs(row) if label == OURS and table.number == COSTED else None
                heads = heads or (["" if row.values else name for name in row.name])
                mean = NOT_RUN if values[-1] is None else number(values[-1])
                lines.append([*heads, label, *map(number, values[:-1]), mean, "; ".join(filter(None, (setting, note)))])
    wide = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    names = len(table.heads) + 1
    text = [
        "  ".join(f"{word:<{w}}" if i < names or i == len(wide) - 1 else f"{word:>{w}}"
                  for i, (word, w) in enumerate(zip(line, wide, strict=True))).rstrip()
        for line in lines
    ]  # fmt: skip
    return "\n".join([f"Table {table.number}: {table.title}", *text])


def variants(row: Row) -> list[tuple[str, Mapping[str, Any]]]:
    """What to look for: the row as the paper has it, the same on lite's backbone, and lite in its place."""
    if row.ours is None:
        return []
    ours = {**PLAIN, **row.ours}
    if ours.get("coarse") != "lite":
        ours["clip"] = CLIP
    out: list[tuple[str, Mapping[str, Any]]] = [(OURS, ours)]
    if ours.get("backbone") == "resnet50":
        small = scaled_down(ours)
        out.append(("ours, lite's backbone", small))
        if small["neck"] == "hsnet" and small["residual"]:
            out.append(("ours, lite", {**small, "neck": "lite"}))
    return out


def costs(row: Row) -> list[str] | None:
    """The first columns of the table of cells, counted anew."""
    if row.name[0] not in CELLS:
        return None
    own = cost(CELLS[row.name[0]])
    return ["", f"{own.parameters / 1e6:.1f}M", f"{own.step / 1e9:.1f}G, once {own.once / 1e9:.1f}G"]


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def report(results: Sequence[Result], numbers: Sequence[str] = ()) -> str:
    """The paper's tables, all or those of ``numbers`` ("1" to "6", "S2" to "S7").

    Raises:
        InputError: there is no table of that number.
    """
    known = {table.number: table for table in TABLES}
    unknown = [n for n in numbers if n not in known]
    if unknown:
        raise InputError(f"There is no table {unknown[0]}. Tables: {', '.join(known)}.")
    chosen = [known[n] for n in numbers] if numbers else list(TABLES)
    used = len({id(r) for t in chosen for row in t.rows for _, w in variants(row) for r in find(results, w, row.step)})
    head = f"mIoU in percent. {used} of {len(results)} results appear; “{NOT_RUN}” is what there is no result of."
    return "\n\n".join([head, *(render(table, results) for table in chosen)])
