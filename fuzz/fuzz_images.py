"""Coverage-guided fuzzing of the picture loader. See fuzz/README.md.

Whatever a file holds, ``open_picture`` gives a picture within the limits or raises ``InputError``.
"""

import struct
import sys
import tempfile
import zlib
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))
with atheris.instrument_imports(include=["imrseg", "PIL"]):
    from imrseg import images
    from imrseg.errors import InputError

images.MAX_PIXELS = 1_000_000  # thousands of pictures a second are worth more than a few large ones
SIGNATURE = b"\x89PNG\r\n\x1a\n"
FILE = Path(tempfile.mkdtemp(), "picture.jpg")


def try_one(data: bytes) -> None:
    FILE.write_bytes(data)
    try:
        picture = images.open_picture(FILE, side=320)
    except InputError:
        return
    height, width = picture.size
    assert height * width <= images.MAX_PIXELS, picture.size
    assert picture.pixels.dtype == "uint8", picture.pixels.dtype
    assert picture.pixels.ndim == 3, picture.pixels.shape
    assert max(picture.pixels.shape) == min(max(height, width), 320) or max(height, width) < 3, picture.pixels.shape


def mutate(data: bytes, most: int, seed: int) -> bytes:
    """libFuzzer's mutation, with a PNG's checksums made right again, or it would seldom get past them."""
    data = bytes(atheris.Mutate(data, most))
    if not data.startswith(SIGNATURE) or seed % 8 == 0:
        return data
    out, place = bytearray(data), len(SIGNATURE)
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            break
        struct.pack_into(">I", out, end, zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return bytes(out)


atheris.Setup(sys.argv, try_one, custom_mutator=mutate)
atheris.Fuzz()
