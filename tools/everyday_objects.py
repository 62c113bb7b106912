"""How well everyday words are read: photographs of single things, two on a picture, one of them asked for.

    apt-get install tuxpaint-stamps-default
    python -m tools.msrc_to_folder --data MSRC --out msrc
    python -m tools.everyday_objects --stamps /usr/share/tuxpaint/stamps --backgrounds msrc/trn msrc/val

Tux Paint's stamps are cut out, so their masks are known; a stamp's file name is its label where it is a word that
the preset knows. Each is set beside a stamp of another folder, before a picture of MSRC that shows
nothing but what fills pictures. Words that are read by hand (``imrseg.coarse.readings``) are read by the
dictionary too, for comparison. Of each label's pictures the mean IoU is taken, without a support.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
from tqdm import tqdm

from imrseg import weights
from imrseg.coarse.lexicon import LEXICON, Lexicon
from imrseg.coarse.readings import READINGS
from imrseg.export import write_json
from imrseg.images import open_picture, stretch
from imrseg.segmenter import Segmenter

FOLDERS = (
    "animals",
    "clothes",
    "food",
    "hobbies",
    "household",
    "medical",
    "naturalforces",
    "plants",
    "sports",
    "vehicles",
)
DRAWN = {"cartoon", "plastic", "toys"}
FILLING = {"building", "grass", "road", "sky", "tree", "water"}
SIDE = 320  # pixels of a picture; each stamp has half of it
TALL = (180, 260)  # pixels of a stamp, where it is not too wide then
STEPS = 3


@dataclass(frozen=True)
class Stamp:
    """A thing cut out: ``image`` (H, W, 4) is RGB and its opacity, uint8."""

    label: str
    kind: str
    image: np.ndarray


def stamps(folder: Path, lexicon: Lexicon) -> list[Stamp]:
    """The photographs among the stamps whose file names are words of the lexicon."""
    found = []
    for file in sorted(f for name in FOLDERS for f in (folder / name).rglob("*.png")):
        label = re.sub(r"[\W\d_]+", " ", file.stem).strip().lower()
        image = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        if label not in lexicon or DRAWN & set(file.parts) or image is None or image.shape[2:] != (4,):
            continue
        rows, columns = np.nonzero(image[..., 3] > 127)
        if len(rows):
            image = cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA)
            image = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            found.append(Stamp(label, file.relative_to(folder).parts[1], image))
    return found


def backgrounds(folders: list[Path]) -> list[Path]:
    """Pictures that lie under ``FILLING`` alone, in folders of classes."""
    classes: dict[str, set[str]] = {}
    files = sorted(f for folder in folders for f in folder.glob("*/images/*"))
    for file in files:
        classes.setdefault(file.name, set()).add(file.parent.parent.name)
    return list({f.name: f for f in files if classes[f.name] <= FILLING}.values())


def paste(picture: np.ndarray, stamp: np.ndarray, left: int, rng: np.random.Generator) -> np.ndarray:
    """Set a stamp somewhere in the half of ``picture`` that begins at ``left``; returns its mask (SIDE, SIDE)."""
    scale = min((SIDE // 2 - 10) / stamp.shape[1], rng.uniform(*TALL) / stamp.shape[0])
    size = [max(1, int(scale * n)) for n in stamp.shape[1::-1]]
    stamp = cv2.resize(stamp, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    h, w = stamp.shape[:2]
    y, x = rng.integers(SIDE - h + 1), left + rng.integers(SIDE // 2 - w + 1)
    opacity, mask = stamp[..., 3:] / 255, np.zeros((SIDE, SIDE), bool)
    part = picture[y : y + h, x : x + w]
    part[:] = opacity * stamp[..., :3] + (1 - opacity) * part
    mask[y : y + h, x : x + w] = opacity[..., 0] > 0.5
    return mask


def pictures(found: list[Stamp], behind: list[Path], each: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Label, picture (SIDE, SIDE, 3) in RGB and mask: ``each`` of every stamp, always the same."""
    rng = np.random.default_rng(0)
    for stamp in found:
        others = [s for s in found if s.kind != stamp.kind]
        for _ in range(each):
            background = open_picture(behind[rng.integers(len(behind))])
            picture = stretch(background.pixels, SIDE).copy()
            left = (SIDE // 2) * int(rng.integers(2))
            mask = paste(picture, stamp.image, left, rng)
            paste(picture, others[rng.integers(len(others))].image, SIDE // 2 - left, rng)
            yield stamp.label, picture, mask


def score(segmenter: Segmenter, picture: np.ndarray, label: str, mask: np.ndarray) -> list[float]:
    """IoU of the coarse mask and of each step's."""
    run = segmenter.start(picture, [], label)
    cuts = [step.query_at(mask.shape) >= step.cut() for step in [run.steps[0], *run.advance_by(STEPS)]]
    return [float((cut & mask).sum() / (cut | mask).sum()) for cut in cuts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stamps", type=Path, required=True)
    parser.add_argument("--backgrounds", type=Path, nargs="+", required=True, help="folders of classes")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--each", type=int, default=4, help="pictures of every stamp")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    segmenter = Segmenter.from_preset("lite", checkpoint=args.checkpoint)
    lexicon = Lexicon(weights.find(LEXICON))
    found, behind = stamps(args.stamps, lexicon), backgrounds(args.backgrounds)
    if not found or not behind:
        raise SystemExit(f"{len(found)} stamps and {len(behind)} backgrounds were found; both are needed.")
    ways: dict[str, dict[str, list[list[float]]]] = {"by hand": {}, "dictionary": {}}
    total = args.each * len(found)
    for label, picture, mask in tqdm(pictures(found, behind, args.each), total=total, mininterval=1):
        ways["by hand"].setdefault(label, []).append(score(segmenter, picture, label, mask))
        if label in READINGS:
            with mock.patch.dict(READINGS):
                del READINGS[label]
                if label in lexicon:
                    ways["dictionary"].setdefault(label, []).append(score(segmenter, picture, label, mask))
    means = {way: {label: np.mean(rows, 0) for label, rows in scores.items()} for way, scores in ways.items()}
    both = sorted(means["dictionary"])
    print(
        f"{len(found)} stamps, {len(means['by hand'])} labels, {len(behind)} backgrounds; coarse and steps 1 to {STEPS}"
    )
    for what, way, labels in (
        (f"{len(both)} labels read by hand", "by hand", both),
        ("the same by the dictionary", "dictionary", both),
        ("all labels", "by hand", sorted(means["by hand"])),
    ):
        print(f"{what:30s}", " ".join(f"{100 * v:5.1f}" for v in np.mean([means[way][label] for label in labels], 0)))
    if args.json:
        write_json(args.json, {way: {label: v.tolist() for label, v in m.items()} for way, m in means.items()})


if __name__ == "__main__":
    main()
