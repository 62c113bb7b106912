"""Iterative few-shot segmentation from label text: pictures and a word in, refined masks out.

Method: Wang et al., "Iterative Few-shot Semantic Segmentation from Image Label Text", IJCAI 2022.
"""

from imrseg.errors import InputError, WeightsError
from imrseg.presets import list_presets
from imrseg.segmenter import Result, Segmenter, Step

__all__ = ["InputError", "Result", "Segmenter", "Step", "WeightsError", "list_presets"]
__version__ = "0.1.0"
