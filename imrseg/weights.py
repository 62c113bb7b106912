"""Where weights are found, and how they are read, checked and converted.

Our own checkpoints are safetensors, whose header says what they hold; ``load`` and ``fill`` are for them.
Files of others are read by ``read_state_dict``: safetensors, and pickles of tensors alone. OpenAI's
TorchScript archive holds code, so it is opened only where its SHA-256 is the published one.
"""

from __future__ import annotations

import functools
import json
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from imrseg import hub
from imrseg.errors import WeightsError
from imrseg.hub import KNOWN, cache, missing, sha256
from imrseg.models.hsnet import IMRHSNet, from_authors
from imrseg.models.layers import check_fit
from imrseg.models.lite import lite_refiner
from imrseg.models.pfenet import IMRPFENet

EVERYDAY = "everyday."  # tensors of a lite checkpoint that belong to stage 1
CLIP_SETTINGS = ("input_resolution", "context_length", "vocab_size")  # beside the weights in OpenAI's archives


def folders(name: str = "") -> list[Path]:
    """Where ``name`` is looked for: checkpoints of the source tree and the package, the user's cache, others' caches."""
    package = Path(__file__).resolve().parent
    shared = KNOWN[name].shared if name in KNOWN else None
    return [package.parent / "checkpoints", package / "checkpoints", cache(), *([shared()] if shared else [])]


def find(name: str | Path) -> Path:
    """The file of that name or path.

    Raises:
        WeightsError: it is in none of the places; the message names them, and says what to put where.
    """
    bare = Path(name).parent == Path()
    places = [folder / name for folder in folders(str(name))] if bare else [Path(name)]
    for path in places:
        if path.is_file():
            return path
    looked = ", ".join(str(path) for path in places)
    advice = f". {missing(str(name))}" if bare else ""
    raise WeightsError(f"The weights “{Path(name).name}” were not found. Looked for: {looked}{advice}")


def have(name: str | Path) -> bool:
    """Whether ``find`` finds it."""
    try:
        return bool(find(name))
    except WeightsError:
        return False


def obtain(name: str | Path) -> Path:
    """The file of that name or path, downloaded where it is missing and the hub has it.

    Raises:
        WeightsError: it cannot be had; the message says what to put where.
    """
    row = KNOWN.get(str(name))
    if row is None or row.url is None or have(name):
        return find(name)
    return hub.download(row, cache())


def fetch(name: str) -> Path:
    """A whole file of that name: one that is there with the published SHA-256, or a download of it.

    Raises:
        WeightsError: unknown, or it cannot be had; the message says what to put where.
    """
    row = KNOWN.get(name)
    if row is None:
        raise WeightsError(f"There are no weights called “{name}”. Known: {', '.join(KNOWN)}.")
    for path in (folder / name for folder in folders(name)):
        if path.is_file() and row.sha256 in (None, sha256(path)):
            return path
    return hub.download(row, cache())


def header(path: Path) -> dict[str, Any]:
    """What a checkpoint of ours says of itself; no tensor is read.

    Raises:
        WeightsError: as for ``load``.
    """
    with _safetensors(path) as file:
        try:
            return dict(json.loads((file.metadata() or {})["imrseg"]))
        except (KeyError, TypeError, ValueError, RecursionError):
            raise WeightsError(f"{path} is not a checkpoint of imrseg: its header has no imrseg entry.") from None


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a checkpoint of ours.

    Only safetensors are read, which hold numbers and no code.

    Raises:
        WeightsError: the file is cut short, is not a safetensors file or was not made by imrseg.
    """
    metadata = header(path)
    with _safetensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, metadata


@contextmanager
def _safetensors(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except WeightsError:
        raise
    except Exception as error:  # a broken file can raise anything
        raise WeightsError(
            f"{path} cannot be read as safetensors ({error}): it is cut short, damaged or of another kind."
        ) from error


def fill(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load ``tensors`` into ``module``, every name and shape fitting.

    Raises:
        WeightsError: names or shapes differ, or there are no finite fractions where there should be; the message
            lists some. The module is unchanged.
    """
    own = module.state_dict()
    check_fit(tensors, {n: t.shape for n, t in own.items()}, f"{path} does not fit this network")
    odd = [n for n, t in tensors.items() if own[n].is_floating_point() and not _is_finite(t)]
    if odd:
        raise WeightsError(f"{path} holds something else than finite fractions in {', '.join(odd[:5])}.")
    module.load_state_dict(tensors)


