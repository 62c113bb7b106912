"""Small files that cost much: told apart by their headers, before Pillow reads any of it.

The size in pixels is checked in ``images``. What is refused here multiplies the work or the memory beyond
that size, gets past Pillow, and is not found in pictures that people take.
"""

from __future__ import annotations

import os
import re
import struct
from typing import BinaryIO

from imrseg.errors import InputError

MAX_SCANNED = 2_000_000_000  # pixels x scans of a JPEG; a progressive one has about ten scans
MAX_EXIF = 2**17  # bytes; a JPEG's are one block of 64 KB, whose entries Pillow may copy once for each of them
MAX_NUMBERS = 8_000_000  # bytes of numbers in one tag of a TIFF: a million strips or tiles
MAX_RUNS = 10_000_000  # pixels of a BMP in run lengths, which Pillow decodes in Python

SEGMENT = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # begins a JPEG's segment, or ends the picture
TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}  # by type
TIFF_TEXT = {1, 2, 7}  # types that stay bytes; of others, each number becomes an object of Python's


def check_file(file: BinaryIO, name: str) -> None:
    """Refuse a file that would cost far more than its size and its pixels say.

    Args:
        file: at its beginning; it is left there.
        name: for the message.

    Raises:
        InputError: a JPEG of very many scans or much EXIF, a TIFF in millions of pieces, a large BMP in run
            lengths. Files that are broken are left to Pillow.
    """
    start = file.read(64)
    file.seek(0)
    if start[:2] == b"\xff\xd8":
        costly = _costly_jpeg(file.read())
    elif start[:2] in (b"II", b"MM") and (42 in start[2:4] or 43 in start[2:4]):
        costly = _costly_tiff(file)
    elif start[:2] == b"BM" and len(start) >= 34:
        width, height, _, _, runs = struct.unpack("<iiHHI", start[18:34])
        costly = runs in (1, 2) and abs(width * height) > MAX_RUNS
    else:
        costly = False
    file.seek(0)
    if costly:
        raise InputError(f"“{name}” is built so that decoding it would take too long. Save it anew, as PNG or JPEG.")


def _costly_jpeg(data: bytes) -> bool:
    """Whether the file's first picture has too many scans, or too much EXIF before them."""
    pixels = scans = exif = 0
    place = 2
    while found := SEGMENT.search(data, place):
        kind, place = data[found.end() - 1], found.end()
        if kind == 0xD9:
            break
        if kind == 0xDA:
            scans += 1
        elif 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC) and len(data) >= place + 7:
            height, width = struct.unpack(">HH", data[place + 3 : place + 7])
            pixels = max(pixels, height * width)
        length = max(2, int.from_bytes(data[place : place + 2], "big"))
        exif += length if kind == 0xE1 and data[place + 2 : place + 6] == b"Exif" else 0
        if exif > MAX_EXIF or (scans > 1 and scans * pixels > MAX_SCANNED):
            return True
        place += length
    return False


def _costly_tiff(file: BinaryIO) -> bool:
    """Whether the first page's tags hold more bytes than the file, or one of them too many numbers."""
    size = os.fstat(file.fileno()).st_size
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = head[2] == 43  # as Pillow tells it
    entry = struct.Struct(order + ("HHQ8x" if big else "HHI4x"))
    try:
        (place,) = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)
        file.seek(place)
        (entries,) = struct.unpack(order + ("Q" if big else "H"), file.read(8 if big else 2))
        if entries > 2**16:
            return True
        table = file.read(entries * entry.size)
    except (struct.error, OSError, OverflowError, ValueError):
        return False
    held = 0
    for _, kind, count in entry.iter_unpack(table[: len(table) // entry.size * entry.size]):
        length = count * TIFF_SIZES.get(kind, 0)
        held += length
        if length > MAX_NUMBERS and kind not in TIFF_TEXT:
            return True
    return held > size + 8 * entries


def bits_of_jp2(file: BinaryIO) -> int:
    """Bits of the first channel of a JPEG 2000; of colours of more than 8 Pillow makes black of white. Its place is kept."""
    place = file.tell()
    file.seek(0)
    start = file.read(2**20)  # boxes of profiles come before it
    file.seek(place)
    sizes = start.find(b"\xff\x4f\xff\x51")  # begins the codestream, with the segment of its sizes
    return (start[sizes + 42] & 0x7F) + 1 if 0 <= sizes < len(start) - 42 else 0
