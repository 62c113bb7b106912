"""Results as files: binary masks, the panel of all steps, and ``result.json``."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from imrseg import locks
from imrseg.errors import InputError
from imrseg.images import ImageSource, open_picture
from imrseg.postprocess import iou

if TYPE_CHECKING:
    from imrseg.run import Result
    from imrseg.segmenter import Segmenter

MASK_NAME = re.compile(r"(query|support\d+)_step\d+\.png")
PANEL = "panel.png"
RECORDS = (PANEL, "result.json", "manifest.json")


def write_result(
    result: Result,
    out: Path,
    *,
    query: ImageSource,
    supports: Sequence[ImageSource],
    segmenter: Segmenter,
) -> dict[str, Any]:
    """Write everything a run has found into the folder ``out``, all of it or nothing.

    ``query_step0.png`` ... and ``support1_step0.png`` ...: 8-bit, 0 or 255, the picture's own size;
    ``panel.png``: all steps side by side; ``result.json``: what is returned.

    Args:
        result: from ``segmenter.segment(query, supports, ...)``.
        out: made if need be. Files of the same names are replaced, others stay, but for masks and a manifest that
            an earlier run left there.
        query, supports: the pictures of the run.
        segmenter: the one that made the result.

    Returns:
        The content of ``result.json``. All but its ``"seconds"``, by stage and of each step, is the same in every
        run; paths in it are relative to ``out``.

    Raises:
        InputError: ``out`` cannot be a folder, or cannot be written; a picture is one of the files that would be
            replaced.
    """
    from imrseg import visualize

    opened = open_picture(query)
    pictures = [open_picture(s) for s in supports]
    check_apart(out, [query, *supports])
    with staged(out) as folder:
        steps, before = [], None
        for step in result.steps:
            cut = step.cut(result.threshold)
            found = step.query_mask >= cut
            names = [f"query_step{step.index}.png"]
            names += [f"support{i}_step{step.index}.png" for i in range(1, len(pictures) + 1)]
            for name, mask in zip(names, [found, *(m >= cut for m in step.support_masks)], strict=True):
                (folder / name).write_bytes(encode_mask(mask))
            steps.append(
                {
                    "step": step.index,
                    "query": names[0],
                    "supports": names[1:],
                    "covered": int(np.count_nonzero(found)) / found.size,
                    "iou_with_previous": None if before is None else iou(before, found),
                    "seconds": step.seconds,
                }
            )
            before = found
        picture = visualize.panel(
            opened.pixels, [p.pixels for p in pictures], result.steps, result.threshold, result.label
        )
        (folder / PANEL).write_bytes(encode_picture(picture))
        record = {
            "label": result.label,
            "query": opened.name,
            "supports": [p.name for p in pictures],
            "size": {"width": opened.size[1], "height": opened.size[0]},
            **describe(segmenter),
            **result.options.record(),
            "aggregate": result.steps[0].how,
            "threshold": result.threshold,
            "confidence": result.confidence,
            "warnings": result.warnings,
            "steps": steps,
            "panel": PANEL,
            "seconds": result.seconds,
        }
        write_json(folder / "result.json", record)
    return record


def describe(segmenter: Segmenter) -> dict[str, Any]:
    """The preset, its coarse masker, and their weights by file name with their SHA-256."""
    clip = segmenter.masker.settings
    return {
        "preset": segmenter.preset.name,
        "coarse": segmenter.masker.name,
        "clip": None if clip is None else {**asdict(clip), "vocabulary": list(clip.vocabulary)},
        "precision": segmenter.precision,
        "lite_side": segmenter.network.side,
        "weights": segmenter.hashes,
    }


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A new folder whose files move into ``out`` when the block ends well, and vanish when it does not.

    It lies inside ``out`` where that exists, else in the nearest folder above it that does: on the
    same disk, so that moving is renaming.

    Raises:
        InputError: ``out`` or a folder above it is a file, or cannot be written.
    """
    out = Path(out).absolute()
    with writing(out):
        home = home_of(out)
        folder = home / f".imrseg-{uuid.uuid4().hex}"
        folder.mkdir()
        try:
            yield folder
            _move(folder, out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def home_of(out: Path) -> Path:
    """The nearest folder there is, ``out`` itself or above it.

    Raises:
        InputError: there is a file in its place, or a link that leads nowhere.
    """
    home = next(p for p in (out, *out.absolute().parents) if p.exists() or p.is_symlink())
    if not home.is_dir():
        what = "is a file" if home.exists() else "is a link that leads nowhere"
        raise InputError(f"“{home}” {what}; the results need a folder.")
    return home


def check_apart(out: Path, sources: Sequence[ImageSource]) -> None:
    """See that results in ``out`` will replace none of the pictures that they are of.

    Raises:
        InputError: a picture lies there, under the name of a result.
    """
    home = os.path.realpath(out)
    for source in sources:
        if not isinstance(source, (str, Path)):
            continue
        path = Path(os.path.realpath(source))
        if str(path.parent) == home and (path.name == PANEL or MASK_NAME.fullmatch(path.name)):
            raise InputError(f"“{path}” is one of the pictures, and a result would replace it. Choose another folder.")


def check_zip(path: Path, out: Path, names: Iterable[str]) -> None:
    """See that a ZIP and the results in ``out`` and its folders ``names`` do not stand in each other's way.

    Raises:
        InputError: they do.
    """
    place, home = Path(os.path.realpath(path)), Path(os.path.realpath(out))
    folders = [home, *(home / name for name in names)]
    if place in (*folders, *home.parents):
        raise InputError(f"“{path}” is where the results' folder is to be. Give the ZIP another name.")
    if place.parent in folders and (place.name in RECORDS or MASK_NAME.fullmatch(place.name)):
        raise InputError(f"“{path}” would replace one of the results. Give the ZIP another name.")


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Says where writing failed, and why, in a sentence.

    Raises:
        InputError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"“{out}” cannot be written ({why}). Make room there, or choose another place.") from error


