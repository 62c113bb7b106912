"""The two errors that a user of the library can meet."""

from __future__ import annotations

import reprlib


class InputError(ValueError):
    """A picture, label or setting that cannot be used; the message says what is accepted."""


class WeightsError(RuntimeError):
    """Weights that are missing or do not fit; the message says what to put where."""


def install(extra: str) -> str:
    """How a part of imrseg that is missing is installed."""
    return f"pip install -e '.[{extra}]' in imrseg's folder"


def shown(value: object) -> str:
    """A refused value as a message shows it, shortened."""
    try:
        return reprlib.repr(value)
    except Exception:  # a number of thousands of digits, or an object that cannot show itself
        return type(value).__name__
