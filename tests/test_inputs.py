"""Every row of the table in ``docs/inputs.md``, proved."""

import errno
import importlib
import io
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from imrseg import InputError, images
from imrseg.images import UPRIGHT, Picture, open_picture

DOCUMENT = Path(__file__).parents[1] / "docs" / "inputs.md"
SEEDS = DOCUMENT.parents[1] / "fuzz" / "corpus" / "images"
SECONDS = 5.0  # within which every input is answered; most take milliseconds


class Row(NamedTuple):
    name: str
    outcome: str
    message: str


ROWS = {
    cells[0]: Row(*cells)
    for line in DOCUMENT.read_text("utf-8").splitlines()
    if line.startswith("| ") and (cells := [cell.strip() for cell in line.strip("|").split("|")])[0] != "Input"
}


class Case(NamedTuple):
    """An input, and what its picture must be: pixels within ``tolerance``, or a size alone."""

    source: object
    pixels: object = None
    tolerance: int = 0


Cases = Iterator[Case]
CASES: dict[str, Callable[[Path], Cases]] = {}


def case(name: str) -> Callable[[Callable[[Path], Cases]], Callable[[Path], Cases]]:
    def add(make: Callable[[Path], Cases]) -> Callable[[Path], Cases]:
        CASES[name] = make
        return make

    return add


# A photograph in small: smooth, with corners that tell orientations apart.

ROW, COLUMN = np.mgrid[:24, :32]
PIXELS = np.stack([ROW * 10, COLUMN * 7, 255 - ROW * 5 - COLUMN * 3], -1).astype(np.uint8)
GREY = PIXELS[..., 1]
GREY3 = np.dstack([GREY] * 3)


def saved(folder: Path, image: Image.Image | np.ndarray, name: str, **options) -> Path:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(folder / name, **options)
    return folder / name