def check_target(path: Path, sources: Sequence[Path] = ()) -> None:
    """See that a file can be written there, before hours of work for it; nothing is left behind.

    Args:
        sources: files that it is made of, and must not replace.

    Raises:
        InputError: it cannot.
    """
    with writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.exists() and not path.is_file():
            raise InputError(f"“{path}” is a device or a pipe. Give the path of a file.")
        if path.exists() and any(source.exists() and source.samefile(path) for source in sources):
            raise InputError(f"“{path}” is one of the pictures, and would be replaced. Choose another name.")
        with tempfile.TemporaryFile(dir=next(p for p in path.absolute().parents if p.exists())):
            pass


def _move(folder: Path, out: Path) -> None:
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.rename(out)
            return
        except OSError:
            if not out.is_dir():  # else another process was first
                raise
    with locks.holding(out):
        _merge(folder, out)


def _merge(folder: Path, out: Path) -> None:
    """Files of ``folder`` into ``out``. Nothing is touched before every place has been seen to be free for them."""
    files = [p.relative_to(folder) for p in folder.rglob("*") if p.is_file()]
    for file in files:
        home_of((out / file).parent)
        if (out / file).is_dir():
            raise InputError(f"“{out / file}” is a folder, where a file of the results goes.")
    for file in files:  # from now on until the end there is none, so that none speaks of another result's masks
        if file.suffix == ".json":
            (out / file).unlink(missing_ok=True)
    for file in sorted(files, key=lambda p: p.suffix == ".json"):  # a record comes after what it names
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).replace(out / file)
    if Path("manifest.json") in files:
        # Those of an earlier run of one query and label, the record first.
        for old in sorted(results_in(out), key=lambda p: p.suffix != ".json"):
            if old.name != "manifest.json":
                old.unlink()
    if Path("result.json") in files:  # whose manifest names other results
        (out / "manifest.json").unlink(missing_ok=True)
    for record in (f for f in files if f.name == "result.json"):
        for old in (out / record).parent.glob("*_step*.png"):
            if MASK_NAME.fullmatch(old.name) and record.with_name(old.name) not in files:
                old.unlink()


def results_in(folder: Path) -> list[Path]:
    """The files of the result that lies in a folder itself; none where there is no ``result.json``."""
    if not (folder / "result.json").is_file():
        return []
    return [p for p in folder.iterdir() if p.name in RECORDS or MASK_NAME.fullmatch(p.name)]


def encode_mask(mask: np.ndarray) -> bytes:
    """A bool (H, W) mask as an 8-bit grey PNG of 0 and 255."""
    return cv2.imencode(".png", mask.view(np.uint8) * 255)[1].tobytes()


def encode_picture(pixels: np.ndarray) -> bytes:
    """uint8 (H, W, 3) RGB as PNG."""
    return cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` as JSON, whole or not at all; folders above ``path`` are made.

    Raises:
        InputError: it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
        try:
            part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8", "backslashreplace")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
