"""PASCAL-5i, COCO-20i, FSS-1000 and plain folders: which entries are trained on, and which are scored.

Fold lists are HSNet's, or are made where no folder of lists is given:

- PASCAL: classes 5k + 1 to 5k + 5 are fold k. ``val`` are the pictures that
  ``VOC2012/ImageSets/Segmentation/val.txt`` names, ``trn`` all others with a mask; a picture is listed
  under every class of the fold that its mask shows.
- COCO: class numbers k, k + 4, k + 8, ... are fold k. ``trn`` are pictures of train2014, ``val`` of
  val2014; a class is listed with a picture in which it has 2 x 32 x 32 pixels or more.
- FSS: of every 25 classes in the order of their names the first 13 are ``trn``, 6 ``val`` and 6
  ``test``, HSNet's proportions.
"""

from __future__ import annotations

import logging
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from imrseg.data import coco
from imrseg.data.checks import alone, check, some, tell
from imrseg.data.entries import COLOURS, IGNORE, UNREADABLE, Entry, spelled_out
from imrseg.data.pickles import load_lists
from imrseg.errors import InputError

BENCHMARKS = ("pascal", "coco", "fss", "folder")
FOLDS = 4
PASCAL = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
COCO_PARTS = {"trn": "train2014", "val": "val2014"}
FSS_PARTS = {"trn": range(13), "val": range(13, 19), "test": range(19, 25)}
FSS_ABOVE = 127  # HSNet's: the object is brighter
LOSSY = (".jpg", ".jpeg")
LEFT_BY_WINDOWS = ("Thumbs.db", "desktop.ini")
PARTS_OF = {"person": "face"}  # a class that is held out takes these of other data sets with it

log = logging.getLogger(__name__)


def held_out(benchmark: str, data: Path, splits: Path | None, fold: int | None) -> list[Entry]:
    """The entries that are scored: the ``val`` list of a fold, of all folds for None; of FSS its ``test`` list;
    of a folder everything.

    Raises:
        InputError: unknown benchmark or fold; lists or files that are missing or broken, all in one message.
    """
    if fold is not None and benchmark in ("pascal", "coco") and not 0 <= fold < FOLDS:
        raise InputError(f"There is no fold {fold}. Accepted: 0 to {FOLDS - 1}.")
    if fold is not None and benchmark in ("fss", "folder"):
        raise InputError(f"{benchmark} has no folds. Leave the fold out.")
    folds = range(FOLDS) if fold is None else [fold]
    if benchmark == "pascal":
        entries = pascal(data, splits, "val", folds)
    elif benchmark == "coco":
        entries = [e for f in folds for e in coco20i(data, splits, "val", f)]
    elif benchmark == "fss":
        entries = fss(data, splits, "test")
    elif benchmark == "folder":
        entries = folder(data)
    else:
        raise InputError(f"There is no benchmark “{benchmark}”. Accepted: {', '.join(BENCHMARKS)}.")
    entries = list(dict.fromkeys(entries))  # a picture that is listed twice would be its own support
    check(entries, folder_problems(data) if benchmark == "folder" else None)
    return entries


