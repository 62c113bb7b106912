"""Any picture in, validated RGB out, with the picture's true size kept beside it.

The geometry is letterless: a network sees the whole picture stretched to its square, and a mask
goes back to the picture's own size by the inverse stretch, so nothing is cropped or shifted.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import re
import stat
import threading
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, TypeAlias

import cv2
import numpy as np
import torch
from PIL import Image, ImageCms, UnidentifiedImageError
from torch import Tensor

from imrseg.errors import InputError
from imrseg.guards import MAX_EXIF, bits_of_jp2, check_file

ImageSource: TypeAlias = "str | Path | Image.Image | np.ndarray | Picture"

MAX_BYTES = 500_000_000  # of a file: more than 100 megapixels of four bytes each
MAX_PIXELS = 100_000_000  # of a picture, checked before decoding
MAX_SIDE = 100_000  # pixels: what the exports can hold
MAX_PROFILE = 8 * 2**20  # bytes of a colour profile
REMEMBERED = 32 * 2**20  # bytes of pictures that are kept, and of the largest file that is looked up among them
WORKING_SIDE = 1280  # longer side of the pixels that are kept: enough for networks and the screen
DARK = 32  # of 255: no brighter is a picture of 12 bits in 16
OVERSHOOT = 0.1  # by which fractions may be beyond 0 to 1: resampling leaves them there
ROUNDING = 0.001  # so little beyond is not told
LEAST_SHARE = 3 / 4  # of that side, which will do where a JPEG decodes to fewer pixels in less time
ACCEPTED = "JPEG, PNG, WebP, TIFF, BMP, GIF, JPEG 2000 or AVIF"
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000", "AVIF")  # Pillow's others may run programs
WEB = re.compile("https?:/")  # begins an address, from which ``Path`` has taken a slash
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc")  # brands, in the beginning of the file
T = Image.Transpose
UPRIGHT = {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_270,
           7: T.TRANSVERSE, 8: T.ROTATE_90}  # what EXIF's orientation asks for  # fmt: skip


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture ready to use.

    Attributes:
        pixels: uint8 (h, w, 3) RGB, upright, reduced to the longer side that was asked for (``open_picture``).
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


class Remembered:
    """The last pictures of files, found again by what is in the file."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._pictures: OrderedDict[tuple[bytes, str], Picture] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[bytes, str]) -> Picture | None:
        with self._lock:
            if key in self._pictures:
                self._pictures.move_to_end(key)
            return self._pictures.get(key)

    def put(self, key: tuple[bytes, str], picture: Picture) -> None:
        with self._lock:
            self._pictures[key] = picture
            kept = sum(p.pixels.nbytes for p in self._pictures.values())
            while self._pictures and kept > self.budget:
                kept -= self._pictures.popitem(last=False)[1].pixels.nbytes

    def clear(self) -> None:
        with self._lock:
            self._pictures.clear()


remembered = Remembered(REMEMBERED)


def open_pictures(sources: Sequence[ImageSource]) -> list[Picture]:
    """``open_picture`` for several, side by side: decoders let other threads run meanwhile.

    Raises:
        InputError: as ``open_picture`` does, for the first that cannot be used.
    """
    with _quiet:
        if sum(not isinstance(source, Picture) for source in sources) < 2:
            return [_open(source) for source in sources]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(_open, sources))


def open_picture(source: ImageSource, side: int | None = WORKING_SIDE) -> Picture:
    """Read a picture from a path, a PIL image or an array (H, W), (H, W, 3) or (H, W, 4) of any real numbers.

    EXIF orientation is applied; colours become sRGB, 8 bits each; transparency is laid on white; of an
    animation the first frame is taken, of a PIL image that at which it stands. ``docs/inputs.md`` says what
    becomes of each kind of file and array.
    Pictures of files at the usual ``side`` are remembered for a while.

    Args:
        source: the picture; a ``Picture`` comes back as it is.
        side: the longer side that its pixels are reduced to, where it is longer; None: all are kept. The pixels of a
            JPEG file may be fewer, down to three quarters of that side: it is decoded to a half, a quarter or an eighth.

    Raises:
        InputError: not a picture, larger than ``MAX_PIXELS``, ``MAX_SIDE`` or ``MAX_BYTES``, broken, or an
            array of another kind.
    """
    with _quiet:
        return _open(source, side)