def written(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


@case("JPEG, PNG, WebP, TIFF, BMP, GIF")
def _(folder: Path) -> Cases:
    for suffix in ("png", "tif", "bmp"):
        yield Case(saved(folder, PIXELS, f"p.{suffix}"), PIXELS)
        yield Case(str(saved(folder, PIXELS, f"p.{suffix}")), PIXELS)
    yield Case(saved(folder, PIXELS, "p.jpg", quality=98, subsampling=0), PIXELS, 6)
    yield Case(saved(folder, PIXELS, "p.webp", lossless=True), PIXELS)
    yield Case(saved(folder, GREY, "p.gif"), GREY3)
    yield Case(Path(saved(folder, PIXELS, "p.png").rename(folder / "really.jpg")), PIXELS)


@case("EXIF orientation 1 to 8")
def _(folder: Path) -> Cases:
    undo = {1: None} | UPRIGHT | {6: UPRIGHT[8], 8: UPRIGHT[6]}
    for suffix in ("jpg", "png", "webp", "tif", "avif"):
        for orientation, turn in undo.items():
            image = Image.fromarray(PIXELS)
            exif = Image.Exif()
            exif[0x0112] = orientation
            stored = image if turn is None else image.transpose(turn)
            options = {"quality": 98, "subsampling": 0} if suffix == "jpg" else {"lossless": True}
            path = saved(folder, stored, f"{orientation}.{suffix}", exif=exif, **options)
            yield Case(path, PIXELS, 24 if suffix == "avif" else 6)


@case("Broken EXIF")
def _(folder: Path) -> Cases:
    for exif in (b"Exif\0\0", b"Exif\0\0garbage of some length", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"):
        yield Case(saved(folder, PIXELS, "e.jpg", exif=exif, quality=98, subsampling=0), PIXELS, 6)
        yield Case(saved(folder, PIXELS, "e.png", exif=exif), PIXELS)


@case("CMYK")
def _(folder: Path) -> Cases:
    image = Image.fromarray(PIXELS).convert("CMYK")
    yield Case(saved(folder, image, "c.tif"), PIXELS)
    yield Case(saved(folder, image, "c.jpg", quality=98, subsampling=0), PIXELS, 8)
    yield Case(image, PIXELS)


@case("Grey")
def _(folder: Path) -> Cases:
    yield Case(saved(folder, GREY, "g.png"), GREY3)
    yield Case(saved(folder, GREY, "g.jpg", quality=98), GREY3, 4)


def layered(mode: str) -> tuple[Image.Image, np.ndarray]:
    """A picture whose left half is clear, and how it looks on white."""
    image = Image.fromarray(PIXELS).convert(mode)
    alpha = np.full(GREY.shape, 255, np.uint8)
    alpha[:, :16] = 0
    image.putalpha(Image.fromarray(alpha))
    looks = np.asarray(Image.fromarray(PIXELS).convert(mode).convert("RGB")).copy()
    looks[:, :16] = 255
    return image, looks


@case("Grey with alpha")
def _(folder: Path) -> Cases:
    image, looks = layered("L")
    yield Case(saved(folder, image, "la.png"), looks)
    yield Case(image.convert("La"), looks)


@case("Palette")
def _(folder: Path) -> Cases:
    image = Image.fromarray(PIXELS).quantize(64)
    yield Case(saved(folder, image, "p.png"), np.asarray(image.convert("RGB")))
    yield Case(saved(folder, image, "p.gif"), np.asarray(image.convert("RGB")))


@case("Palette with transparency")
def _(folder: Path) -> Cases:
    image = Image.fromarray(PIXELS).quantize(64)
    looks = np.asarray(image.convert("RGB")).copy()
    looks[np.asarray(image) == 3] = 255
    yield Case(saved(folder, image, "pt.png", transparency=3), looks)
    yield Case(saved(folder, image, "pt.gif", transparency=3), looks)


@case("RGBA")
def _(folder: Path) -> Cases:
    image, looks = layered("RGB")
    for suffix in ("png", "tif", "webp"):
        yield Case(saved(folder, image, f"rgba.{suffix}", lossless=True), looks)
    yield Case(np.asarray(image), looks)


@case("RGBA that is opaque")
def _(folder: Path) -> Cases:
    yield Case(saved(folder, np.dstack([PIXELS, np.full_like(GREY, 255)]), "o.png"), PIXELS)


@case("Black and white, 1 bit")
def _(folder: Path) -> Cases:
    image = Image.fromarray(GREY > 100)
    for suffix in ("png", "tif", "bmp"):
        yield Case(saved(folder, image, f"bw.{suffix}"), np.dstack([(GREY > 100) * 255] * 3))


@case("16-bit PNG and TIFF")
def _(folder: Path) -> Cases:
    deep = GREY.astype(np.uint16) * 257
    for suffix in ("png", "tif"):
        yield Case(saved(folder, deep, f"deep.{suffix}"), GREY3)
    yield Case(Image.fromarray(deep), GREY3)


@case("12 bits in 16")
def _(folder: Path) -> Cases:
    yield Case(saved(folder, GREY.astype(np.uint16) * 16, "twelve.png"), GREY3)


@case("16-bit colour")
def _(folder: Path) -> Cases:
    lines = b"".join(b"\0" + row.tobytes() for row in (PIXELS.astype(">u2") * 257))
    yield Case(written(folder, "deep.png", png(32, 24, lines, bits=16)), PIXELS)


def twelve(folder: Path, suffix: str) -> Path:
    cv2.imwrite(str(folder / f"twelve.{suffix}"), PIXELS[..., ::-1].astype(np.uint16) * 16)
    return folder / f"twelve.{suffix}"


@case("12 bits in 16, colour")
def _(folder: Path) -> Cases:
    for suffix in ("png", "tif"):
        yield Case(twelve(folder, suffix), PIXELS // 16)


@case("16-bit colour, JPEG 2000")
def _(folder: Path) -> Cases:
    large = cv2.resize(PIXELS, None, fx=8, fy=8).astype(np.uint16) * 257  # of smaller ones OpenCV writes none
    cv2.imwrite(str(folder / "deep.jp2"), large)
    yield Case(folder / "deep.jp2")
    yield Case(Image.open(folder / "deep.jp2"))


@case("LAB")
def _(folder: Path) -> Cases:
    lab = ImageCms.profileToProfile(
        Image.fromarray(PIXELS), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    yield Case(lab, PIXELS, 32)
    yield Case(saved(folder, lab, "lab.tif"), PIXELS, 32)  # the corners are beyond what 8 bits of LAB hold


def tiff(values: np.ndarray, order: str = "<", **changes: tuple[int, int, int]) -> bytes:
    """A TIFF of one strip of grey values; ``changes`` are entries (type, count, value) by tag, as t273=..."""
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    h, w = values.shape
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    tags = {256: (4, 1, w), 257: (4, 1, h), 258: (3, 1, values.itemsize * 8), 259: (3, 1, 1), 262: (3, 1, 1),
            273: (4, 1, 8), 277: (3, 1, 1), 278: (4, 1, h), 279: (4, 1, len(data)), 339: (3, 1, kind)}  # fmt: skip
    tags |= {int(name[1:]): entry for name, entry in changes.items()}
    out = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 8 + len(data)) + data
    out += struct.pack(order + "H", len(tags))
    for tag, (type_, count, value) in sorted(tags.items()):
        out += struct.pack(order + "HHI", tag, type_, count)
        out += struct.pack(order + ("HH" if type_ == 3 else "I"), *((value, 0) if type_ == 3 else (value,)))
    return out + bytes(4)


@case("32-bit float TIFF from 0 to 1")
def _(folder: Path) -> Cases:
    yield Case(written(folder, "f.tif", tiff(np.float32(GREY / 255))), GREY3)
    yield Case(written(folder, "f.tif", tiff(np.float32(GREY / 255), ">")), GREY3)
    yield Case(saved(folder, np.float32(GREY / 255), "pil.tif"), GREY3)


@case("32-bit float TIFF to a little more than 1")
def _(folder: Path) -> Cases:
    values = np.float32(GREY / 255)
    values[0, 0] = 1.02
    looks = GREY3.copy()
    looks[0, 0] = 255
    yield Case(written(folder, "f.tif", tiff(values)), looks)


@case("32-bit float TIFF of other values")
def _(folder: Path) -> Cases:
    for values in (np.linspace(-3, 1000, 768), np.linspace(-3e38, 3e38, 768), np.linspace(-1e-40, 0, 768)):
        looks = np.linspace(0, 255, 768).reshape(24, 32, 1).repeat(3, 2)
        yield Case(written(folder, "f.tif", tiff(values.reshape(24, 32).astype(np.float32))), looks, 1)


@case("32-bit float TIFF with NaN or infinity")
def _(folder: Path) -> Cases:
    for odd in (np.nan, np.inf, -np.inf):
        values, looks = np.float32(GREY / 255), GREY3.copy()
        values[5, 5], looks[5, 5] = odd, 0
        yield Case(written(folder, "nan.tif", tiff(values)), looks)
        yield Case(written(folder, "nan.tif", tiff(np.full((24, 32), odd, np.float32))), np.zeros_like(looks))


@case("Big-endian TIFF")
def _(folder: Path) -> Cases:
    yield Case(written(folder, "big.tif", tiff(GREY, ">")), GREY3)


@case("TIFF of several pages")
def _(folder: Path) -> Cases:
    pages = [Image.fromarray(255 - PIXELS)] * 2
    yield Case(saved(folder, PIXELS, "pages.tif", save_all=True, append_images=pages), PIXELS)


@case("Animated GIF, WebP, PNG")
def _(folder: Path) -> Cases:
    for suffix in ("gif", "webp", "png"):
        frames = [Image.fromarray(255 - GREY3)] * 2
        path = saved(folder, GREY3, f"a.{suffix}", save_all=True, append_images=frames, lossless=True)
        yield Case(path, GREY3, 8)


@case("PIL image that stands at another frame")
def _(folder: Path) -> Cases:
    frames = [Image.fromarray(255 - GREY3), Image.fromarray(GREY3)]
    image = Image.open(saved(folder, PIXELS, "a.gif", save_all=True, append_images=frames))
    image.seek(2)
    yield Case(image, GREY3, 8)


@case("JPEG 2000")
def _(folder: Path) -> Cases:
    yield Case(saved(folder, PIXELS, "p.jp2"), PIXELS)
    yield Case(saved(folder, PIXELS, "p.j2k"), PIXELS)


@case("AVIF")
def _(folder: Path) -> Cases:
    yield Case(saved(folder, PIXELS, "p.avif", quality=100), PIXELS, 16)


@case("HEIC, with pillow-heif installed")
def _(folder: Path) -> Cases:
    importlib.import_module("pillow_heif").register_heif_opener()
    yield Case(saved(folder, PIXELS, "p.heic", quality=-1), PIXELS, 16)


@case("HEIC, without pillow-heif")
def _(folder: Path) -> Cases:
    for brands in (b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0mif1heic"):
        yield Case(written(folder, "p.heic", b"\0\0\0\x18ftyp" + brands + bytes(100)))


def profile(space: bytes, gamma: float, **colorants: tuple[float, float, float]) -> bytes:
    """An ICC profile of one gamma; colorants are XYZ under D50 of r, g and b, or none for grey."""

    def fixed(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(v * 65536) for v in values))

    curve = b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256)) + bytes(2)
    tags = {b"desc": b"desc" + struct.pack(">II", 0, 5) + b"test\0" + bytes(79), b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1, 0.8249)}  # fmt: skip
    tags |= {f"{c}XYZ".encode(): b"XYZ \0\0\0\0" + fixed(*xyz) for c, xyz in colorants.items()}
    tags |= {f"{c}TRC".encode(): curve for c in (colorants or "k")}
    table, body = struct.pack(">I", len(tags)), b""
    for tag, content in tags.items():
        table += tag + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(content))
        body += content.ljust(-(-len(content) // 4) * 4, b"\0")
    head = struct.pack(">I4sI4s4s4s", 0, b"\0" * 4, 0x02400000, b"mntr", space, b"XYZ ") + bytes(12) + b"acsp"
    head = head.ljust(68, b"\0") + fixed(0.9642, 1, 0.8249)
    whole = head.ljust(128, b"\0") + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


ADOBE = profile(b"RGB ", 563 / 256, r=(0.60974, 0.31111, 0.01947), g=(0.20528, 0.62567, 0.06087), b=(0.14919, 0.06322, 0.74457))  # fmt: skip
LINEAR_GREY = profile(b"GRAY", 1.0)


@case("Colour profile (Display P3, Adobe RGB, grey)")
def _(folder: Path) -> Cases:
    red = np.full((24, 32, 3), (219, 0, 0), np.uint8)  # in Adobe RGB, what is pure red in sRGB
    for name in ("p.png", "p.tif", "p.webp"):
        yield Case(saved(folder, red, name, icc_profile=ADOBE, lossless=True), np.full_like(red, (255, 0, 0)), 2)
    yield Case(saved(folder, red, "p.jpg", icc_profile=ADOBE, quality=98), np.full_like(red, (255, 0, 0)), 6)
    half = np.full((24, 32), 55, np.uint8)  # of 255, linear
    yield Case(saved(folder, half, "g.png", icc_profile=LINEAR_GREY), np.full_like(red, 128), 3)
    clear = np.dstack([red, np.where(ROW < 12, 255, 255)]).astype(np.uint8)
    yield Case(saved(folder, clear, "a.png", icc_profile=ADOBE), np.full_like(red, (255, 0, 0)), 2)


@case("Broken colour profile")
def _(folder: Path) -> Cases:
    for broken in (b"nonsense", ADOBE[:200], ADOBE[:16] + b"CMYK" + ADOBE[20:], ADOBE[:12] + b"link" + ADOBE[16:]):
        yield Case(saved(folder, PIXELS, "b.png", icc_profile=broken), PIXELS)
    yield Case(saved(folder, PIXELS, "b.tif", icc_profile=bytes(images.MAX_PROFILE + 1)), PIXELS)


@case("One pixel")
def _(folder: Path) -> Cases:
    one = np.full((1, 1, 3), 7, np.uint8)
    yield Case(saved(folder, one, "one.png"), one)
    yield Case(one, one)


@case("1 x 20,000 pixels")
def _(folder: Path) -> Cases:
    for shape in ((1, 20_000, 3), (20_000, 1, 3)):
        small = tuple(min(n, images.WORKING_SIDE) for n in shape)
        yield Case(saved(folder, np.full(shape, 7, np.uint8), "long.png"), np.full(small, 7))


def png(width: int, height: int, lines: bytes = b"", bits: int = 8) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@case("200 megapixels")
def _(folder: Path) -> Cases:
    yield Case(written(folder, "large.png", png(20_000, 10_000)))
    yield Case(Image.new("1", (20_000, 10_000)))


@case("More than 100,000 pixels on a side")
def _(folder: Path) -> Cases:
    yield Case(written(folder, "long.png", png(100_001, 1)))
    yield Case(np.zeros((100_001, 1), np.uint8))


GIF = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
FRAME = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"


@case("A file that claims billions of pixels")
def _(folder: Path) -> Cases:
    side = 65_535
    yield Case(written(folder, "bomb.png", png(2**31 - 1, 2**31 - 1)))
    yield Case(written(folder, "bomb.gif", GIF[:6] + struct.pack("<HH", side, side) + GIF[10:] + FRAME + b";"))
    yield Case(written(folder, "bomb.gif", GIF + FRAME[:5] + struct.pack("<HH", side, side) + FRAME[9:] + b";"))
    yield Case(written(folder, "bomb.tif", tiff(GREY, t256=(4, 1, 10**9), t257=(4, 1, 10**9))))
    jpeg = saved(folder, np.zeros((8, 8), np.uint8), "bomb.jpg").read_bytes()
    place = jpeg.index(b"\xff\xc0") + 5
    yield Case(written(folder, "bomb.jpg", jpeg[:place] + struct.pack(">HH", side, side) + jpeg[place + 4 :]))


@case("A file of more than 500 MB")
def _(folder: Path) -> Cases:
    path = saved(folder, PIXELS, "heavy.png")
    os.truncate(path, images.MAX_BYTES + 1)
    yield Case(path)


@case("A GIF of 200,000 frames")
def _(folder: Path) -> Cases:
    yield Case(written(folder, "many.gif", GIF + FRAME * 200_000 + b";"), np.full((1, 1, 3), 0))


@case("A TIFF of 100,000 pages")
def _(folder: Path) -> Cases:
    page = tiff(np.zeros((1, 1), np.uint8))[9:-4]
    places = [9 + i * (len(page) + 4) for i in range(100_000)]
    pages = b"".join(page + struct.pack("<I", place) for place in [*places[1:], 0])
    yield Case(written(folder, "many.tif", struct.pack("<2sHIB", b"II", 42, 9, 0) + pages), np.zeros((1, 1, 3)))


@case("A TIFF in millions of strips")
def _(folder: Path) -> Cases:
    values = np.zeros((1000, 10_000), np.uint8)
    yield Case(written(folder, "strips.tif", tiff(values, t273=(4, 2_500_000, 8))))
    yield Case(written(folder, "strips.tif", tiff(values, ">", t258=(3, 5_000_000, 8))))


@case("A TIFF whose tags share their bytes")
def _(folder: Path) -> Cases:
    shared = {f"t{tag}": (7, 10_000, 8) for tag in range(40_000, 40_100)}
    yield Case(written(folder, "shared.tif", tiff(np.zeros((100, 100), np.uint8), **shared)))


@case("A JPEG of thousands of scans")
def _(folder: Path) -> Cases:
    jpeg = saved(folder, np.zeros((2000, 2000), np.uint8), "scans.jpg", progressive=True).read_bytes()
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    yield Case(written(folder, "scans.jpg", jpeg[:-2] + last * 1000 + jpeg[-2:]))


@case("A JPEG of megabytes of EXIF")
def _(folder: Path) -> Cases:
    jpeg = saved(folder, PIXELS, "exif.jpg", exif=b"Exif\0\0" + bytes(60_000)).read_bytes()
    block = jpeg[jpeg.index(b"\xff\xe1") :][:60_010]
    yield Case(written(folder, "exif.jpg", jpeg[:2] + block * 30 + jpeg[2:]))


@case("A large BMP in run lengths")
def _(folder: Path) -> Cases:
    head = struct.pack("<IiiHHIIiiII", 40, 20_000, 1000, 1, 8, 1, 0, 0, 0, 256, 0)
    start = b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + 40 + 1024)
    yield Case(written(folder, "runs.bmp", start + head + bytes(1024) + b"\x01\x05\0\0" * 1000))


SUFFIXES = ("jpg", "png", "webp", "gif", "tif", "bmp", "jp2", "avif")


def noisy() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)