def gather(
    benchmark: str, data: Path, splits: Path | None, fold: str, extra: Sequence[str]
) -> tuple[list[list[Entry]], set[Path]]:
    """The training entries: the ``trn`` lists without the fold that is held out, then each extra data set.

    Classes of an extra data set that are called as a held-out one are left out. Also returns the pictures
    of all folds, so that features made for one fold serve the others.

    Raises:
        InputError: unknown benchmark, fold or extra; files that are missing or broken, and classes of
            folders with a single picture, all in one message.
    """
    if benchmark in ("pascal", "coco") and fold != "all" and fold not in map(str, range(FOLDS)):
        raise InputError(f"There is no fold “{fold}”. Accepted: 0 to {FOLDS - 1}, or all.")
    if benchmark in ("fss", "folder") and fold != "all":
        raise InputError(f"{benchmark} has no folds. Leave the fold out.")
    out = None if fold == "all" else int(fold) if fold.isdigit() else None
    held: set[str] = set()
    if benchmark == "pascal":
        whole = list(dict.fromkeys(pascal(data, splits, "trn", range(FOLDS))))
        held = set() if out is None else set(PASCAL[5 * out : 5 * out + 5])
    elif benchmark == "coco":
        lists = [coco20i(data, splits, "trn", f) for f in range(FOLDS)]
        whole = list(dict.fromkeys(entry for entries in lists for entry in entries))
        held = set() if out is None else {e.name for e in whole} - {e.name for e in lists[out]}
    elif benchmark == "fss":
        whole = list(dict.fromkeys(fss(data, splits, "trn")))
    elif benchmark == "folder":
        whole = folder(data)
    else:
        raise InputError(f"There is no benchmark “{benchmark}”. Accepted: {', '.join(BENCHMARKS)}.")
    sources, pictures = [[e for e in whole if e.name not in held]], list(whole)
    problems: dict[str, list[str]] = defaultdict(list)
    folders = [data] if benchmark == "folder" else []
    held |= {PARTS_OF[name] for name in held & PARTS_OF.keys()}
    labels = {spelled_out(name).casefold() for name in held}  # another data set may write them otherwise
    for item in extra:
        kind, _, path = item.partition(":")
        if kind != "folder" or not path:
            raise InputError(f"An extra data set is given as folder:DIR, not “{item}”.")
        folders.append(Path(path).expanduser())  # after the colon a shell leaves ~ as it is
        entries = folder(folders[-1])
        pictures += entries
        sources.append([entry for entry in entries if entry.label.casefold() not in labels])
    for root in folders:
        for problem, names in folder_problems(root).items():
            problems[problem] += names
        problems["Classes have a single picture, of which no episode can be made"] += [
            f"{root / name}" for name in alone(folder(root))
        ]
    check(pictures, problems)
    lonely = [] if benchmark == "folder" else alone(sources[0])
    if lonely:
        log.warning("Classes with a single picture in the lists are not trained on: %s.", some(lonely))
    return sources, {entry.image for entry in pictures}


def classes(benchmark: str, entries: list[Entry]) -> tuple[str, ...]:
    """The whole class list of a data set, spelled out; of FSS and folders the classes of ``entries``."""
    if benchmark == "pascal":
        return tuple(map(spelled_out, PASCAL))
    known = [e.annotations.names for e in entries[:1] if isinstance(e, coco.CocoEntry)]
    if known:
        return tuple(map(spelled_out, known[0]))
    return tuple(sorted({entry.label for entry in entries}))


def expected(benchmark: str, entries: list[Entry], fold: int | None) -> list[str]:
    """The names of all classes of a fold, or of all folds for None, with and without a picture in the lists."""
    if benchmark == "pascal":
        return list(PASCAL if fold is None else PASCAL[5 * fold : 5 * fold + 5])
    known = [e.annotations.names for e in entries[:1] if isinstance(e, coco.CocoEntry)]
    if known:
        return list(known[0] if fold is None else known[0][fold::FOLDS])
    return sorted({entry.name for entry in entries})


def pascal(data: Path, splits: Path | None, part: str, folds: Iterable[int]) -> list[Entry]:
    """PASCAL-5i entries in the order of the fold lists ``splits/part/foldK.txt``; None: of lists made here.

    Args:
        data: folder that holds ``VOC2012/``.
        part: "trn" or "val".

    Raises:
        InputError: lists are missing or have lines of another kind, all in one message.
    """
    root, entries = data / "VOC2012", []
    made = pascal_lists(root, part) if splits is None else {}
    missing, odd, others = [], [], []
    for fold in folds:
        file = None if splits is None else splits / part / f"fold{fold}.txt"
        if file is not None and not file.is_file():
            missing.append(str(file))
            continue
        for line in made[fold] if file is None else lines_of(file):
            image, _, number = line.partition("__")
            if not number.isdecimal() or not 1 <= int(number) <= len(PASCAL):
                odd.append(f"“{line}” of {file}")
                continue
            if (int(number) - 1) // 5 != fold:
                others.append(f"“{line}” of {file}")
                continue
            entries.append(
                Entry(
                    root / "JPEGImages" / f"{image}.jpg",
                    root / "SegmentationClassAug" / f"{image}.png",
                    PASCAL[int(number) - 1],
                    int(number),
                )
            )
    tell({"Fold lists are missing": missing, "Lines are not such as 2008_000008__13": odd,
          "Lines are of a class of another fold (fold0 has 01 to 05)": others})  # fmt: skip
    return entries