class Quiet:
    """Without Pillow's warnings: of broken metadata, and of sizes that are checked here.

    Filters of warnings are the process's: the first thread within sets this one, the last takes it away.
    """

    def __init__(self) -> None:
        self._lock, self._within = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._within:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                warnings.filterwarnings("ignore", module="PIL")
            self._within += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._within -= 1
            if not self._within:
                self._before.__exit__(None, None, None)


_quiet = Quiet()
_of_callers = threading.Lock()  # a PIL image reads its file when it is used, which two threads must not do at once


def _open(source: ImageSource, side: int | None = WORKING_SIDE) -> Picture:
    if isinstance(source, Picture):
        return source
    if isinstance(source, np.ndarray):
        notes: list[str] = []
        return _finish(_from_array(source, notes), "picture", side, notes)
    if not isinstance(source, (str, Path, Image.Image)):
        raise InputError(f"A picture must be a path, a PIL image or a NumPy array, not {type(source).__name__}.")
    path = getattr(source, "filename", "") if isinstance(source, Image.Image) else source
    name = (Path(os.fsdecode(path)).name if isinstance(path, (str, bytes, Path)) else "") or "picture"
    try:
        if isinstance(source, Image.Image):
            with _of_callers:
                return _finish(source, name, side, [])
        with _open_file(Path(source)) as file:
            if side != WORKING_SIDE or os.fstat(file.fileno()).st_size > REMEMBERED:
                return _decode(file, name, side)
            key = hashlib.blake2b(file.read()).digest(), name
            known = remembered.get(key)
            if known is None:
                file.seek(0)
                known = _decode(file, name, side)
                remembered.put(key, known)
            return known
    except UnidentifiedImageError:
        raise InputError(f"“{name}” is not a picture that can be read. Accepted: {ACCEPTED}.") from None
    except Image.DecompressionBombError:
        raise InputError(f"“{name}” is too large. Accepted: up to {MAX_PIXELS // 10**6} megapixels.") from None
    except InputError:
        raise
    except Exception as error:  # a broken file can raise anything
        raise InputError(f"“{name}” is broken and cannot be read ({error or type(error).__name__}).") from None


def _decode(file: BinaryIO, name: str, side: int | None) -> Picture:
    check_file(file, name)
    with Image.open(file, formats=_formats(file, name)) as image:
        return _finish(image, name, side, [], draft=True)


def _open_file(path: Path) -> BinaryIO:
    """The file, if it is one: a folder, a pipe or a device is not opened."""
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise InputError(f"“{path}” is a folder. Give the path of a picture in it.")
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"“{path}” is a device or a pipe. Give the path of a picture file.")
        if not found.st_size:
            raise InputError(f"“{path.name}” is empty.")
        if found.st_size > MAX_BYTES:
            raise InputError(
                f"“{path.name}” has {found.st_size / 1e6:.0f} MB. Accepted: up to {MAX_BYTES // 10**6} MB."
            )
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        web = " Web addresses are read by the page alone; download the picture." if WEB.match(str(path)) else ""
        raise InputError(f"There is no picture file at “{path}”.{web}") from None
    except OSError as error:
        raise InputError(f"“{path}” cannot be read ({error.strerror or error}).") from None
    except InputError:
        raise
    except ValueError:  # a NUL, or half a character
        raise InputError(f"There is no picture file at “{path}”: no file can have that name.") from None


def _formats(file: BinaryIO, name: str) -> tuple[str, ...]:
    start = file.read(64)
    file.seek(0)
    if start[4:8] != b"ftyp" or not any(brand in start for brand in HEIC):
        return FORMATS
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        raise InputError(
            f"“{name}” is a HEIC picture. Save it as JPEG, or install what reads it: pip install pillow-heif"
        ) from None
    return ("HEIF",)


