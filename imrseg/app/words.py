"""What visitors and callers type, and what they are told when it cannot be used."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from imrseg.errors import InputError, WeightsError

log = logging.getLogger(__name__)


def split_labels(text: str) -> list[str]:
    """Labels as typed, separated by commas, without repeats."""
    return list(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))


def words_for(error: Exception) -> str:
    """Bad input is told in its own words; anything unexpected is told in short and logged in full."""
    if isinstance(error, (InputError, WeightsError)):
        return str(error)
    log.error("unexpected error in a request", exc_info=error)
    return "Something unexpected went wrong. Please try again; the server's log has the details."


@contextmanager
def told_to_visitor() -> Iterator[None]:
    """Raises every error as Gradio's own, which shows on the page or reaches the endpoint's caller."""
    try:
        yield
    except Exception as error:
        raise gr.Error(words_for(error), print_exception=False) from None