def _is_finite(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and bool(tensor.isfinite().all())


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name of a file of anybody's, on the CPU; from a dictionary that holds one state dict, that one.

    Raises:
        WeightsError: missing, damaged, more than tensors, or a TorchScript archive that is not the published
            one. Nothing in the file is run.
    """
    return _read(path, "cpu")


def outline(path: Path) -> dict[str, Tensor]:
    """What ``read_state_dict`` would give, with names and shapes alone: on the meta device, taking no memory."""
    return _read(path, "meta")


def _read(path: Path, device: str) -> dict[str, Tensor]:
    if path.exists() and not path.is_file() and not path.is_dir():
        raise WeightsError(f"{path} is a device or a pipe. Give the path of a file of weights.")
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror or error}).") from error
    if start[8:] == b"{":  # after eight bytes of length
        return _read_safetensors(path, device)
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
            if any(entry.filename.endswith("/constants.pkl") for entry in entries):
                return _read_torchscript(path, device)
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise WeightsError(f"{path} is compressed, which torch.save never does. It was not unpacked.")
        loaded = torch.load(path, map_location=device, weights_only=True, mmap=zipped and device == "cpu")
    except WeightsError:
        raise
    except Exception as error:  # a broken file can raise anything
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = f"it asks for {asked[1]}" if asked else "it is damaged or of another kind"
        raise WeightsError(
            f"{path} is refused: {why}. Nothing in it was run. Accepted: safetensors, or torch.save of a state dict."
            + (f" Remove it, then: {missing(path.name)}" if path.name in KNOWN else "")
        ) from error
    return _state_dict(loaded, path)


def _read_safetensors(path: Path, device: str) -> dict[str, Tensor]:
    with _safetensors(path) as file:
        if device == "meta":
            return {name: torch.empty(file.get_slice(name).get_shape(), device=device) for name in file.keys()}
        return {name: file.get_tensor(name) for name in file.keys()}


def _read_torchscript(path: Path, device: str) -> dict[str, Tensor]:
    if sha256(path) != KNOWN["RN50.pt"].sha256:
        raise WeightsError(
            f"{path} is a TorchScript archive, which may hold any code, and not the RN50.pt that OpenAI published "
            f"(its SHA-256 differs). It was not opened. {missing('RN50.pt')}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch would rather have another format
        tensors = torch.jit.load(path, map_location="cpu").state_dict()
    return {name: tensor.to(device) for name, tensor in tensors.items() if name not in CLIP_SETTINGS}


def _state_dict(loaded: object, path: Path) -> dict[str, Tensor]:
    nested = [loaded, *(loaded.values() if isinstance(loaded, dict) else ())]
    found = [dict(d) for d in nested if isinstance(d, dict) and d and all(map(_is_weight, d, d.values()))]
    if len(found) != 1:
        holds = f"a dictionary of {', '.join(map(str, loaded))}" if isinstance(loaded, dict) else type(loaded).__name__
        raise WeightsError(f"{path} does not hold one dictionary of tensors by name, but {holds[:200]}.")
    return found[0]


def _is_weight(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided


def check_authors(path: Path, backbone: str) -> None:
    """See that a file holds the authors' IMR-HSNet on ``backbone``, before any memory is spent on it.

    Raises:
        WeightsError: it does not; the message lists names and shapes that differ.
    """
    try:
        _bare_hsnet(backbone).load_authors_state_dict(outline(path))
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None


def read_authors(path: Path) -> dict[str, Tensor]:
    """``read_state_dict`` of a file that ``check_authors`` has seen to.

    Raises:
        WeightsError: as that does; or it holds something else than finite fractions.
    """
    tensors = read_state_dict(path)
    odd = [n for n, t in tensors.items() if not n.endswith("num_batches_tracked") and not _is_finite(t)]
    if odd:
        raise WeightsError(f"{path} holds something else than finite fractions in {', '.join(odd[:5])}.")
    return tensors


def convert(source: Path, target: Path) -> None:
    """Write a checkpoint of others as safetensors with our names, which ``load`` and ``fill`` take.

    From the authors' IMR-HSNet, whose backbone is told by its names, or from OpenAI's ``RN50.pt``, whose
    numbers stay as they are, half of them in 16 bits: the file is as small, and whoever loads it chooses.

    Raises:
        WeightsError: the source is neither, or the target cannot be written. Nothing half written is left.
    """
    if target.suffix != ".safetensors":
        raise WeightsError(f"The target must end in .safetensors, not “{target.name}”.")
    names = outline(source)
    digest = sha256(source)
    if digest == KNOWN["RN50.pt"].sha256:
        network: dict[str, Any] = {"name": "clip", "architecture": "RN50-quickgelu"}
        tensors = read_state_dict(source)
    else:
        backbone = _backbone_of(names)
        check_authors(source, backbone)
        network = {"name": "imr-hsnet", "backbone": backbone, "authors_compatible": True}
        given = {name.removeprefix("module."): t for name, t in read_authors(source).items()}
        tensors = from_authors(given, _bare_hsnet(backbone))
    whole = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    metadata = {"network": network, "source": source.name, "source_sha256": digest}
    _write(target, save(whole, {"imrseg": json.dumps(metadata)}))


def _backbone_of(names: Mapping[str, object]) -> str:
    """The backbone that a name of the authors' which only it has tells of."""
    bare = {name.removeprefix("module.") for name in names}
    if "backbone.features.0.weight" in bare:
        return "vgg16"
    return "resnet101" if "backbone.layer3.22.conv1.weight" in bare else "resnet50"


@functools.cache
def _bare_hsnet(backbone: str) -> IMRHSNet:
    """The authors' network without numbers."""
    with torch.device("meta"):
        return IMRHSNet(backbone, authors_compatible=True).to("meta")


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be written ({error.strerror or error}).") from error
    finally:
        with suppress(OSError):
            part.unlink()


def describe(path: Path) -> list[str]:
    """What a file of weights holds, in lines for a person.

    Raises:
        WeightsError: it cannot be read, or says that it holds a network which it does not fit.
    """
    tensors, digest = outline(path), sha256(path)
    numbers = sum(tensor.numel() for tensor in tensors.values())
    out = [
        f"{path}: {path.stat().st_size / 1e6:.1f} MB, {len(tensors)} tensors, {numbers} numbers",
        f"SHA-256 {digest}",
    ]
    for row in KNOWN.values():
        if row.sha256 == digest:
            out.append(f"It is {row.name} as published: {row.what}. Licence: {row.licence}.")
        elif row.name == path.name and row.sha256 is not None:
            out.append(f"It is not the {row.name} that was published: that has the SHA-256 {row.sha256}.")
    try:
        metadata = header(path)
    except WeightsError:
        metadata = {}
    if metadata:
        out.append(f"It is a checkpoint of imrseg {_check_own(metadata, tensors, path)}.")
        out += [f"  {key}: {value}" for key, value in metadata.items()]
    elif any("hpn_learner." in name for name in tensors):
        backbone = _backbone_of(tensors)
        check_authors(path, backbone)
        out.append(
            f"It is the authors' IMR-HSNet on {backbone}. The command “weights convert” makes safetensors of it."
        )
    else:
        some = [f"{name} {tuple(tensor.shape)}" for name, tensor in list(tensors.items())[:3]]
        out.append(f"It is no checkpoint of imrseg. Its first tensors: {', '.join(some)}.")
    return out


def check_own(path: Path) -> str:
    """See that a checkpoint of ours fits the network that it names, before any memory is spent on either.

    Returns:
        The network's name, as the end of a sentence.

    Raises:
        WeightsError: it cannot be read, names no network of ours, or does not fit it.
    """
    return _check_own(header(path), outline(path), path)


def _check_own(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> str:
    builders: dict[str, Callable[..., nn.Module]] = {
        "lite": lite_refiner, "imr-hsnet": IMRHSNet, "imr-pfenet": IMRPFENet
    }  # fmt: skip
    try:
        settings = dict(metadata["network"])
        name = settings.pop("name", "lite")
        if name == "clip":
            return f"for CLIP {settings['architecture']}, which open_clip builds"
        with torch.device("meta"):
            net = builders[name](**settings)
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise WeightsError(f"{path} describes a network that cannot be built ({error!r}).") from error
    own = {n: t for n, t in tensors.items() if not (name == "lite" and n.startswith(EVERYDAY))}
    check_fit(own, {n: t.shape for n, t in net.state_dict().items()}, f"{path} does not fit {name}")
    return f"and fits its network, {name}"