def _from_array(array: np.ndarray, notes: list[str]) -> Image.Image:
    shape = array.shape
    channels = 1 if array.ndim == 2 else shape[-1] if array.ndim == 3 else 0
    if array.dtype.kind not in "biuf" or channels not in (1, 3, 4) or array.size == 0:
        turn = " Put the channels last." if array.ndim == 3 and shape[0] in (1, 3, 4) else ""
        raise InputError(
            f"An array must hold numbers in the shape (H, W), (H, W, 3) or (H, W, 4); "
            f"this one is {str(array.dtype)[:40]} of shape {shape}.{turn}"
        )
    _check_size(shape[1], shape[0], "picture")
    array = np.asarray(array.squeeze(-1) if array.ndim == 3 and channels == 1 else array)
    array = array.astype(np.float64) if array.dtype.itemsize > 8 else array
    if not np.isfinite(array).all():
        raise InputError("The array holds NaN or infinite values. Accepted: numbers.")
    return Image.fromarray(np.ascontiguousarray(_to_bytes(array, "picture", notes)))


def _check_size(width: int, height: int, name: str) -> None:
    if width * height == 0:
        raise InputError(f"“{name}” has no pixels.")
    if width * height > MAX_PIXELS:
        raise InputError(
            f"“{name}” has {width * height / 1e6:.0f} megapixels. Accepted: up to {MAX_PIXELS // 10**6} megapixels."
        )
    if max(width, height) > MAX_SIDE:
        raise InputError(f"“{name}” is {width} x {height} pixels. Accepted: up to {MAX_SIDE} on a side.")


def _finish(image: Image.Image, name: str, side: int | None, notes: list[str], draft: bool = False) -> Picture:
    _check_size(*image.size, name)
    if getattr(image, "is_animated", False) and image.format != "MPO":  # a phone's JPEG with a preview inside
        many, one = ("has several pages", "page") if image.format == "TIFF" else ("is animated", "frame")
        at = image.tell()  # a caller's image may stand anywhere
        notes.append(f"“{name}” {many}; its {'first ' if at == 0 else ''}{one}{f' {at + 1}' if at else ''} was used.")
    width, height = image.size
    deep = any(";16" in str(tile[-1]) for tile in getattr(image, "tile", ()))  # of colours Pillow keeps 8 bits
    file = getattr(image, "fp", None)  # none of a caller's image that is loaded
    if image.format == "JPEG2000" and file and len(image.getbands()) > 1 and bits_of_jp2(file) > 8:
        raise InputError(f"“{name}” has more than 8 bits a colour, as JPEG 2000. Save it as PNG or TIFF.")
    # Of files alone: a caller's image would be shrunk for good.
    drafted = _draft(image, side) if draft and side is not None else None
    image.load()
    if drafted is None:  # a TIFF has turned itself upright
        width, height = image.size
    orientation, profile = _orientation(image), image.info.get("icc_profile") if image.mode != "LAB" else None
    if deep and image.mode in ("RGB", "RGBA") and np.asarray(image)[..., :3].max() < DARK:
        few = "uses few of its values: of its 16 bits a colour the highest 8 were used, which leaves it very dark."
        notes.append(f"“{name}” {few}")
    image = _eight_bit(image, name, notes)
    if side is not None and max(image.size) > side:
        scale = side / max(image.size)
        smaller = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(smaller, Image.Resampling.BILINEAR, reducing_gap=2.0)
    image = _to_srgb(_opaque(image, name, notes), profile, name, notes)
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
        if orientation >= 5:
            width, height = height, width
    return Picture(np.asarray(image, np.uint8), (height, width), name, notes)


