"""HSNet's pickled COCO-20i fold lists, read without running anything."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, NoReturn

from imrseg.errors import InputError

LARGEST = 64 * 2**20  # bytes; HSNet's largest list has 4.1 million


class _Reader(pickle._Unpickler):
    """Builds dictionaries, lists, numbers and texts, which need no global name, and refuses all else.

    The one written in Python: that in C sets aside as much memory as a broken file's memo number asks for.
    """

    def find_class(self, module: str, name: str) -> NoReturn:
        raise InputError(f"it asks for {module}.{name}, which is refused")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise InputError("it refers to something outside of the file")


def load_lists(path: Path) -> dict[int, list[str]]:
    """File names by class number (0 to 79), as in ``splits/coco/trn/fold0.pkl``.

    A plain list is read as the classes 0, 1, 2, ... in order.

    Raises:
        InputError: the file is missing, too large, or holds anything but such lists; the message names a
            global that it asks for. Nothing in it is run.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"it is larger than {LARGEST // 2**20} MB")
        lists = _Reader(io.BytesIO(path.read_bytes())).load()
        if isinstance(lists, list):
            lists = dict(enumerate(lists))
        if not (isinstance(lists, dict) and lists and all(_is_entry(*item) for item in lists.items())):
            raise InputError("it holds something else")
    except Exception as error:  # a broken file can raise anything
        raise InputError(
            f"The fold list {path} cannot be used: {str(error) or type(error).__name__}. "
            "Accepted: HSNet's pickled lists of file names by class number."
        ) from error
    return lists


def _is_entry(key: object, names: object) -> bool:
    return type(key) is int and isinstance(names, list) and all(isinstance(name, str) for name in names)
