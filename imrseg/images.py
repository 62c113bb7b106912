"""Any picture in, validated RGB out, with the picture's true size kept beside it.

The geometry is letterless: a network sees the whole picture stretched to its square, and a mask
goes back to the picture's own size by the inverse stretch, so nothing is cropped or shifted.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from imrseg.errors import InputError

ImageSource: TypeAlias = "str | Path | Image.Image | np.ndarray | Picture"

MAX_PIXELS = 100_000_000  # of the file, checked before decoding
WORKING_SIDE = 1280  # longer side of the pixels that are kept: enough for networks and the screen
ACCEPTED = "JPEG, PNG, WebP, TIFF, BMP or GIF"


@dataclass(frozen=True)
class Picture:
    """A picture ready to use.

    Attributes:
        pixels: uint8 (h, w, 3) RGB, upright, reduced to the longer side that was asked for.
        size: (height, width) of the original, upright.
        name: the file's name, or "picture".
        warnings: what was converted on the way.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    name: str = "picture"
    warnings: list[str] = field(default_factory=list)

    @cached_property
    def digest(self) -> bytes:
        """Tells pictures apart by their pixels."""
        return hashlib.blake2b(self.pixels.tobytes() + str(self.pixels.shape).encode()).digest()


def open_picture(source: ImageSource, side: int | None = WORKING_SIDE) -> Picture:
    """Read a picture from a path, a PIL image or a uint8 array (H, W, 3), (H, W) or (H, W, 4).

    EXIF orientation is applied; transparency is laid on white; grey and palette become RGB; of an
    animation the first frame is taken.

    Args:
        source: the picture; a ``Picture`` comes back as it is.
        side: the longer side that its pixels are reduced to, where it is longer; None: all are kept.

    Raises:
        InputError: not a picture, larger than ``MAX_PIXELS``, broken, or an array of another kind.
    """
    if isinstance(source, Picture):
        return source
    if isinstance(source, np.ndarray):
        return _finish(_from_array(source), "picture", side)
    if not isinstance(source, (str, Path, Image.Image)):
        raise InputError(f"A picture must be a path, a PIL image or a NumPy array, not {type(source).__name__}.")
    name = Path(source if isinstance(source, (str, Path)) else getattr(source, "filename", "")).name or "picture"
    try:
        if isinstance(source, Image.Image):
            return _finish(source, name, side)
        if not Path(source).is_file():
            raise InputError(f"There is no picture file at “{source}”.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(Path(source).read_bytes())) as image:
                return _finish(image, name, side, draft=True)
    except UnidentifiedImageError:
        raise InputError(f"“{name}” is not a picture that can be read. Accepted: {ACCEPTED}.") from None
    except Image.DecompressionBombError:
        raise InputError(f"“{name}” is too large. Accepted: up to {MAX_PIXELS // 10**6} megapixels.") from None
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(f"“{name}” is broken and cannot be read ({error}).") from None


def _from_array(array: np.ndarray) -> Image.Image:
    channels = 1 if array.ndim == 2 else array.shape[-1] if array.ndim == 3 else 0
    if array.dtype != np.uint8 or channels not in (1, 3, 4) or array.size == 0:
        raise InputError(
            f"An array must be uint8 of shape (H, W, 3); this one is {array.dtype} of shape {array.shape}."
        )
    return Image.fromarray(np.ascontiguousarray(array.squeeze(-1) if array.ndim == 3 and channels == 1 else array))


def _finish(image: Image.Image, name: str, side: int | None, draft: bool = False) -> Picture:
    notes: list[str] = []
    width, height = image.size
    if width * height == 0:
        raise InputError(f"“{name}” has no pixels.")
    if width * height > MAX_PIXELS:
        raise InputError(f"“{name}” has {width * height / 1e6:.0f} megapixels. Accepted: up to {MAX_PIXELS // 10**6}.")
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a phone's JPEG with a preview inside
        notes.append(f"“{name}” is animated; its first frame was used.")
    orientation = image.getexif().get(0x0112, 1)
    if draft and side is not None:  # JPEG decodes straight to a smaller size; it would shrink a caller's image for good
        image.draft("RGB", (side, side))
    image.load()
    if side is not None and max(image.size) > side:
        scale = side / max(image.size)
        smaller = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        if image.mode in ("P", "1", "PA"):
            image = image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
        if image.mode.startswith("I;16"):
            image = _from_16_bit(image)
        image = image.resize(smaller, Image.Resampling.BILINEAR, reducing_gap=2.0)
    image = _to_rgb(image, name, notes)
    if orientation in (2, 3, 4, 5, 6, 7, 8):
        image.getexif()[0x0112] = orientation
        image = ImageOps.exif_transpose(image)
        if orientation >= 5:
            width, height = height, width
    return Picture(np.asarray(image, np.uint8), (height, width), name, notes)


def _from_16_bit(image: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(image, np.uint32) >> 8).astype(np.uint8))


def _to_rgb(image: Image.Image, name: str, notes: list[str]) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = _from_16_bit(image)
    elif image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, np.float64))
        low, high = values.min(), values.max()
        notes.append(f"“{name}” has {image.mode} pixels; {low:g} to {high:g} was stretched to 0 to 255.")
        image = Image.fromarray(((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        if layer.getchannel("A").getextrema() != (255, 255):
            notes.append(f"“{name}” is transparent in parts; they were laid on white.")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def stretch(pixels: np.ndarray, side: int) -> np.ndarray:
    """Pixels (h, w, 3) stretched to (side, side, 3): mean over areas when smaller, bilinear when larger."""
    h, w = pixels.shape[:2]
    how = cv2.INTER_AREA if h * w > side * side else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(pixels), (side, side), interpolation=how)


def to_square(picture: Picture, side: int) -> Tensor:
    """The whole picture stretched to (3, side, side), float32 in 0..255."""
    return torch.from_numpy(stretch(picture.pixels, side)).permute(2, 0, 1).float()


def to_centre(picture: Picture, side: int) -> Tensor:
    """The square in the picture's middle, scaled to (3, side, side), float32 in 0..255."""
    h, w = picture.pixels.shape[:2]
    edge = min(h, w)
    top, left = (h - edge) // 2, (w - edge) // 2
    square = stretch(picture.pixels[top : top + edge, left : left + edge], side)
    return torch.from_numpy(square).permute(2, 0, 1).float()


def to_size(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Stretch a soft mask (h, w) in [0, 1] to ``size`` = (H, W): float32, bilinear, half-pixel centres."""
    out = cv2.resize(np.asarray(mask, np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
    return np.clip(out, 0, 1, out=out)