def _draft(image: Image.Image, side: int) -> object:
    """Have a JPEG decoded straight to a part of its size, if it is one; None where it is not."""
    part = next((n for n in (8, 4, 2) if max(image.size) >= n * LEAST_SHARE * side), 1)
    return image.draft("RGB", (max(1, image.width // part), max(1, image.height // part)))


def _orientation(image: Image.Image) -> int:
    """EXIF's, 1 to 8; 1 where it is broken."""
    try:
        if len(image.info.get("exif") or b"") <= MAX_EXIF:
            return int(image.getexif().get(0x0112, 1))
    except Exception:  # it says how to show the picture, which is whole
        return 1
    return 1


def _eight_bit(image: Image.Image, name: str, notes: list[str]) -> Image.Image:
    """The picture as L, RGB, RGBA or CMYK, which can be resized."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image)
        known = np.isfinite(values)
        if not known.all():
            notes.append(f"“{name}” holds values that are no numbers; they became as dark as the darkest.")
            values = np.where(known, values, values[known].min() if known.any() else 0)
        return Image.fromarray(_to_bytes(values, name, notes))
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("L" if image.mode == "1" else "RGB")


def _to_bytes(values: np.ndarray, name: str, notes: list[str]) -> np.ndarray:
    """Finite numbers of any type as brightness, uint8 of the same shape.

    From 0 to 255 they stay as they are, fractions from 0 to 1, or a little beyond, are 0 to 255, whole numbers to
    65535 lose their lowest bits, others are stretched from the lowest to the highest.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values * np.uint8(255)
    low, high, whole = values.min(), values.max(), values.dtype.kind in "iu"
    if low >= 0 and 255 < high < 2**16 and whole:
        bits = int(high).bit_length()
        notes.append(f"“{name}” has {bits} bits a channel; the highest 8 were used.")
        return (values >> (bits - 8)).astype(np.uint8)
    least = 0.5 if low < -ROUNDING else 0.01  # else they are other numbers, all of them small
    if not whole and (low < 0 or high > 1) and low >= -OVERSHOOT and least <= high <= 1 + OVERSHOOT:
        if low < -ROUNDING or high > 1 + ROUNDING:
            notes.append(f"“{name}” has values from {low:g} to {high:g}; they were cut to 0 to 1, black to white.")
        half_low, half_span = 0.0, 0.5
    elif low >= 0 and high <= 255:
        half_low, half_span = 0.0, 127.5 if whole or high > 1 else 0.5
    else:
        notes.append(f"“{name}” has values from {low:g} to {high:g}; they were stretched to 0 to 255.")
        half_low, half_span = float(low) / 2, float(high) / 2 - float(low) / 2  # the whole span may overflow
    out = np.empty(values.shape, np.uint8)
    for row, line in zip(out, values, strict=True):  # all at once would take many times the memory
        stretched = np.rint((line.astype(np.float64) / 2 - half_low) * (255 / max(half_span, 1e-300)))
        row[...] = np.clip(stretched, 0, 255)
    return out


def _opaque(image: Image.Image, name: str, notes: list[str]) -> Image.Image:
    if image.mode != "RGBA":
        return image
    if image.getchannel("A").getextrema() != (255, 255):
        notes.append(f"“{name}” is transparent in parts; they were laid on white.")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes | None, name: str, notes: list[str]) -> Image.Image:
    """L, RGB or CMYK as RGB, by its colour profile where it has one that is not sRGB itself."""
    if not profile:
        return image.convert("RGB")
    try:
        if len(profile) > MAX_PROFILE:
            raise ValueError
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in (given.profile.profile_description or "").lower():
            return image.convert("RGB")
        mode = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}[given.profile.xcolor_space]
        if mode != image.mode and "CMYK" in (mode, image.mode):
            raise ValueError
        out = ImageCms.profileToProfile(image.convert(mode), given, ImageCms.createProfile("sRGB"), outputMode="RGB")
        assert out is not None
        return out
    except Exception:  # of a profile anything may be broken
        notes.append(f"“{name}” has a colour profile that cannot be used; its colours may be off.")
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
