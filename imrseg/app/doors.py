"""What a request must be before Gradio sees it: from this page or from a program, bounded, and to an open door.

Gradio 6.31 answers pages of any origin once it has a public name, reads bodies of any length, and has routes that
this page does not need. ``Doors`` stands before all of that, as the outermost ASGI middleware.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gradio.route_utils import compare_passwords_securely
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imrseg.app.words import DISK_FULL
from imrseg.errors import InputError

API = "/gradio_api"
CLOSED = (  # Gradio's, that this page has no use for: they record, relay, or tell of the server
    "/monitoring", "/openapi.json", "/gradio_api/openapi.json", f"{API}/deep_link", f"{API}/dev", f"{API}/file=http",
    f"{API}/process_recording", f"{API}/proxy=", f"{API}/run-history", f"{API}/runs", f"{API}/stream",
    f"{API}/undo-vibe", f"{API}/vibe", f"{API}/custom_component",
)  # fmt: skip
JOINING = (f"{API}/queue/join", f"{API}/call/")
MB = 10**6
MAX_FILE = 100 * MB  # bytes of one uploaded file
MAX_UPLOAD = 400 * MB  # of all files of one upload
MAX_BODY = 100 * MB  # of any other request: pictures within JSON
SEPARATORS = (b"[", b"{", b",", b":")
MAX_PARTS = 200_000  # separators in JSON: a short body of many parts would take seconds and gigabytes to read
MAX_UPLOADS = 5000  # files of all visitors that are kept at a time
SPARE_DISK = 1000 * MB  # that uploads leave free
WRONG_LOGIN = 1.0  # seconds that a wrong password costs, one at a time
STOPPING = "The server is stopping. Please try again in a minute."
TOO_MANY = "The request has too many parts."
NOT_UNDERSTOOD = "The request cannot be understood. The page at /?view=api says what is accepted."

log = logging.getLogger(__name__)


class Doors:
    """Refuses with a status and one sentence what must not go through to Gradio.

    - other sites' pages (an ``Origin`` that is not the page's own); no answer carries a CORS header;
    - bodies longer than ``MAX_UPLOAD`` or ``MAX_BODY``, and uploads while too many files are kept or the disk is full;
    - routes in ``CLOSED``, and, where the page asks for a password, MCP without one (HTTP Basic);
    - calls while as many wait as may, and everything new while the server stops.

    Args:
        app: what comes behind. page: its ``imrseg.app.page.App``.
    """

    def __init__(self, app: ASGIApp, page: Any) -> None:
        self.app, self.page = app, page
        self.wrong = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, headers = path_of(scope), Headers(scope=scope)
        upload = path.startswith(f"{API}/upload")
        refused = refusal(scope["method"], path, headers, self.page) or (
            full(self.page) if upload and scope["method"] == "POST" else None
        )
        if refused:
            status, words = refused
            more = {"WWW-Authenticate": "Basic"} if status == 401 else {}
            if status == 401 and "authorization" in headers:
                await self.wrong_password()
            await JSONResponse({"detail": words, "error": words}, status, more)(scope, receive, send)
            return
        most = MAX_UPLOAD if upload else MAX_BODY
        files = headers.get("content-type", "").startswith("multipart/form-data")  # else Gradio reads it as JSON
        taken, parts, answering, failed = 0, 0, False, ""

        async def counted() -> Message:
            nonlocal taken, parts
            message = await receive()
            body = message.get("body", b"")
            taken += len(body)
            parts += 0 if files else sum(map(body.count, SEPARATORS))
            if taken > most:
                raise ValueError(too_long(most))
            if parts > MAX_PARTS:
                raise ValueError(TOO_MANY)
            return message

        async def closed(message: Message) -> None:
            nonlocal answering
            if message["type"] == "http.response.start" and taken <= most and parts <= MAX_PARTS:
                kept = MutableHeaders(scope=message)
                if message["status"] == 500 and kept.get("content-type", "").startswith("text/plain"):
                    return  # it only says that there was an error
                answering = True
                for name in [name for name in kept if name.startswith("access-control-")]:
                    del kept[name]
                kept["X-Content-Type-Options"] = "nosniff"
                kept["Referrer-Policy"] = "same-origin"
                if path.startswith("/login") and message["status"] == 400:
                    await self.wrong_password()
            if answering:
                await send(message)

        try:
            await self.app(scope, counted, closed)
        except Exception as error:
            if answering:
                raise
            failed = type(error).__name__
        if not answering:
            status, words = 400, NOT_UNDERSTOOD
            if taken > most or parts > MAX_PARTS:
                status, words = 413, too_long(most) if taken > most else TOO_MANY
            log.warning("a request to %r was refused: %s %s", path, words, failed)
            await JSONResponse({"detail": words, "error": words}, status)(scope, receive, send)

    async def wrong_password(self) -> None:
        """Make a wrong password cost time, one at a time."""
        async with self.wrong:
            await asyncio.sleep(WRONG_LOGIN)


def path_of(scope: Scope) -> str:
    """The path that routes are found by: without what a proxy puts before it (``GRADIO_ROOT_PATH``)."""
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    return path[len(root) :] if root and f"{path}/".startswith(f"{root}/") else path


def too_long(most: int) -> str:
    return f"The request is too long. Accepted: up to {most // MB} MB."


def refusal(method: str, path: str, headers: Headers, page: Any) -> tuple[int, str] | None:
    """(HTTP status, sentence) where a request is not let through."""
    if path.startswith(CLOSED):
        return 404, "There is nothing here."
    if method == "OPTIONS" or not own(headers):
        return 403, "Another site's page may not use this server. Open its own page, or call it from a program."
    if method in ("POST", "PUT") and page.stopping:
        return 503, STOPPING
    places = page._queue.max_size
    if method == "POST" and path.startswith(JOINING) and places is not None and len(page._queue) >= places:
        return 503, f"{places} requests wait already, which is the most. Please try again in a minute."
    length = headers.get("content-length", "0")
    most = MAX_UPLOAD if path.startswith(f"{API}/upload") else MAX_BODY
    if not length.isdecimal() or int(length[:20]) > most:
        return 413, too_long(most)
    if path.startswith(f"{API}/mcp") and page.auth and not knows_password(headers, dict(page.auth)):
        return 401, "This server asks for a user and a password (HTTP Basic)."
    return None


def own(headers: Headers) -> bool:
    """Whether a request comes from the server's own page, or from no page at all."""
    origin = headers.get("origin")
    if origin is None:
        return True
    try:
        site = urlsplit(origin)
    except ValueError:
        return False
    hosts = [host for name in ("host", "x-forwarded-host") for host in headers.get(name, "").split(",")]
    hosts.append(os.environ.get("SPACE_HOST", ""))  # a Hugging Face Space's own name, whatever its proxy passes on
    # A proxy may have taken the port away.
    return bool(site.hostname) and any(host.strip() in (site.netloc, site.hostname) for host in hosts)


