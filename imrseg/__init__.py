"""Iterative few-shot segmentation from label text: pictures and a word in, refined masks out.

Method: Wang et al., "Iterative Few-shot Semantic Segmentation from Image Label Text", IJCAI 2022.
"""

from typing import TYPE_CHECKING, Any

from imrseg.errors import InputError, WeightsError
from imrseg.presets import list_presets

if TYPE_CHECKING:
    from imrseg.coarse.maskers import ClipSettings
    from imrseg.run import Options, Result, Run, Step
    from imrseg.segmenter import Segmenter

__all__ = [
    "ClipSettings", "InputError", "Options", "Result", "Run", "Segmenter", "Step", "WeightsError", "list_presets"
]  # fmt: skip
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # PyTorch takes seconds to import; it comes with the first use, so that `--help` need not wait.
    if name in __all__:
        from imrseg import segmenter

        return getattr(segmenter, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
