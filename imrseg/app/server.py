"""The page as a process that runs for months: what it lets in, what it forgets, and how it ends."""

from __future__ import annotations

import ctypes
import datetime
import logging
import os
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import gradio as gr
from gradio import processing_utils
from gradio.server_messages import ProcessCompletedMessage
from gradio.state_holder import StateHolder

from imrseg.app.blocks import MAX_ITEMS, App
from imrseg.app.doors import STOPPING
from imrseg.app.gpu import on_zero_gpu
from imrseg.app.handlers import build_app
from imrseg.app.layout import APPEARANCE, KEEP
from imrseg.app.sessions import Session
from imrseg.models import memory
from imrseg.segmenter import Segmenter

GRACE = 6.0  # seconds that running requests have when the server stops; container hosts wait for ten
SWEEP = 10.0  # seconds between looks for old files
SETTLE = 4.0  # seconds that a browser on the same machine has for itself, to load the page and show a first example
IDLE = 600.0  # seconds after which a session that holds nothing goes; longer than any one step of a run

log = logging.getLogger(__name__)


def serve(
    segmenter: Segmenter,
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    mcp: bool = False,
    users: Sequence[tuple[str, str]] = (),
) -> None:
    """Serve the page until the process is asked to end (SIGTERM or Ctrl-C); call in the main thread.

    Args:
        segmenter: of the page's own preset.
        host, port: where to listen. share: at a public address of Gradio's, too.
        mcp: serve language models' clients, too.
        users: (user, password) of those who may come in; everybody, where there are none.

    Raises:
        OSError: the port is taken.
    """
    with suppress(Stopped), private_folder() as folder:
        stop_at_signals()
        app = build_app(segmenter)
        ahead = not on_zero_gpu()  # there, a GPU is lent to visitors alone
        with every(SWEEP, partial(forget, app, folder, KEEP)):
            try:
                if ahead:  # once a browser on the same machine loads the page, this takes ten times as long
                    app.handlers.prepare_examples(1)
                app.launch(
                    server_name=host, server_port=port, share=share, mcp_server=mcp,
                    auth=with_own_client(users) if users and mcp else list(users) or None,
                    prevent_thread_lock=True, **APPEARANCE,
                )  # fmt: skip
                if ahead:
                    time.sleep(SETTLE)
                    app.handlers.prepare_examples()
                app.block_thread()
            finally:
                close(app)


