"""All that is wrong with a data set comes in one message."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imrseg.data.benchmarks import gather, held_out
from imrseg.data.entries import Entry
from imrseg.errors import InputError


def draw(
    root: Path, name: str, stem: str, size: tuple[int, int] = (60, 40), mask: tuple[int, int] | None = None
) -> None:
    for kind in ("images", "masks"):
        (root / name / kind).mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(root / name / f"images/{stem}.jpg")
    Image.new("L", mask or size).save(root / name / f"masks/{stem}.png")


def test_everything_is_told_at_once_with_counts_and_names(tmp_path):
    for stem in "abcdefg":
        draw(tmp_path, "cat", stem)
        (tmp_path / f"cat/masks/{stem}.png").unlink()
    draw(tmp_path, "dog", "small", mask=(30, 20))
    draw(tmp_path, "dog", "turned", mask=(40, 60))
    draw(tmp_path, "dog", "text")
    (tmp_path / "dog/images/text.jpg").write_text("not a picture")
    draw(tmp_path, "dog", "short")
    whole = (tmp_path / "dog/images/short.jpg").read_bytes()
    (tmp_path / "dog/images/short.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty/images").mkdir(parents=True)
    (tmp_path / "only-masks/masks").mkdir(parents=True)
    with pytest.raises(InputError) as error:
        held_out("folder", tmp_path, None, None)
    said = str(error.value)
    assert "Files are missing (7):" in said
    assert said.count("/cat/masks/") == 5
    assert "and 2 more" in said
    assert "Classes have no masks (1)" in said
    assert "Classes are empty (2)" in said
    assert "small.png (30 x 20, its picture 60 x 40)" in said
    assert "turned.png" in said
    assert "Files are not pictures that can be read (1)" in said
    assert "Pictures are cut short (1)" in said
    assert "\n" not in said


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_a_turned_picture_is_as_large_as_its_upright_mask(tmp_path, suffix):
    draw(tmp_path, "cat", "a", size=(60, 40), mask=(40, 60))
    image, exif = Image.open(tmp_path / "cat/images/a.jpg"), Image.Exif()
    exif[0x0112] = 6
    image.load()
    (tmp_path / "cat/images/a.jpg").unlink()
    image.save(tmp_path / f"cat/images/a.{suffix}", exif=exif)
    assert len(held_out("folder", tmp_path, None, None)) == 1


def test_training_needs_two_pictures_of_each_class_of_a_folder(tmp_path):
    draw(tmp_path, "cat", "a")
    draw(tmp_path, "cat", "b")
    draw(tmp_path, "dog", "a")
    assert len(held_out("folder", tmp_path, None, None)) == 3  # evaluate skips such classes and lists them
    with pytest.raises(InputError, match=r"single picture.*\(1\).*dog"):
        gather("folder", tmp_path, None, "all", [])
    (tmp_path / "cat/images/b.jpg").unlink()
    with pytest.raises(InputError, match=r"single picture.*\(2\)"):
        gather("folder", tmp_path, None, "all", [])


def test_a_camera_that_was_turned_is_seen_upright(tmp_path):
    draw(tmp_path, "cat", "a", mask=(40, 60))
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(tmp_path / "cat/images/a.jpg") as image:
        image.save(tmp_path / "cat/images/a.jpg", exif=exif)
    assert len(held_out("folder", tmp_path, None, None)) == 1


def test_a_picture_with_something_behind_its_end_is_whole(tmp_path):
    """Telephones append films to photographs."""
    draw(tmp_path, "cat", "a")
    whole = (tmp_path / "cat/images/a.jpg").read_bytes()
    (tmp_path / "cat/images/a.jpg").write_bytes(whole + bytes(100_000))
    assert len(held_out("folder", tmp_path, None, None)) == 1


def test_files_that_are_broken_inside_are_told_before_work(tmp_path):
    """Also of kinds whose end says nothing, and where the end is as it should be."""
    for stem in "abc":
        draw(tmp_path, "cat", stem)
    mask = tmp_path / "cat/masks/a.png"
    whole = mask.read_bytes()
    mask.write_bytes(whole.replace(b"IDAT", b"I\x01AT"))
    for folder, kind in (("images", "bmp"), ("masks", "tif")):
        path = next((tmp_path / "cat" / folder).glob("b.*"))
        with Image.open(path) as image:
            image.save(path.with_suffix(f".{kind}"))
        path.unlink()
        half = path.with_suffix(f".{kind}").read_bytes()
        path.with_suffix(f".{kind}").write_bytes(half[: len(half) // 2])
    with pytest.raises(InputError) as error:
        held_out("folder", tmp_path, None, None)
    said = str(error.value)
    assert "a.png" in said
    assert "b.bmp" in said
    assert "b.tif" in said
    assert "c." not in said


def test_pictures_too_large_to_open_are_told_before_work(tmp_path, monkeypatch):
    draw(tmp_path, "cat", "a")
    monkeypatch.setattr("imrseg.data.checks.MAX_PIXELS", 2000)
    with pytest.raises(InputError, match=r"megapixels \(1\): .*a\.jpg"):
        held_out("folder", tmp_path, None, None)


def test_a_mask_that_breaks_while_it_is_read_is_named(tmp_path):
    path = tmp_path / "a.png"
    Image.new("L", (9, 9)).save(path)
    path.write_bytes(path.read_bytes().replace(b"IDAT", b"I\x01AT"))
    with pytest.raises(InputError, match=r"The mask .*a\.png cannot be read"):
        Entry(path, path, "cat").target()