@case("Truncated file")
def _(folder: Path) -> Cases:
    for suffix in SUFFIXES:
        whole = saved(folder, noisy(), f"cut.{suffix}").read_bytes()
        for share in (0.6, 0.8, 0.95):
            yield Case(written(folder, f"cut.{suffix}", whole[: int(len(whole) * share)]))


@case("Flipped bits")
def _(folder: Path) -> Cases:
    draw = np.random.default_rng(0)
    for suffix in SUFFIXES:
        whole = saved(folder, PIXELS, f"flip.{suffix}", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0", icc_profile=ADOBE).read_bytes()  # fmt: skip
        for _ in range(40):
            flipped = bytearray(whole)
            for place in draw.integers(0, len(whole), 4):
                flipped[place] ^= 1 << draw.integers(8)
            yield Case(written(folder, f"flip.{suffix}", bytes(flipped)))


@case("Text, HTML, SVG or ZIP named .jpg")
def _(folder: Path) -> Cases:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.txt", "text")
    for content in (b"hello", b"<!DOCTYPE html><script>alert(1)</script>", b"<svg xmlns='http://www.w3.org/2000/svg'/>",
                    packed.getvalue(), b"\xff\xd8", b"GIF", b"II*\0", bytes(100)):  # fmt: skip
        yield Case(written(folder, "a.jpg", content))


@case("EPS, PDF, PSD, ICO and other formats")
def _(folder: Path) -> Cases:
    for suffix in ("eps", "pdf", "ico", "ppm", "tga", "pcx", "sgi", "dds", "im"):
        yield Case(saved(folder, PIXELS, f"o.{suffix}"))
    yield Case(written(folder, "o.psd", b"8BPS\0\1" + bytes(100)))


@case("Empty file")
def _(folder: Path) -> Cases:
    yield Case(written(folder, "empty.jpg", b""))


@case("Missing path")
def _(folder: Path) -> Cases:
    yield Case(folder / "none.jpg")
    yield Case(written(folder, "file", b"x") / "below.jpg")
    yield Case("https://example.com/cat.jpg")
    (folder / "link.jpg").symlink_to(folder / "nowhere.jpg")
    yield Case(folder / "link.jpg")


@case("Folder")
def _(folder: Path) -> Cases:
    yield Case(folder)
    yield Case("")


@case("Device or pipe")
def _(folder: Path) -> Cases:
    os.mkfifo(folder / "pipe.jpg")
    yield Case(folder / "pipe.jpg")
    for device in ("/dev/zero", "/dev/null", "/dev/tty", "/dev/stdin"):
        if Path(device).is_char_device():
            yield Case(device)


@case("A path that no file can have")
def _(folder: Path) -> Cases:
    yield Case("a\0b.jpg")
    yield Case("half a character \ud800.jpg")


@case("A path that is too long")
def _(folder: Path) -> Cases:
    yield Case("x" * 5000)


@case("A file that may not be read")
def _(folder: Path) -> Cases:
    path = saved(folder, PIXELS, "secret.png")
    path.chmod(0)
    yield Case(path)


@case("Any Unicode in a file name")
def _(folder: Path) -> Cases:
    for name in (
        "猫 🐈‍⬛.png",
        "قط.png",
        "\u202egnp.exe.png",
        "a\nb\t.png",
        "<script>$x$.png",
        "%2e%2e.png",
        "e\u0301.png",
    ):
        yield Case(saved(folder, PIXELS, name), PIXELS)


@case("Bytes in a file name that are no UTF-8")
def _(folder: Path) -> Cases:
    yield Case(saved(folder, PIXELS, "p.png").rename(folder / os.fsdecode(b"caf\xe9.png")), PIXELS)


@case("Array of bool")
def _(folder: Path) -> Cases:
    yield Case(GREY > 100, np.dstack([(GREY > 100) * 255] * 3))


INTEGERS = ("uint8", "uint16", "uint32", "uint64", "int16", "int32", "int64", ">u2", ">i4")
FRACTIONS = ("float16", "float32", "float64", "longdouble", ">f8")


@case("Array of whole numbers from 0 to 255, any type")
def _(folder: Path) -> Cases:
    for kind in INTEGERS:
        yield Case(PIXELS.astype(kind), PIXELS)
        yield Case(GREY.astype(kind), GREY3)
        yield Case(GREY[..., None].astype(kind), GREY3)
    yield Case((PIXELS // 2).astype(np.int8), PIXELS // 2)


@case("Array of whole numbers up to 65535")
def _(folder: Path) -> Cases:
    for kind in ("uint16", "int32", "int64", "uint64"):
        yield Case(PIXELS.astype(kind) * 257, PIXELS)


@case("Array of fractions from 0 to 1, any type")
def _(folder: Path) -> Cases:
    for kind in FRACTIONS:
        yield Case((PIXELS / 255).astype(kind), PIXELS)


@case("Array of fractions from 0 to 1 with rounding beyond")
def _(folder: Path) -> Cases:
    for scale in (1.0000002, 1.0005):
        values = PIXELS / PIXELS.max() * scale
        yield Case(values.astype(np.float32), np.rint(255.0 * PIXELS / PIXELS.max()), 1)
    for least, most in ((-1e-9, 255), (-1e-9, 60)):
        yield Case((PIXELS.clip(0, most) / 255 + least).clip(least), PIXELS.clip(0, most))


@case("Array of fractions a tenth beyond 0 to 1")
def _(folder: Path) -> Cases:
    values = np.clip(PIXELS / 255, 0.01, 0.99)
    values[0, 0], values[0, 1] = -0.1, 1.1
    looks = np.rint(values.clip(0, 1) * 255)
    yield Case(values, looks)


@case("Array of fractions from 0 to 255, any type")
def _(folder: Path) -> Cases:
    for kind in FRACTIONS:
        yield Case(PIXELS.astype(kind), PIXELS)


@case("Array of other numbers")
def _(folder: Path) -> Cases:
    ramp = np.linspace(0, 255, 768).reshape(24, 32, 1).repeat(3, 2)
    for kind in ("float32", "float64", "longdouble"):
        yield Case((ramp * 3 - 100).astype(kind), ramp, 1)
    for low, high in ((-8e307, 8e307), (-(2.0**63), 2.0**62)):
        yield Case(low + (high / 255 - low / 255) * ramp, ramp, 1)
    yield Case((ramp - 128).astype(np.int8), ramp, 1)
    yield Case((ramp * 2**22).astype(np.int32), ramp, 1)
    yield Case(np.full((24, 32), -5), np.zeros_like(PIXELS))


@case("Array with NaN or infinity")
def _(folder: Path) -> Cases:
    for odd in (np.nan, np.inf, -np.inf):
        for kind in FRACTIONS:
            values = (GREY / 255).astype(kind)
            values[0, 0] = odd
            yield Case(values)


@case("Array of complex numbers, text or objects")
def _(folder: Path) -> Cases:
    for kind in ("complex64", "U1", "S1", "O", "M8[s]", "m8[s]", [("a", "u1"), ("b", "f4")], "V3"):
        yield Case(np.zeros((4, 5), kind))


@case("Array of another shape")
def _(folder: Path) -> Cases:
    for shape in ((), (3,), (4, 5, 2), (4, 5, 5), (1, 4, 5, 3), (1,) * 30):
        yield Case(np.zeros(shape, np.uint8))


@case("Array with the channels first")
def _(folder: Path) -> Cases:
    for channels in (1, 3, 4):
        yield Case(np.zeros((channels, 24, 32), np.uint8))


@case("Array without pixels")
def _(folder: Path) -> Cases:
    for shape in ((0, 5, 3), (5, 0), (0, 0, 4)):
        yield Case(np.zeros(shape, np.uint8))


@case("Array of 200 megapixels")
def _(folder: Path) -> Cases:
    yield Case(np.broadcast_to(np.float64(0), (10_000, 20_000, 3)))


@case("Read-only, memory-mapped, strided or Fortran-ordered array")
def _(folder: Path) -> Cases:
    before = PIXELS.copy()
    fixed = PIXELS.copy()
    fixed.setflags(write=False)
    np.save(folder / "p.npy", PIXELS)
    yield Case(fixed, before)
    for mode in ("r", "c"):
        yield Case(np.load(folder / "p.npy", mmap_mode=mode), before)
    yield Case(np.asfortranarray(PIXELS), before)
    yield Case(PIXELS[::-1, ::2], before[::-1, ::2])
    yield Case(np.ma.masked_array(PIXELS, PIXELS > 3), before)
    assert np.array_equal(PIXELS, before)


@case("Anything else")
def _(folder: Path) -> Cases:
    for other in (None, 3, b"p.png", io.BytesIO(b""), [[1, 2]], np.uint8(3)):
        yield Case(other)


def test_each_row_has_a_case_and_each_case_a_row():
    assert list(CASES) == list(ROWS)


@pytest.mark.parametrize("name", list(CASES))
def test_row(name, tmp_path, monkeypatch):
    row = ROWS[name]
    if "without pillow-heif" in name:
        monkeypatch.setattr(importlib, "import_module", lambda _: missing())
    elif "with pillow-heif" in name:
        pytest.importorskip("pillow_heif")
    elif "may not be read" in name and os.geteuid() == 0:  # who may read everything
        monkeypatch.setattr(Path, "open", lambda *_: denied())
    given = 0
    for source, pixels, tolerance in CASES[name](tmp_path):
        given += 1
        began = time.monotonic()
        picture, said = opened(source)
        assert time.monotonic() - began < SECONDS
        if row.outcome.startswith("refused"):
            assert picture is None, source
        elif row.outcome.startswith("used or refused"):
            continue
        else:
            assert picture is not None, said
            assert picture.pixels.dtype == np.uint8
            assert picture.pixels.shape[2:] == (3,)
            if pixels is not None:
                assert picture.pixels.shape == np.shape(pixels)
                assert np.abs(picture.pixels.astype(int) - np.asarray(pixels, int)).max() <= tolerance, source
        assert any(message in said for message in row.message.split(" / "))
        assert row.message or not said
    assert given


def missing() -> None:
    raise ImportError


def denied() -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def opened(source: object) -> tuple[Picture | None, str]:
    """What it becomes, and what is said of it."""
    try:
        picture = open_picture(source)
    except InputError as error:
        return None, str(error)
    return picture, " ".join(picture.warnings)


@pytest.mark.parametrize("path", sorted(SEEDS.iterdir()), ids=lambda path: path.name)
def test_every_seed_of_the_fuzzer_is_a_picture(path):
    assert open_picture(path).size in {(12, 16), (16, 12)}
