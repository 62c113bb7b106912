"""The page as Gradio's ``Blocks``: behind ``Doors``, and with words for everything that goes wrong in a request."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.exceptions import InvalidPathError

from imrseg.app.doors import Doors
from imrseg.app.words import chain, words_for
from imrseg.errors import InputError, shown

if TYPE_CHECKING:
    from imrseg.app.handlers import Handlers

MAX_ITEMS = 100  # of a list within a request
MAX_WORDS = 1000  # characters of an error
NOT_UPLOADED = "A picture must be a file that was uploaded here, or a web address."
UNFIT = "The request does not have the form that this function takes. The page at /?view=api says what is accepted."

log = logging.getLogger(__name__)


class App(gr.Blocks):
    """The page, with the functions of its events.

    Whatever goes wrong in a request, the caller is told one sentence; the log has the rest.

    Attributes:
        handlers: of the page's events.
        stopping: nothing new is taken any more.
        loop: that the server runs in.
    """

    handlers: Handlers
    stopping = False
    loop: asyncio.AbstractEventLoop

    def launch(self, *args: Any, **settings: Any) -> Any:
        """As Gradio's, behind ``Doors``."""

        @asynccontextmanager
        async def lifespan(server: Any) -> AsyncIterator[None]:
            self.loop = asyncio.get_running_loop()
            server.middleware_stack = Doors(server.middleware_stack, self)  # outside of what Gradio adds itself
            yield

        closed: dict[str, Any] = {
            "enable_monitoring": False,
            "run_history": False,
            "app_kwargs": {"lifespan": lifespan},
        }
        closed |= settings
        return super().launch(*args, **closed)

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *args: Any, **settings: Any) -> Any:
        """As Gradio's; what does not have the right form is refused in words."""
        try:
            for block, value in zip(block_fn.inputs, inputs, strict=True):
                check_form(block, value)
            return await super().preprocess_data(block_fn, inputs, *args, **settings)
        except (gr.Error, InputError):
            raise
        except Exception as error:
            log.warning("a request to %s was not understood (%s)", block_fn.name, type(error).__name__)
            raise InputError(next(filter(None, map(told, chain(error))), UNFIT)) from None

    async def process_api(self, *args: Any, **settings: Any) -> dict[str, Any]:
        """As Gradio's; every error has words that are meant for the caller."""
        try:
            return await super().process_api(*args, **settings)
        except gr.Error as error:
            error.print_exception = False
            error.message = error.message[:MAX_WORDS]  # it may repeat what was given
            raise
        except Exception as error:
            raise gr.Error(words_for(error), print_exception=False) from None


def check_form(block: Any, value: Any) -> None:
    """Refuse what Gradio would take for something else, or would work on for long.

    Raises:
        InputError: text that is no text, a slider's value that is no number, or a list of very many.
    """
    if isinstance(block, gr.Textbox) and not isinstance(value, str | None):
        raise InputError(f"“{block.label}” must be text, not {type(value).__name__}.")
    if isinstance(block, gr.Slider) and value is not None:  # Gradio sees to the range
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or (block.step == 1 and value != int(value)):
            kind = "whole number" if block.step == 1 else "number"
            raise InputError(f"“{block.label}” must be a {kind}, not {shown(value)}.")
    if isinstance(value, list) and len(value) > MAX_ITEMS:
        raise InputError(f"{len(value)} items were given at once. Accepted: up to {MAX_ITEMS}.")


def told(error: BaseException) -> str:
    """What the caller is told of an error in the form of a request; "" where it has no words of its own."""
    if isinstance(error, InvalidPathError):
        return NOT_UPLOADED
    return str(error) if isinstance(error, InputError) else ""
