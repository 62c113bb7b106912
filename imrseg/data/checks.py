"""Everything that is wrong with a data set, told at once and before any work."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from imrseg.data.entries import UNREADABLE, Entry, by_class
from imrseg.errors import InputError
from imrseg.images import MAX_PIXELS

SHOWN = 5  # names of each kind of problem
TURNED = range(5, 9)  # EXIF orientations that swap height and width
ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND"}  # how JPEG and PNG begin, and what is at the end of whole ones
TAIL = 64 * 2**10  # bytes at a file's end; some cameras write things of their own there

Problems = Mapping[str, list[str]]


def check(entries: Iterable[Entry], others: Problems | None = None) -> None:
    """See that every file is there, whole, and as large as its partner.

    Args:
        entries: of which pictures and masks are looked at, without decoding more than the doubtful.
        others: names by kind of problem, found elsewhere, that go into the same message.

    Raises:
        InputError: something is wrong, in the words of ``tell``.
    """
    problems: dict[str, dict[str, None]] = defaultdict(dict)  # names once each, in order
    for kind, names in (others or {}).items():
        problems[kind].update(dict.fromkeys(names))
    unique = {(e.image, e.mask): e for e in entries}.values()
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(_problem, unique):
            for kind, name in found:
                problems[kind][name] = None
    tell({kind: list(names) for kind, names in problems.items()})


def tell(problems: Problems) -> None:
    """Refuse a data set that has problems.

    Raises:
        InputError: there is one; the message gives each kind, how often it occurs and the first names.
    """
    told = [f"{kind} ({len(names)}): {some(names)}" for kind, names in problems.items() if names]
    if told:
        raise InputError(f"The data cannot be used. {'. '.join(told)}.")


def some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def alone(entries: list[Entry]) -> list[str]:
    """Classes of a single picture, of which no episode can be made."""
    return sorted(name for name, members in by_class(entries).items() if len({entries[i].image for i in members}) < 2)


def _problem(entry: Entry) -> list[tuple[str, str]]:
    missing = [path for path in (entry.image, entry.mask) if not path.is_file()]
    if missing:
        return [("Files are missing", str(path)) for path in missing]
    out, size, mask_size = [], None, None
    try:
        with Image.open(entry.image) as image:
            turned = image.format != "TIFF" and image.getexif().get(0x0112, 1) in TURNED  # a TIFF has turned itself
            size = (image.width, image.height) if turned else (image.height, image.width)
        if not _whole(entry.image):
            out.append(("Pictures are cut short", str(entry.image)))
    except UNREADABLE:
        out.append(("Files are not pictures that can be read", str(entry.image)))
    if size and size[0] * size[1] > MAX_PIXELS:
        out.append((f"Pictures have more than {MAX_PIXELS // 10**6} megapixels", str(entry.image)))
    try:
        mask_size = entry.mask_size()
        if not _whole(entry.mask):
            out.append(("Masks are cut short", str(entry.mask)))
    except InputError as error:
        out.append((str(error), str(entry.mask)))
    except UNREADABLE:
        out.append(("Files are not masks that can be read", str(entry.mask)))
    if size and mask_size and size != mask_size:
        said = f"{entry.mask} ({mask_size[1]} x {mask_size[0]}, its picture {size[1]} x {size[0]})"
        out.append(("Masks have another size than their picture", said))
    return out


def _whole(path: Path) -> bool:
    """Whether a picture ends as its kind does, a PNG's sums are right; else whether it can be decoded all the same."""
    with path.open("rb") as file:
        end = ENDS.get(file.read(2))
        file.seek(max(0, file.seek(0, 2) - TAIL))
        ends = end is not None and end in file.read()
    try:
        with Image.open(path) as image:
            if not ends:
                image.load()
            elif image.format == "PNG":
                image.verify()
    except UnidentifiedImageError:
        return True  # annotations, which their reader has seen to
    except UNREADABLE:
        return False
    return True