def with_own_client(users: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The users, and one more whose password only this process has: a tool's call comes back to us as a visitor's.

    Gradio 6.31 runs MCP's tools by a client of its own, for which it knows no password.
    """
    import gradio.mcp

    own = f"mcp-{secrets.token_hex(8)}", secrets.token_urlsafe(32)
    gradio.mcp.Client = partial(gradio.mcp.Client, auth=own)
    return [*users, own]


class Folder:
    """The visitors' files, in a new folder that nobody else on the machine can open.

    Old files are told by the time that they were seen here, not by the wall clock, which may jump.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: dict[str, tuple[int, float]] = {}  # by path: when it was changed last, when that was seen first

    def sweep(self, age: float) -> set[str]:
        """Delete what has lain here for ``age`` seconds since it was last handed out; returns its paths."""
        now, gone, found = time.monotonic(), set(), set()
        for folder, _, names in os.walk(self.path, topdown=False):
            for name in names:
                path = os.path.join(folder, name)
                with suppress(OSError):
                    changed = os.lstat(path).st_ctime_ns
                    if self._seen.get(path, (None,))[0] != changed:
                        self._seen[path] = changed, now
                    if now - self._seen[path][1] >= age:
                        os.unlink(path)
                        gone.add(path)
                    else:
                        found.add(path)
            if folder != str(self.path):
                with suppress(OSError):  # not empty; a file that is just arriving makes its folder again
                    os.rmdir(folder)
        self._seen = {path: seen for path, seen in self._seen.items() if path in found}
        return gone


@contextmanager
def private_folder() -> Iterator[Folder]:
    """Where Gradio puts uploads and results from now on; all of it is deleted at the end.

    Names of files have a secret in them, new with every start: who does not have a file cannot name it.
    """
    above = os.environ.get("GRADIO_TEMP_DIR")
    if above:
        os.makedirs(above, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="imrseg-", dir=above or None, ignore_cleanup_errors=True) as path:
        os.environ["GRADIO_TEMP_DIR"] = path
        processing_utils.hash_seed = secrets.token_bytes(32)
        for name, module in list(sys.modules.items()):
            if name.startswith("gradio.") and "DEFAULT_TEMP_DIR" in vars(module):  # read when Gradio was imported
                vars(module)["DEFAULT_TEMP_DIR"] = path
        try:
            yield Folder(Path(path))
        finally:
            os.environ.pop("GRADIO_TEMP_DIR")
            if above is not None:
                os.environ["GRADIO_TEMP_DIR"] = above


@contextmanager
def every(seconds: float, work: Callable[[], None]) -> Iterator[None]:
    """Do ``work`` again and again beside everything else, until the block ends."""
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(seconds):
            try:
                work()
            except Exception:
                log.exception("cleaning up failed; it is tried again in %g s", seconds)

    thread = threading.Thread(target=go_on, name="cleaning", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


def forget(app: App, folder: Folder, age: float) -> None:
    """Files older than ``age`` seconds, and what Gradio remembers of them."""
    gone = folder.sweep(age)
    for known in app.temp_file_sets:
        known -= gone
    for block in app.blocks.values():
        if isinstance(block, gr.ImageEditor) and len(block.blob_storage) > MAX_ITEMS:  # pictures never asked for
            for key in list(block.blob_storage)[:-MAX_ITEMS]:
                block.blob_storage.pop(key, None)
    if app.is_running:
        app.loop.call_soon_threadsafe(forget_sessions, app.state_holder, IDLE)  # sessions belong to that thread
    give_back()


def forget_sessions(holder: StateHolder, idle: float) -> None:
    """Gradio's sessions that hold no run and were not used for ``idle`` seconds.

    Every call of the API leaves one, with 0.2 MB of the page's settings, and Gradio keeps ten thousand.
    """
    now = datetime.datetime.now()
    for name, last in list(holder.time_last_used.items()):
        state = holder.session_data.get(name)
        held = state is not None and any(isinstance(value, Session) for value in state.state_data.values())
        if not held and (now - last).total_seconds() >= idle:
            holder.session_data.pop(name, None)
            holder.time_last_used.pop(name, None)


def give_back() -> None:
    """Return to the system what is no longer used; we and the C library keep hundreds of megabytes otherwise."""
    memory.release()
    with suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def stop_at_signals() -> None:
    """SIGTERM and SIGINT raise ``Stopped`` in the main thread, once."""

    def stop(number: int, _: Any) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # who is in a hurry presses twice
        raise Stopped

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


class Stopped(BaseException):
    """The process was asked to end."""


def close(app: App) -> None:
    """End in good order: nothing new is taken, who waits is told, who is served has ``GRACE`` seconds to be answered."""
    app.stopping = True
    queue = app._queue
    if app.is_running:
        app.loop.call_soon_threadsafe(tell_waiting, queue)
    end = time.monotonic() + GRACE
    time.sleep(0.2)
    while any(queue.active_jobs) and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.2)  # for the last answers to go out
    app.close(verbose=False)


def tell_waiting(queue: Any) -> None:
    """Answer all who wait in line; runs in the server's loop."""
    for line in queue.event_queue_per_concurrency_id.values():
        while line.queue:
            event = line.queue.pop()
            output = {"error": STOPPING, "visible": True, "duration": 10, "title": "Error"}
            queue.send_message(event, ProcessCompletedMessage(output=output, success=False, title="Error"))
            queue.event_ids_to_events.pop(event._id, None)
