"""What a run has found, to take away: every format in one ZIP, with the command that repeats the run.

``Found`` is one label in one query, as the page and the command line both have it at the end of a run.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import shlex
import unicodedata
import uuid
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from imrseg import __version__, weights
from imrseg.coarse.maskers import ClipSettings
from imrseg.errors import InputError, install
from imrseg.export import check_target, describe, encode_mask, encode_picture, writing
from imrseg.images import open_picture
from imrseg.run import Options, Result, Step
from imrseg.segmenter import Segmenter
from imrseg.visualize import overlay

MAX_LABELS = 255  # of one query: what an 8-bit picture tells apart
OVERLAY_PIXELS = 16_000_000  # an overlay is to look at; of larger pictures it is reduced to this
MAX_NAME = 120  # bytes of what a file's name is made from; with all that follows 255 are allowed
RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[\d¹²³])(\..*)?", re.IGNORECASE)  # on Windows
PACKED = {".png", ".gif", ".webp", ".npz"}  # would not become smaller in a ZIP

FILES = {
    "mask.png": "the mask: 255 inside, 0 outside, the picture's own size",
    "cutout.png": "the object alone, the rest transparent, the picture's own size",
    "overlay.png": "the mask laid over the picture",
    "figure.png, .pdf, .svg": "all steps side by side",
    "animation.gif, .webp": "all steps one after the other",
    "soft_masks.npz": "soft masks of all steps, float32 in 0 to 1, at the network's size (numpy.load)",
    "labels.png": "all labels of a picture: each has its value, which settings.json tells; 0 is none",
    "labels_overlay.png": "the same in colours, with a legend",
    "coco_rle.json": "all masks for COCO's tools, exact, as run lengths",
    "coco_polygons.json": "the same as polygons: outlines within a pixel, holes filled",
    "settings.json": "models with the SHA-256 of their files, options, and what was found",
    "README.txt": "this list, and the command that repeats the run",
}


@dataclass(frozen=True, eq=False)
class Found:
    """One label in one query.

    Attributes:
        label, steps, threshold, warnings, confidence, options: as in ``Result``.
        query: the picture's file.
        supports: of each support; () in zero-shot.
    """

    label: str
    steps: Sequence[Step]
    threshold: float
    warnings: Sequence[str]
    confidence: float | None
    options: Options
    query: Path
    supports: Sequence[Path]

    @classmethod
    def of(cls, result: Result, query: str | Path, supports: Sequence[str | Path]) -> Found:
        return cls(
            result.label, result.steps, result.threshold, result.warnings, result.confidence, result.options,
            Path(query), [Path(support) for support in supports],
        )  # fmt: skip

    @property
    def cut(self) -> float:
        """The level at which the last soft mask is cut."""
        return self.steps[-1].cut(self.threshold)

    @property
    def soft(self) -> np.ndarray:
        """The query's last mask, float32 (H, W) in [0, 1] at its own size. Made anew each time."""
        return self.steps[-1].query_mask


def write_zip(path: str | Path, founds: Sequence[Found], segmenter: Segmenter) -> None:
    """Write everything about a run into one ZIP, whole or not at all; folders above it are made.

    The same run gives the same bytes.

    Args:
        path: of the ZIP; replaced where it exists.
        founds: at least one: every label in every query of the run.
        segmenter: the one that found them.

    Raises:
        InputError: nothing was found yet, a picture is no longer there, a query has more than 255 labels,
            what the figures need is not installed, or it cannot be written or is one of the pictures.
    """
    path = Path(path)
    check_target(path, [source for found in founds for source in (found.query, *found.supports)])
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
        try:
            with zipfile.ZipFile(part, "w") as archive:
                for name, content in contents(founds, segmenter):
                    entry = zipfile.ZipInfo(name)  # dated 1980
                    entry.create_system, entry.external_attr = 3, 0o644 << 16
                    packed = Path(name).suffix in PACKED
                    archive.writestr(entry, content, zipfile.ZIP_STORED if packed else zipfile.ZIP_DEFLATED)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def check_packages() -> None:
    """See that what a ZIP is made with is installed.

    Raises:
        InputError: it is not.
    """
    try:
        for name in ("matplotlib", "pycocotools"):
            importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"The ZIP needs more packages: {install('app')} ({error}).") from None


