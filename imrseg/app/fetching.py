"""Pictures that a call names by a web address or sends as a data URI."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urljoin

import gradio as gr
import httpx
import safehttpx  # type: ignore[import-untyped]
from gradio import processing_utils
from gradio.data_classes import FileData, ListFiles
from gradio.utils import get_upload_folder
from pydantic import model_validator

from imrseg.app.doors import MAX_FILE, MB
from imrseg.errors import InputError
from imrseg.run import MAX_SUPPORTS

SECONDS = 20  # that an address may take in all
REDIRECTS = 5
ADDRESSES = ("http://", "https://", "data:")
NO_FILE = "A picture must be a file that was uploaded here, a web address or a data URI."


class SentFiles(ListFiles):
    """Files of a call. A language model's client sends each as an address, which Gradio 6.31 takes for one file alone."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, files: Any) -> Any:
        if not isinstance(files, list):
            return files
        if len(files) > MAX_SUPPORTS:
            raise InputError(f"{len(files)} support pictures were given. Accepted: up to {MAX_SUPPORTS}.")
        return [named(file) if isinstance(file, str) else file for file in files]


def named(address: str) -> dict[str, Any]:
    """An address as Gradio's description of a file; it is fetched later, for the server's loop must not wait."""
    if not address.startswith(ADDRESSES):
        raise InputError(NO_FILE)
    return {"path": address, "meta": {"_type": "gradio.FileData"}}


def sent_files(label: str) -> gr.File:
    """A parameter of several files, whose schema refers to no definitions: a tool's get lost on the way."""
    files = gr.File(label=label, file_count="multiple", value=[])
    file = FileData.model_json_schema()
    file["properties"]["meta"] = file.pop("$defs")["FileDataMeta"]
    del file["description"]  # for Gradio's own developers
    files.data_model = SentFiles
    files.api_info = lambda: {"type": "array", "items": file}  # type: ignore[method-assign]
    as_paths = files.preprocess

    def preprocess(payload: Any) -> Any:
        """Runs beside the server's loop."""
        for file in payload.root if payload else ():
            if file.path.startswith(ADDRESSES):
                file.path = fetched(file.path)
                files.temp_files.add(file.path)
        return as_paths(payload)

    files.preprocess = preprocess  # type: ignore[method-assign]
    return files


def fetched(address: str) -> str:
    """The path of a copy of what is behind a web address or in a data URI."""
    folder = str(get_upload_folder())
    if address.startswith("data:"):
        return processing_utils.save_base64_to_cache(address, folder)
    return processing_utils.ssrf_protected_download(address, folder)


async def bounded_get(url: str) -> httpx.Response:
    """In the place of Gradio's, which reads whatever an address sends for as long as that takes.

    Private networks stay out of reach: every address on the way is looked up once, checked and kept to.

    Raises:
        InputError: it cannot be had in ``SECONDS``, or is longer than ``MAX_FILE``.
    """
    try:
        async with asyncio.timeout(SECONDS):
            for _ in range(REDIRECTS + 1):
                checked = await safehttpx.async_validate_url(httpx.URL(url).host)
                transport = safehttpx.AsyncSecureTransport(checked)
                async with (
                    httpx.AsyncClient(transport=transport, trust_env=False) as client,
                    client.stream("GET", url) as response,
                ):
                    if not response.has_redirect_location:
                        return httpx.Response(response.status_code, content=await _bounded(response))
                    url = urljoin(url, response.headers["Location"])
    except (TimeoutError, ValueError, OSError, httpx.HTTPError, httpx.InvalidURL) as error:
        if isinstance(error, InputError):
            raise
    raise InputError("The picture's web address does not answer with a picture. Send the picture itself.")


async def _bounded(response: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MAX_FILE:
            raise InputError(f"The picture behind the web address is too large. Accepted: up to {MAX_FILE // MB} MB.")
    return bytes(body)


processing_utils.async_ssrf_protected_get = bounded_get
