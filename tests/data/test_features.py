"""Features that are made once: found again for the same pictures alone, and whole."""

import logging
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from imrseg.data import features
from imrseg.data.features import CHANNELS, CachedView


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    """Two pictures called 1.png, in a folder each."""
    paths = [tmp_path / "data" / name / "1.png" for name in ("cat", "dog")]
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True)
        noise = np.random.default_rng(i).integers(0, 255, (40, 50, 3), np.uint8)
        Image.fromarray(noise).save(path)
    return paths


def test_pictures_of_the_same_name_have_features_of_their_own(pictures, tmp_path):
    cat, dog = (CachedView([path], 0, 64, tmp_path / "cache") for path in pictures)
    assert cat.folder != dog.folder
    assert not np.array_equal(cat.pooled(0), dog.pooled(0))
    assert cat.features(0, False)["s4"].shape == (24, 16, 16)


def test_features_are_found_again_where_the_data_set_was_moved(pictures, tmp_path, monkeypatch):
    first = CachedView(pictures, 0, 64, tmp_path / "cache")
    moved = shutil.copytree(tmp_path / "data", tmp_path / "moved")
    monkeypatch.setattr(CachedView, "_make", lambda self: pytest.fail("made again"))
    again = CachedView([moved / "cat/1.png", moved / "dog/1.png"], 0, 64, tmp_path / "cache")
    assert np.array_equal(again.heads, first.heads)
    Image.new("RGB", (50, 40)).save(moved / "dog/1.png")  # another picture under the same name
    with pytest.raises(pytest.fail.Exception, match="made again"):
        CachedView([moved / "cat/1.png", moved / "dog/1.png"], 0, 64, tmp_path / "cache")


def test_of_two_that_start_together_one_makes_them(pictures, tmp_path, monkeypatch, caplog):
    made = []

    def slowly(self: CachedView) -> None:
        made.append(1)
        until = time.monotonic() + 20
        while "Another process" not in caplog.text and time.monotonic() < until:  # the other has come to the lock
            time.sleep(0.01)
        for name in CHANNELS:
            np.save(self.folder / f"{name}.npy", np.ones((2, 1, 1, 1), np.float16))
        (self.folder / "complete").touch()

    monkeypatch.setattr(features.CachedView, "_make", slowly)
    with caplog.at_level(logging.WARNING), ThreadPoolExecutor(2) as pool:
        views = list(pool.map(lambda _: CachedView(pictures, 0, 64, tmp_path / "cache"), range(2)))
    assert made == [1]
    assert all(view.heads.all() for view in views)
    assert "Another process makes the features" in caplog.text


def test_what_a_broken_making_left_takes_no_room(pictures, tmp_path, monkeypatch):
    left = CachedView(pictures, 0, 64, tmp_path / "cache").folder
    (left / "complete").unlink()

    def usage(folder):
        assert not list(Path(folder).glob("*.npy"))
        return SimpleNamespace(free=10**12)

    monkeypatch.setattr(features.shutil, "disk_usage", usage)
    assert CachedView(pictures, 0, 64, tmp_path / "cache").features(0, False)["s4"].shape == (24, 16, 16)