def contents(founds: Sequence[Found], segmenter: Segmenter) -> Iterator[tuple[str, bytes]]:
    """Each file of the ZIP, its name and bytes, as soon as it is made.

    A folder for each query, in it one for each label; pictures that show all labels where there are
    several; then what covers the whole run.
    """
    check_packages()
    from imrseg import coco, figures

    if not founds:
        raise InputError("There is nothing to save yet: run first.")
    by_query: dict[Path, list[Found]] = {}
    for found in founds:
        by_query.setdefault(found.query, []).append(found)
    if max(map(len, by_query.values())) > MAX_LABELS:
        raise InputError(f"One picture has too many labels. Accepted: up to {MAX_LABELS}.")

    names_of = names_apart(by_query, links=True)
    support = cache(lambda path: open_picture(path).pixels)
    folders: list[str] = list(FILES)
    images, results = [], []
    for query, here in by_query.items():
        picture = open_picture(query, side=None)
        viewed = bounded(picture.pixels)
        folder = safe_name(query.stem, folders)
        folders.append(folder)
        inside = list(FILES)
        shapes = []
        for value, found in enumerate(here, 1):
            place = safe_name(found.label, inside)
            inside.append(place)
            place = f"{folder}/{place}"
            mask = found.soft >= found.cut
            shapes.append(coco.shape(mask, found.label, found.confidence))
            yield f"{place}/mask.png", encode_mask(mask)
            yield f"{place}/cutout.png", encode_cutout(cutout(picture.pixels, mask))
            yield f"{place}/overlay.png", encode_picture(overlay(viewed, bounded(mask.astype(np.uint8)) > 0))
            shown = [viewed, *map(support, found.supports)]
            for name, draw in (("figure", figures.figure), ("animation", figures.animation)):
                for kind, content in draw(shown, found.steps, found.threshold, found.label).items():
                    yield f"{place}/{name}.{kind}", content
            yield f"{place}/soft_masks.npz", encode_soft_masks(found, segmenter, names_of[query])
            settings_ = run_settings(found, names_of[query]) | {"covered": float(mask.mean())}
            results.append({"folder": place, "value": value, **settings_})
        if len(here) > 1:
            index = label_map(here)
            colours = figures.palette(len(here))
            coloured = figures.labelled(viewed, bounded(index), [found.label for found in here])
            yield f"{folder}/labels.png", encode_label_map(index, colours)
            yield f"{folder}/labels_overlay.png", encode_picture(coloured)
        images.append((names_of[query], picture.size, shapes))
    for segmentation in coco.SEGMENTATIONS:
        yield f"coco_{segmentation}.json", encode_json(coco.dataset(images, segmentation))
    again = command(founds, segmenter)
    yield "settings.json", encode_json({**model_settings(segmenter), "command": again, "results": results})
    yield "README.txt", readme(results, again).encode("utf-8", "backslashreplace")


def command(founds: Sequence[Found], segmenter: Segmenter) -> str:
    """What to type to repeat the run, in the folder that holds the pictures.

    One line, where all labels were looked for in all queries in the same way; else a line for each way, with
    a folder of its own. Names of files stand without their folders, and options that are the default are left out.
    Where two files have one name, a line before says what the second is called here.
    """
    names_of = names_apart([found.query for found in founds] + [path for found in founds for path in found.supports])
    labels: dict[tuple[Path, tuple[str, ...]], list[str]] = {}
    for found in founds:
        labels.setdefault((found.query, options_of(found, segmenter, names_of)), []).append(found.label)
    queries: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Path]] = {}
    for (query, options), wanted in labels.items():
        queries.setdefault((tuple(wanted), options), []).append(query)
    another = [
        (" ".join(name.split()), " ".join(path.name.split())) for path, name in names_of.items() if name != path.name
    ]
    lines = [f"# {name} is another {known}: save it so." for name, known in another]
    for number, ((names, options), paths) in enumerate(queries.items(), 1):
        words = ["python", "-m", "imrseg", "segment", "--query", *(file_word(names_of[path]) for path in paths)]
        words += [word for name in names for word in option("--label", name)]
        out = "results" if len(queries) == 1 else f"results-{number}"  # one line would take another's results away
        lines.append(shlex.join([*words, *options, "--out", out]))
    return "\n".join(lines)


