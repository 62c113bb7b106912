import sys

import cv2
import numpy as np
import pytest

from imrseg.data.benchmarks import folder
from tools import stamps_to_folder
from tools.everyday_objects import Stamp
from tools.stamps_to_folder import LONGER, SIDE, SMALLEST, paste, pictures, plain


def disc(label, colour) -> Stamp:
    image = np.zeros((401, 401, 4), np.uint8)
    cv2.circle(image, (200, 200), 200, (*colour, 255), -1)
    return Stamp(label, "kind", image)


@pytest.fixture
def grey(tmp_path):
    path = tmp_path / "msrc/sky/images/grey.png"
    path.parent.mkdir(parents=True)
    cv2.imwrite(str(path), np.full((60, 80, 3), 128, np.uint8))
    return path


def test_backgrounds_show_no_class_of_the_cross_fold(tmp_path, grey):
    for name in ("cow/images/a.png", "grass/images/a.png", "grass/images/b.png"):
        (tmp_path / "msrc" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "msrc" / name).touch()
    assert [file.name for file in plain([tmp_path / "msrc"])] == ["b.png", "grey.png"]


def test_a_mask_is_where_the_stamp_is():
    for seed in range(20):
        picture = np.full((SIDE, SIDE, 3), 128, np.uint8)
        mask = paste(picture, disc("ball", (255, 0, 0)), np.random.default_rng(seed))
        inner = cv2.erode(mask.astype(np.uint8), np.ones((9, 9)), borderValue=1) > 0
        outer = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9))) > 0
        assert (picture[inner].max(-1) > 170).all()
        assert (picture[~outer] == 128).all()
        rows = np.ptp(np.nonzero(mask)[0]) + 1
        assert 0.5 * LONGER[0] * SIDE < rows <= min(SIDE, LONGER[1] * SIDE)


def test_what_is_covered_is_no_ones_but_the_last(grey):
    found = [disc("red", (255, 0, 0)), disc("blue", (0, 0, 255))]
    made = list(pictures(found, [grey], 12))
    assert {label for _, masks in made for label in masks} == {"red", "blue"}
    for picture, masks in made:
        assert picture.shape == (SIDE, SIDE, 3)
        assert sum(masks.values()).max() <= 1
        assert all(mask.mean() >= SMALLEST for mask in masks.values())
    again = list(pictures(found, [grey], 12))
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(made, again, strict=True))


def test_the_folder_is_one_to_train_on(tmp_path, grey, monkeypatch):
    found = [disc(label, (200, 40, 40)) for label in ("ball", "once", "cow", "sky")]
    monkeypatch.setattr(stamps_to_folder, "stamps", lambda *_: found)
    monkeypatch.setattr(stamps_to_folder, "pictures", lambda found, behind, count: iter(
        [(np.zeros((SIDE, SIDE, 3), np.uint8), {name: np.ones((SIDE, SIDE), bool) for name in names})
         for names in (["ball"], ["ball", "once"])]
    ))  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["x", "--stamps", "s", "--backgrounds", str(tmp_path / "msrc"), "--out",
                                      str(tmp_path / "out")])  # fmt: skip
    stamps_to_folder.main()
    entries = folder(tmp_path / "out")
    assert [(e.label, e.image.name) for e in entries] == [("ball", "00000.jpg"), ("ball", "00001.jpg")]
    assert entries[0].target().all()
