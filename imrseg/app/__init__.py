"""The web page: pictures and a label in, every refinement step to look at.

``serve`` makes it and serves it until the process is asked to end. ``build_app`` only makes it, and ``APPEARANCE``
holds what Gradio takes at launch::

    build_app(segmenter).launch(**APPEARANCE)
"""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported: the page calls nobody
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")  # it makes a table of all past events after each
os.environ.setdefault("MPLBACKEND", "agg")  # it asks for one at its first event; to look for one takes a second

from imrseg.app.stubs import no_stubs

with no_stubs():
    import gradio  # noqa: F401

from imrseg.app.handlers import build_app
from imrseg.app.layout import APPEARANCE
from imrseg.app.server import serve

__all__ = ["APPEARANCE", "build_app", "serve"]