def full(page: Any) -> tuple[int, str] | None:
    """(HTTP status, sentence) where no further upload is taken."""
    folder = Path(page.app.uploaded_file_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < SPARE_DISK:
        return 507, DISK_FULL
    if len(page.upload_file_set) >= MAX_UPLOADS:
        return 429, f"The server keeps {MAX_UPLOADS} uploaded files already. Please try again later."
    return None


def knows_password(headers: Headers, users: dict[str, str]) -> bool:
    """HTTP Basic, for clients that have no login page."""
    kind, _, words = headers.get("authorization", "").partition(" ")
    try:
        user, _, password = base64.b64decode(words, validate=True).decode().partition(":")
    except ValueError:
        return False
    return kind.lower() == "basic" and user in users and compare_passwords_securely(password, users[user])


def users_of(path: Path | None) -> list[tuple[str, str]]:
    """Who may come in, by ``user:password`` lines of a file, or of the variable ``IMRSEG_AUTH``; [] lets everybody in.

    Not by an option: everybody on a machine sees the options of its programs.

    Raises:
        InputError: no such file, or a line that is something else.
    """
    if path is None:
        text, where = os.environ.get("IMRSEG_AUTH", ""), "IMRSEG_AUTH"
    else:
        where = f"The file {path}"
        try:
            text = path.read_text("utf-8-sig")
            if path.stat().st_mode & 0o077:
                log.warning("Others on this machine can read %s: chmod 600", path)
        except (OSError, ValueError):
            # Not named: it may be a password that was given in the wrong place.
            raise InputError(
                "The file of --auth cannot be read. Give a text file of user:password lines, not the words themselves."
            ) from None
    users = list(_users_in(text, where))
    if path is not None and not users:
        raise InputError(f"{where} names nobody. Accepted: lines of user:password.")
    return users


def _users_in(text: str, where: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        user, colon, password = line.strip().partition(":")
        if not (user and colon and password):
            raise InputError(f"{where}, line {number}, is not user:password.")
        yield user, password
