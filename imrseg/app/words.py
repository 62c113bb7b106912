"""What visitors and callers type, and what they are told when it cannot be used."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr
from pydantic import ValidationError

from imrseg.errors import InputError, WeightsError

DISK_FULL = "The server's disk is full. Please try again later."

log = logging.getLogger(__name__)


def split_labels(text: str) -> list[str]:
    """Labels as typed, separated by commas, without repeats and needless blanks, as a run spells them."""
    return list(dict.fromkeys(" ".join(part.split()) for part in (text or "").split(",") if part.strip()))


def words_for(error: Exception) -> str:
    """Bad input is told in its own words; anything unexpected is told in short and logged in full."""
    if any(isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT) for one in chain(error)):
        log.error("the disk is full: %s", error)
        return DISK_FULL
    if isinstance(error, (InputError, WeightsError)):
        return str(error)
    log.error("unexpected error in a request", exc_info=error)
    return "Something unexpected went wrong. Please try again; the server's log has the details."


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came from, also from within pydantic's checks."""
    while error is not None:
        yield error
        if isinstance(error, ValidationError):
            within = (one.get("ctx", {}).get("error") for one in error.errors())
            yield from (one for one in within if isinstance(one, InputError))
        error = error.__cause__ or error.__context__


@contextmanager
def told_to_visitor() -> Iterator[None]:
    """Raises every error as Gradio's own, which shows on the page or reaches the endpoint's caller."""
    try:
        yield
    except Exception as error:
        raise gr.Error(words_for(error), print_exception=False) from None
