"""``python -m imrseg``."""

import sys

from imrseg.cli import main

sys.exit(main())
