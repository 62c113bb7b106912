"""The web page: pictures and a label in, every refinement step to look at.

``build_app`` makes the page, ``APPEARANCE`` holds what Gradio takes at launch::

    build_app(segmenter).launch(**APPEARANCE)
"""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported: the page calls nobody

from imrseg.app.handlers import build_app
from imrseg.app.layout import APPEARANCE

__all__ = ["APPEARANCE", "build_app"]