def names_apart(paths: Iterable[Path], links: bool = False) -> dict[Path, str]:
    """The names of files, each another: what would be a second 01.jpg is 01-2.jpg.

    Args:
        links: links are files of their own; else they go by the name of what they lead to.
    """
    names: dict[Path, str] = {}
    of_file: dict[str, str] = {}
    for path in paths:
        wish = (path.name, *(f"{path.stem}-{i}{path.suffix}" for i in range(2, len(names) + 3)))
        free = next(name for name in wish if name not in of_file.values())
        names[path] = of_file.setdefault(str(path) if links else os.path.realpath(path), free)
    return names


def options_of(found: Found, segmenter: Segmenter, names_of: Mapping[Path, str]) -> tuple[str, ...]:
    """The words of ``command`` that are neither queries nor labels."""
    preset, masker, network = segmenter.preset, segmenter.masker, segmenter.network
    clip = masker.settings or ClipSettings()
    given: list[tuple[str, Any, Any]] = [  # an option, its value, and its default
        ("--steps", len(found.steps) - 1, preset.steps),
        ("--threshold", found.threshold, 0.5),
        ("--aggregate", found.steps[0].how, preset.aggregate),
        *(("--not", word, None) for word in found.options.distractors),
        ("--prompts", found.options.prompts, "single"),
        ("--edges", found.options.edges, None),
        ("--edges-on", found.options.edges_on if found.options.edges else "last", "last"),
        ("--consensus", found.options.consensus, "on" if network.traits else "off"),
        ("--preset", preset.name, "lite"),
        ("--checkpoint", *own_checkpoint(segmenter)),
        ("--precision", segmenter.precision, "float32"),
        ("--lite-side", network.side, None),
        ("--coarse", masker.name, {"clip": "clip:RN50"}.get(preset.coarse, preset.coarse)),
        ("--clip-method", clip.method, "gradcam"),
        ("--clip-contrast", clip.contrast, "softmax"),
        ("--clip-side", clip.side, None),
    ]
    words = ["--support", *(file_word(names_of[path]) for path in found.supports)] if found.supports else []
    words += [word for name, value, usual in given if value != usual for word in option(name, str(value))]
    return tuple(words)


def own_checkpoint(segmenter: Segmenter) -> tuple[str, str]:
    """The name of the network's file, and what it is where the file is the preset's own, "" where it is another's."""
    file, usual = segmenter.network.file, segmenter.preset.checkpoint
    another = file.name == usual and weights.have(usual) and weights.find(usual) != file
    return file.name, "" if another else usual


def option(name: str, value: str) -> list[str]:
    """The words of one option; a value that looks like an option is tied to it."""
    return [f"{name}={value}"] if value.startswith("-") else [name, value]


def file_word(name: str) -> str:
    return f"./{name}" if name.startswith("-") else name


def model_settings(segmenter: Segmenter) -> dict[str, Any]:
    return {"imrseg": __version__, **describe(segmenter), "device": str(segmenter.device)}


def run_settings(found: Found, query: str = "") -> dict[str, Any]:
    """How a label was looked for, and what was said about it; ``query`` where the picture is not called as its file is."""
    height, width = found.steps[-1].query_size
    return {
        "label": found.label,
        "query": query or found.query.name,
        "supports": [path.name for path in found.supports],
        "size": {"width": width, "height": height},
        "steps": len(found.steps) - 1,
        "threshold": found.threshold,
        **asdict(found.options),
        "aggregate": found.steps[0].how,
        "confidence": found.confidence,
        "warnings": list(found.warnings),
    }


def readme(results: Sequence[dict[str, Any]], again: str) -> str:
    found = [f"  {r['folder']}: “{r['label']}” covers {r['covered']:.1%} of {r['query']}" for r in results]
    files = [f"  {name:23} {words}" for name, words in FILES.items()]
    return "\n".join(
        [f"Masks found by imrseg {__version__}.", "", *found, "", "Files:", "", *files, "",
         "To repeat the run, in the folder that holds the pictures (they are not in here):", "", again, ""]
    )  # fmt: skip


