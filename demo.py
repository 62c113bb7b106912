"""Opens the web page: python demo.py, the same as python -m imrseg demo."""

import sys

from imrseg.cli import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