def pascal_lists(root: Path, part: str) -> dict[int, list[str]]:
    """Lines of HSNet's format by fold, made from the masks in ``root/SegmentationClassAug``.

    Raises:
        InputError: VOC's list of val pictures is missing, or masks are, hold colours or cannot be read.
    """
    file = root / "ImageSets" / "Segmentation" / "val.txt"
    if not file.is_file():
        raise InputError(
            "pascal needs --splits, the folder that holds val/fold0.txt to val/fold3.txt (and trn/),"
            f" or {file}, from which such lists are made."
        )
    val = set(lines_of(file))
    masks = {p.stem: p for p in sorted((root / "SegmentationClassAug").glob("*.png"))}
    names = sorted(val) if part == "val" else sorted(masks.keys() - val)
    lists: dict[int, list[str]] = {fold: [] for fold in range(FOLDS)}
    broken, coloured = [], []
    for name in names:
        path, shown = root / "SegmentationClassAug" / f"{name}.png", set()
        try:
            with Image.open(path) as image:
                if len(image.getbands()) > 1:
                    coloured.append(str(path))
                else:
                    shown = set(np.unique(np.asarray(image)).tolist()) - {0, IGNORE}
        except UNREADABLE:
            broken.append(str(path))
        for number in sorted(shown & set(range(1, len(PASCAL) + 1))):
            lists[(number - 1) // 5].append(f"{name}__{number:02d}")
    tell({"Masks are missing or cannot be read": broken, COLOURS: coloured})
    return lists


def lines_of(file: Path) -> list[str]:
    """What stands in the lines of a list, without blank ones.

    Raises:
        InputError: it is not text in UTF-8.
    """
    try:
        return [line.strip() for line in file.read_text("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise InputError(f"The list {file} is not text in UTF-8. Save it as UTF-8.") from None


def coco20i(data: Path, splits: Path | None, part: str, fold: int) -> list[Entry]:
    """COCO-20i entries of ``splits/part/foldK.pkl``; None: of lists made here.

    ``val`` lists hold the classes of the fold, ``trn`` lists those of all others.

    Args:
        data: folder that holds ``COCO2014/``, and in it ``train2014/``, ``val2014/`` and
            ``annotations/instances_train2014.json`` and ``..._val2014.json``.
        part: "trn" or "val".

    Raises:
        InputError: annotations or a list are missing or of another kind.
    """
    root = data / "COCO2014"
    if splits is None:
        folder = COCO_PARTS[part]
        listed = coco.read(root / "annotations" / f"instances_{folder}.json").listed()
        lists = {
            number: [f"{folder}/{name}" for name in names]
            for number, names in listed.items()
            if (number % FOLDS == fold) == (part == "val")
        }
    else:
        lists = load_lists(splits / part / f"fold{fold}.pkl")
    entries: list[Entry] = []
    unknown, elsewhere, numbers, others = [], [], [], []
    for number, names in sorted(lists.items()):
        for name in names:
            folder, _, file = name.partition("/")
            if folder not in COCO_PARTS.values():
                elsewhere.append(name)
                continue
            mask = root / "annotations" / f"instances_{folder}.json"
            known = coco.read(mask)
            picture = known.find(file)
            if picture is None:
                unknown.append(name)
                continue
            if not 0 <= number < len(known.names):
                numbers.append(str(number))
                break
            if part == "val" and number % FOLDS != fold:
                others.append(str(number))
                break
            entries.append(
                coco.CocoEntry(
                    root / name, mask, known.names[number], number, annotations=known, picture=picture
                )
            )  # fmt: skip
    tell(
        {
            f"The annotations lack pictures of fold {fold}'s {part} list": unknown,
            f"Pictures of fold {fold}'s {part} list are not in {' or '.join(COCO_PARTS.values())}": elsewhere,
            f"Classes of fold {fold}'s {part} list are not among the annotations'": numbers,
            f"Classes of fold {fold}'s {part} list belong to another fold": others,
        }
    )
    return entries


def fss(data: Path, splits: Path | None, part: str) -> list[Entry]:
    """FSS-1000 entries, ``data/FSS-1000/class/1.jpg`` and ``1.png``, of the classes in ``splits/part.txt``.

    Args:
        part: "trn", "val" or "test".

    Raises:
        InputError: there are no classes, or the list is missing or names a class that is not there or is empty.
    """
    root = data / "FSS-1000"
    there = sorted(p.name for p in root.glob("*") if p.is_dir() and not p.name.startswith((".", "__")))  # __MACOSX
    if not there:
        raise InputError(f"{root} holds no classes. Expected {root}/class/1.jpg with its mask 1.png.")
    if splits is None:
        names = [name for i, name in enumerate(there) if i % 25 in FSS_PARTS[part]]
    else:
        file = splits / f"{part}.txt"
        if not file.is_file():
            raise InputError(f"The class list {file} is missing. Expected a class's name in each line.")
        names = sorted(lines_of(file))
        absent = sorted(set(names) - set(there))
        if absent:
            raise InputError(f"{file} lists classes ({len(absent)}) that {root} lacks: {some(absent)}.")
    entries, empty = [], []
    for name in names:
        pictures = [p for p in _files(root / name) if p.suffix.lower() == ".jpg"]
        pictures.sort(key=lambda p: (len(p.stem), p.stem))
        entries += [Entry(p, p.with_suffix(".png"), name, above=FSS_ABOVE) for p in pictures]
        empty += [] if pictures else [str(root / name)]
    tell({"Classes are empty": empty})
    return entries


def folder(root: Path) -> list[Entry]:
    """A plain folder, ``root/class/images`` and ``root/class/masks``, matched by stem.

    Raises:
        InputError: it holds no pictures.
    """
    entries = []
    for home in _homes(root):
        masks = {_stem(p): p for p in _files(home / "masks")}
        for image in _files(home / "images"):
            mask = masks.get(_stem(image), home / "masks" / f"{image.stem}.png")
            above = FSS_ABOVE if mask.suffix.lower() in LOSSY else 0  # around an object JPEG leaves grey specks
            entries.append(Entry(image, mask, home.name, above=above))
    if not entries:
        raise InputError(f"{root} holds no pictures. Expected {root}/class/images and {root}/class/masks.")
    return entries


def folder_problems(root: Path) -> dict[str, list[str]]:
    """Class folders without any pictures or masks, and masks or pictures of one name, by kind of problem."""
    problems: dict[str, list[str]] = {"Classes are empty": [], "Classes have no masks": []}
    for home in _homes(root):
        for part in ("masks", "images"):  # it is not clear which mask counts; two pictures would share one
            known: dict[str, Path] = {}
            for file in _files(home / part):
                if known.setdefault(_stem(file), file) != file:
                    problems.setdefault(f"Files in {part} have the same name but for the suffix", []).append(str(file))
        if not _files(home / "images"):
            problems["Classes are empty"].append(str(home))
        elif not _files(home / "masks"):
            problems["Classes have no masks"].append(str(home))
    return problems


def _homes(root: Path) -> list[Path]:
    there = (p for p in root.glob("*") if not p.name.startswith((".", "__")))  # .ipynb_checkpoints, __MACOSX
    return sorted(p for p in there if (p / "images").is_dir() or (p / "masks").is_dir())


def _files(home: Path) -> list[Path]:
    return sorted(p for p in home.glob("*") if p.is_file() and p.name[0] != "." and p.name not in LEFT_BY_WINDOWS)


def _stem(path: Path) -> str:
    return unicodedata.normalize("NFC", path.stem)  # macOS writes é in two parts