def bounded(pixels: np.ndarray) -> np.ndarray:
    """A picture uint8 (H, W, 3), or numbers uint8 (H, W) of its pixels, reduced to ``OVERLAY_PIXELS`` if need be."""
    h, w = pixels.shape[:2]
    scale = (OVERLAY_PIXELS / (h * w)) ** 0.5
    if scale >= 1:
        return pixels
    how = cv2.INTER_AREA if pixels.ndim == 3 else cv2.INTER_NEAREST
    return cv2.resize(pixels, (max(1, int(w * scale)), max(1, int(h * scale))), interpolation=how)


def cutout(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The object alone, uint8 (H, W, 4) RGBA; what cannot be seen is black, so nothing hides there.

    Opacity at the edge is the share of inside pixels among the nine around: 128 or more inside the
    mask, less outside, and only a pixel on either side is between 0 and 255.

    Args:
        pixels: uint8 (H, W, 3) RGB. mask: bool (H, W).
    """
    share = cv2.blur(mask.astype(np.uint8) * 255, (3, 3))
    opacity = np.where(mask, np.maximum(share, 128), np.minimum(share, 127))
    return np.dstack([np.where(opacity[..., None] > 0, pixels, 0), opacity]).astype(np.uint8)


def label_map(founds: Sequence[Found]) -> np.ndarray:
    """All labels of one query in one picture, uint8 (H, W): 0 for none, k for the k-th.

    Where masks overlap, the label whose soft mask is higher, as a multiple of its cut, takes the pixel.
    """
    size = founds[0].steps[-1].query_size
    index, best = np.zeros(size, np.uint8), np.full(size, -1, np.float32)
    for k, found in enumerate(founds, 1):
        soft = found.soft
        height = soft / max(found.cut, 1e-6)
        takes = (soft >= found.cut) & (height > best)
        index[takes], best[takes] = k, height[takes]
    return index


def encode_cutout(pixels: np.ndarray) -> bytes:
    """uint8 (H, W, 4) RGBA as PNG."""
    return cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGRA))[1].tobytes()


def encode_label_map(index: np.ndarray, colours: np.ndarray) -> bytes:
    """uint8 (H, W) as a PNG with a palette: the numbers stay, and are seen in ``colours``, uint8 (K + 1, 3) RGB."""
    image = Image.fromarray(index, "L")
    image.putpalette(colours.tobytes())
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def encode_soft_masks(found: Found, segmenter: Segmenter, query: str = "") -> bytes:
    """The soft masks of all steps at the network's size, as NPZ without pickles.

    ``query_step0`` ..., ``support1_step0`` ...: float32 (h, w) in [0, 1]; with several supports also
    ``query_step1_each`` ...: (K, h, w), the query's masks by support, of which ``query_step1`` is made.
    ``query_size``, ``support1_size`` ...: height and width of the pictures; ``levels``, ``cuts``: float64,
    for each step (``Step``); ``settings``: JSON, in which ``query`` is the picture's name where that is not its file's.
    """
    arrays: dict[str, Any] = {}
    for step in found.steps:
        arrays[f"query_step{step.index}"] = step.query_at(step.query_soft.shape[-2:])
        if len(step.query_soft) > 1:
            arrays[f"query_step{step.index}_each"] = step.query_soft
        arrays |= {f"support{k}_step{step.index}": soft for k, soft in enumerate(step.support_soft, 1)}
    last = found.steps[-1]
    arrays["query_size"] = np.asarray(last.query_size)
    arrays |= {f"support{k}_size": np.asarray(size) for k, size in enumerate(last.support_sizes, 1)}
    arrays["levels"] = np.asarray([step.level for step in found.steps])
    arrays["cuts"] = np.asarray([step.cut(found.threshold) for step in found.steps])
    arrays["settings"] = np.asarray(json.dumps({**model_settings(segmenter), **run_settings(found, query)}))
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def encode_json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def safe_name(wish: str, taken: Collection[str]) -> str:
    """A file's name made from ``wish`` that every system takes, other than those in ``taken``."""
    plain = (
        re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", wish))[:60].encode()[:MAX_NAME].decode(errors="ignore")
    )
    plain = plain.strip("-.") or "unnamed"
    plain = f"_{plain}" if RESERVED.fullmatch(plain) else plain
    folded = {name.casefold() for name in taken}  # some file systems do not tell case apart
    names = [plain, *(f"{plain}-{i}" for i in range(2, len(folded) + 3))]
    return next(name for name in names if name.casefold() not in folded)
