"""The picture that is painted on: what a browser sends of it waits here for the event that reads it."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.components.base import server

from imrseg.errors import InputError

MAX_PART = 20_000_000  # bytes of one part: the page paints on pictures of a megapixel at most
MAX_KEPT = 500_000_000  # of all parts that wait, of all visitors
MAX_LAYERS = 4  # the page's editor has one
MAX_NAME = 100  # characters that a browser may call a picture by


def bounded(editor: gr.ImageEditor) -> gr.ImageEditor:
    """The editor, which from now on keeps no more than this; Gradio's own keeps all, in a list as long as anybody says."""
    keep = editor.accept_blobs

    @server
    def accept_blobs(data: Any) -> None:
        """One part of a picture, "background", "layer" or "composite"; the oldest make room.

        Raises:
            InputError: it is larger, of another layer, or called by a longer name than the page's are.
        """
        index, name, part = data.data["index"], data.data["id"], data.files[0][1]
        whole = str(index) if index not in (None, "", "null") else "0"
        if not (whole.isdecimal() and len(whole) < 4 and int(whole) < MAX_LAYERS) or len(name) > MAX_NAME:
            raise InputError("This is no part of a picture that was painted on the page.")
        if len(part) > MAX_PART:
            raise InputError(f"A part of a picture has {len(part)} bytes. Accepted: up to {MAX_PART}.")
        keep(data)
        while sum(map(size_of, list(editor.blob_storage.values()))) > MAX_KEPT:
            editor.blob_storage.pop(next(iter(editor.blob_storage)), None)

    editor.accept_blobs = accept_blobs
    return editor


def size_of(blobs: Any) -> int:
    """Bytes of a picture's parts."""
    return sum(len(part) for part in (blobs.background, blobs.composite, *blobs.layers) if part)
