"""Stage 1: label text -> coarse mask."""

from imrseg.coarse.clip import ClipCam

__all__ = ["ClipCam"]
