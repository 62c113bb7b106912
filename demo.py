"""Opens the web page: python demo.py"""

import argparse
import logging
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imrseg import Segmenter


def main() -> int:
    parser = argparse.ArgumentParser(description="imrseg's web page: a label and pictures in, masks step by step out.")
    parser.add_argument("--preset", default="lite", help="which models (default: lite)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: auto)")
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), help="0.0.0.0 for all")
    parser.add_argument("--port", type=int, default=int(os.environ.get("GRADIO_SERVER_PORT", "7860")))
    parser.add_argument("--share", action="store_true", help="also make a public link through Gradio's servers")
    parser.add_argument("--mcp", action="store_true", help="also serve the endpoint as a tool for language models")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")

    import imrseg

    try:
        segmenter = imrseg.Segmenter.from_preset(options.preset, options.device)
        from imrseg.app import APPEARANCE, build_app

        app = build_app(segmenter)
        app.launch(
            server_name=options.host, server_port=options.port, share=options.share, mcp_server=options.mcp,
            prevent_thread_lock=True, **APPEARANCE,
        )  # fmt: skip
    except (imrseg.InputError, imrseg.WeightsError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    warm_up(segmenter)
    app.block_thread()
    return 0


def warm_up(segmenter: "Segmenter") -> None:
    """The first pass through the network takes longer than the others: not a visitor's."""
    import numpy as np

    blank = np.zeros((64, 64, 3), np.uint8)
    segmenter.segment(blank, [blank], "cat", steps=1)


if __name__ == "__main__":
    sys.exit(main())
