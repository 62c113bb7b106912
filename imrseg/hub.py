"""The weights that imrseg knows by name: where each comes from, what to do where it is missing, downloads.

A download stays ``NAME.part`` until all of it is there and its SHA-256 is the published one; only then
is it moved into place. So a file of that name in the cache is whole.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from threading import Thread
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import torch
from tqdm import tqdm

from imrseg.errors import WeightsError
from imrseg.locks import alone

ANSWER = 4.0  # seconds within which a hub must have answered, name look-up included
STALL = 30.0  # seconds without a byte after which a download is given up
BLOCK = 2**16  # bytes

AUTHORS = "https://github.com/Whileherham/IMR-HSNet"
OWN_TRAINING = "docs/paper.md"  # where weights come from that nobody has published
AUTHORS_DRIVE = "https://drive.google.com/drive/folders/1fB3_jUEw972lDZIs3_S7lj2F5rZVq4Nu"
RN50_SHA256 = "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"


def cache() -> Path:
    """The user's folder for weights."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "imrseg"


def clip_cache() -> Path:
    """Where OpenAI's ``clip`` and open_clip keep their downloads."""
    return Path(os.path.expanduser("~/.cache/clip"))


def torch_cache() -> Path:
    """Where torchvision keeps its downloads."""
    return Path(torch.hub.get_dir()) / "checkpoints"


@dataclass(frozen=True)
class Known:
    """One file of weights.

    Attributes:
        name: of the file.
        what: it holds.
        origin: where a person finds it and reads about it.
        licence: of the weights.
        size: in bytes. sha256: of the file, hexadecimal. None: nobody has published it.
        url: what ``download`` takes; None: it cannot be downloaded, ``missing`` says what to do.
        shared: another program's cache, where it may lie already.
    """

    name: str
    what: str
    origin: str
    licence: str
    size: int | None = None
    sha256: str | None = None
    url: str | None = None
    shared: Callable[[], Path] | None = None


def _torchvision(name: str, what: str, sha256: str, size: int | None) -> Known:
    return Known(
        name=name,
        what=f"{what} trained on ImageNet, where training IMR-HSNet begins",
        origin="https://github.com/pytorch/vision",
        licence="BSD-3-Clause",
        size=size,
        sha256=sha256,
        url=f"https://download.pytorch.org/models/{name}",
        shared=torch_cache,
    )


KNOWN = {
    row.name: row
    for row in (
        Known(
            name="lite.safetensors",
            what="the lite network and its class vectors",
            origin="checkpoints/README.md",
            licence="Apache-2.0; trained on PASCAL VOC 2012 and MSRC v2, see checkpoints/README.md",
            size=1444324,
            sha256="b9a98cb12ff4354e0f620a039217d7a33b5ae073db82e8f12fb932c03843f46b",
        ),
        Known(
            name="lite-text.safetensors",
            what="lite's lexicon",
            origin="checkpoints/README.md",
            licence="Apache-2.0; from WordNet 3.0 and all-MiniLM-L6-v2, see checkpoints/README.md",
            size=7667821,
            sha256="0c5a30605dfa277c301b5d90ed33128dcf8f78a35a7c2d620c415641370317be",
        ),
        Known(
            name="RN50.pt",
            what="OpenAI's CLIP with a ResNet50, as a TorchScript archive",
            origin="https://github.com/openai/CLIP",
            licence="MIT",
            size=255827503,
            sha256=RN50_SHA256,
            url=f"https://openaipublic.azureedge.net/clip/models/{RN50_SHA256}/RN50.pt",
            shared=clip_cache,
        ),
        *(
            Known(
                name=f"imr-hsnet-{backbone}-{data}-{fold}.safetensors",
                what=f"the authors' IMR-HSNet on {backbone}, {data}, fold {fold}",
                origin=AUTHORS_DRIVE,
                licence="none: the authors published their weights without a licence",
            )
            for backbone in ("resnet50", "vgg16")
            for data in ("pascal", "coco")
            for fold in range(4)
        ),
        Known(
            name="imr-pfenet-resnet50.safetensors",
            what="IMR-PFENet on ResNet50",
            origin=OWN_TRAINING,
            licence="none: nobody has published weights of it",
        ),
        _torchvision(
            "resnet50-0676ba61.pth",
            "ResNet50",
            "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
            102530333,
        ),
        _torchvision(
            "resnet101-63fe2227.pth",
            "ResNet101",
            "63fe2227b86e8f1f2063f43a75c84d195911b6a0eace650907dd3dc62dd49a0a",
            None,
        ),
        _torchvision(
            "vgg16-397923af.pth",
            "VGG16",
            "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
            553433881,
        ),
    )
}


