"""What can be taken away from the page, by the words of its menu."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from imrseg import bundle, coco, figures
from imrseg.bundle import Found
from imrseg.export import encode_mask, encode_picture
from imrseg.images import open_picture
from imrseg.segmenter import Segmenter
from imrseg.visualize import overlay

EVERYTHING = "Everything (ZIP)"


def mask(found: Found, segmenter: Segmenter) -> bytes:
    return encode_mask(found.soft >= found.cut)


def cutout(found: Found, segmenter: Segmenter) -> bytes:
    pixels = open_picture(found.query, side=None).pixels
    return bundle.encode_cutout(bundle.cutout(pixels, found.soft >= found.cut))


def overlaid(found: Found, segmenter: Segmenter) -> bytes:
    pixels = bundle.bounded(open_picture(found.query, side=None).pixels)
    inside = bundle.bounded((found.soft >= found.cut).astype(np.uint8)) > 0
    return encode_picture(overlay(pixels, inside))


def drawn(how: Callable[..., dict[str, bytes]], kind: str) -> Callable[[Found, Segmenter], bytes]:
    """A figure or an animation of all steps so far."""

    def encode(found: Found, segmenter: Segmenter) -> bytes:
        pictures = [open_picture(path).pixels for path in (found.query, *found.supports)]
        return how(pictures, found.steps, found.threshold, found.label, (kind,))[kind]

    return encode


def annotated(segmentation: str) -> Callable[[Found, Segmenter], bytes]:
    """COCO's JSON."""

    def encode(found: Found, segmenter: Segmenter) -> bytes:
        shape = coco.shape(found.soft >= found.cut, found.label, found.confidence)
        image = (found.query.name, found.steps[-1].query_size, [shape])
        return bundle.encode_json(coco.dataset([image], segmentation))

    return encode


FORMATS: dict[str, tuple[str, Callable[[Found, Segmenter], bytes]]] = {  # words: (ending, encoder)
    "Mask (PNG)": (".png", mask),
    "Cut-out (PNG)": ("-cutout.png", cutout),
    "Overlay (PNG)": ("-overlay.png", overlaid),
    "Figure (PNG)": ("-figure.png", drawn(figures.figure, "png")),
    "Figure (PDF)": (".pdf", drawn(figures.figure, "pdf")),
    "Figure (SVG)": (".svg", drawn(figures.figure, "svg")),
    "Animation (GIF)": (".gif", drawn(figures.animation, "gif")),
    "Animation (WebP)": (".webp", drawn(figures.animation, "webp")),
    "COCO, run lengths (JSON)": ("-coco.json", annotated("rle")),
    "COCO, polygons (JSON)": ("-coco-polygons.json", annotated("polygons")),
    "Soft masks (NPZ)": (".npz", bundle.encode_soft_masks),
}


def all_labels(founds: Sequence[Found], pixels: np.ndarray) -> np.ndarray:
    """All labels of one query in one picture, with a legend; ``pixels`` at display size."""
    index = cv2.resize(bundle.label_map(founds), pixels.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    return figures.labelled(pixels, index, [found.label for found in founds])
