"""Stage 2: networks that refine masks. Pure PyTorch; nothing here knows of files, text or pages."""

from imrseg.models.hsnet import IMRHSNet
from imrseg.models.lite import lite_refiner
from imrseg.models.pfenet import IMRPFENet
from imrseg.models.refiner import Refiner, RefinerState

__all__ = ["IMRHSNet", "IMRPFENet", "Refiner", "RefinerState", "lite_refiner"]