def missing(name: str) -> str:
    """What to put where, in a sentence, so that ``weights.find(name)`` finds it."""
    row = KNOWN.get(name)
    if row is None:
        return f"Put it into {cache()}, or give its path."
    if row.url is not None:
        return f"Fetch it with: python -m imrseg weights fetch {name} (or {_by_hand(row)})."
    if row.origin == AUTHORS_DRIVE:
        return (
            f"Download best_model.pt of {row.what} by hand from {row.origin} (linked from {AUTHORS}), then run: "
            f"python -m imrseg weights convert best_model.pt {cache() / name}"
        )
    if row.origin == OWN_TRAINING:
        return (
            f"Nobody has published weights of {row.what}. Train them (python -m imrseg train --config"
            f" {Path(name).stem} ...) and put the file into {cache()}, or give its path."
        )
    return f"It comes with imrseg, in the folder checkpoints: install imrseg again, or put it into {cache()}."


def sha256(path: Path) -> str:
    """The file's SHA-256, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(row: Known, folder: Path) -> Path:
    """The file of ``row`` in ``folder``, downloaded unless it is there and whole.

    What an earlier download left behind is taken up where the hub allows it. Processes that ask for
    the same file wait for each other. Progress is shown on a terminal.

    Raises:
        WeightsError: no url, no connection within ``ANSWER`` seconds, no byte for ``STALL`` seconds, the
            hub has something else than was published, or the folder cannot be written.
    """
    if row.url is None:
        raise WeightsError(f"“{row.name}” cannot be downloaded. {missing(row.name)}")
    target = folder / row.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        wait = f"{row.name} is being downloaded by another process; waiting for it."
        with alone(folder / f".{row.name}.lock", wait):
            if not (target.is_file() and sha256(target) == row.sha256):
                _replace(row, target)
    except OSError as error:
        raise WeightsError(
            f"{row.name} cannot be written to {folder} ({error.strerror or error}). "
            "Make room there and writable, or name another folder by the variable XDG_CACHE_HOME."
        ) from error
    return target


def _replace(row: Known, target: Path) -> None:
    part = target.with_name(f"{row.name}.part")
    if part.is_symlink():  # not ours: what it leads to would be written over
        part.unlink()
    while True:
        resumed = part.is_file() and part.stat().st_size > 0
        _fill(row, part)
        digest = sha256(part)
        if digest == row.sha256:
            os.replace(part, target)
            return
        part.unlink()
        if not resumed:
            raise _failure(row, f"what it sent has the SHA-256 {digest}, not {row.sha256}, and was removed")
        # The hub's file may have changed between the two halves: begin anew.


def _fill(row: Known, part: Path) -> None:
    """Append to ``part`` what it lacks, or write all of it where the hub cannot begin in the middle."""
    have = part.stat().st_size if part.is_file() else 0
    if row.size is not None and have >= row.size:
        return  # whole or wrong: the SHA-256 tells
    answer = _ask(row, have)
    if answer is None:
        return
    with answer:
        resumes = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        have = have if resumes else 0
        offered = None if answer.length is None else have + answer.length
        if row.size is not None and offered is not None and offered != row.size:
            raise _failure(row, f"it has a file of {offered} bytes, not of {row.size}")
        size = row.size or offered
        bar = tqdm(total=size, initial=have, unit="B", unit_scale=True, desc=row.name, disable=None)
        with bar, part.open("ab" if resumes else "wb") as file:
            for block in _blocks(row, answer):
                file.write(block)
                bar.update(len(block))
                have += len(block)
                if size is not None and have > size:
                    return  # wrong
    if size is not None and have < size:
        raise _failure(row, f"the connection ended after {have} of {size} bytes, and the next try goes on from there")


def _ask(row: Known, have: int) -> HTTPResponse | None:
    """The hub's answer, from byte ``have`` on if it can; None: it has nothing beyond that byte.

    Looking up a name knows no time limit, so another thread asks.
    """
    assert row.url is not None
    headers = {"User-Agent": "imrseg"} | ({"Range": f"bytes={have}-"} if have else {})
    request, future = Request(row.url, headers=headers), Future[HTTPResponse]()

    def ask() -> None:
        try:
            future.set_result(urlopen(request, timeout=STALL))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=ask, daemon=True).start()
    try:
        return future.result(ANSWER)
    except HTTPError as error:
        error.close()
        if error.code == 416 and have:
            return None
        raise _failure(row, f"it answered {error.code} {error.reason}") from error
    except TimeoutError as error:
        raise _failure(row, f"there was no answer within {ANSWER:g} s") from error
    except (OSError, HTTPException) as error:
        raise _failure(row, str(getattr(error, "reason", "") or error)) from error


def _blocks(row: Known, answer: HTTPResponse) -> Iterator[bytes]:
    try:
        while block := answer.read1(BLOCK):
            yield block
    except TimeoutError as error:
        raise _failure(row, f"nothing came for {STALL:g} s, and the next try goes on from here") from error
    except (OSError, HTTPException) as error:
        raise _failure(row, f"the connection broke ({error}), and the next try goes on from here") from error


def _failure(row: Known, why: str) -> WeightsError:
    host = urlsplit(row.url or "").netloc
    return WeightsError(f"{row.name} could not be downloaded from {host}: {why}. If it stays so, {_by_hand(row)}.")


def _by_hand(row: Known) -> str:
    return f"download {row.url} elsewhere and put it into {cache()}"
