"""Gradio without the stubs for editors that it makes of all its components each time it is imported.

Reading, rendering and comparing them takes two fifths of the import (Gradio 6.31).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def no_stubs() -> Iterator[None]:
    """While Gradio is imported: a component whose file cannot be found gets no stub."""
    find = inspect.getfile

    def getfile(object: Any) -> str:
        if inspect.isclass(object) and object.__module__.startswith("gradio."):
            raise OSError(f"{object.__qualname__} shall have no stub")
        return find(object)

    inspect.getfile = getfile
    try:
        yield
    finally:
        inspect.getfile = find
