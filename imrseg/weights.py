"""Where weights are found, and how they are checked before they are used."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from imrseg.errors import WeightsError


def folders() -> list[Path]:
    """Where checkpoints are looked for: the source tree's, the installed package's, the user's cache."""
    package = Path(__file__).resolve().parent
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "imrseg"
    return [package.parent / "checkpoints", package / "checkpoints", cache]


def find(name: str | Path) -> Path:
    """The file of that name or path.

    Raises:
        WeightsError: it is in none of the places; the message names them.
    """
    places = [Path(name)] if Path(name).parent != Path() else [folder / name for folder in folders()]
    for path in places:
        if path.is_file():
            return path
    looked = ", ".join(str(path) for path in places)
    raise WeightsError(f"The weights “{Path(name).name}” were not found. Looked for: {looked}")


def load(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and metadata of a checkpoint.

    Only safetensors are read, which hold numbers and no code.

    Raises:
        WeightsError: the file is cut short, is not a safetensors file or was not made by imrseg.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["imrseg"])
        return load_file(path), dict(metadata)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors ({error}). Fetch the file again.") from error
    except (KeyError, TypeError, ValueError):
        raise WeightsError(f"{path} is not a checkpoint of imrseg: its header has no imrseg entry.") from None


def fill(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load ``tensors`` into ``module``, every name and shape fitting.

    Raises:
        WeightsError: names or shapes differ; the message lists some. The module is unchanged.
    """
    own = module.state_dict()
    wrong = [f"missing {name}" for name in own if name not in tensors]
    wrong += [f"unexpected {name}" for name in tensors if name not in own]
    wrong += [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise WeightsError(f"{path} does not fit this network: {'; '.join(wrong[:5])}{more}.")
    module.load_state_dict(tensors)


def sha256(path: Path) -> str:
    """The file's SHA-256, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
