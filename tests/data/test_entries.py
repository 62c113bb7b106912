"""Flat lists of entries, and seeded episodes drawn from them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imrseg.data.entries import Entry, episodes, folder, pascal
from imrseg.errors import InputError


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Two pictures of class 8 (cat) and one of 10 (cow), with an ignored rim."""
    for kind in ("JPEGImages", "SegmentationClassAug"):
        (tmp_path / "VOC2012" / kind).mkdir(parents=True)
    for name, value in (("a", 8), ("b", 8), ("c", 10)):
        Image.new("RGB", (6, 4)).save(tmp_path / "VOC2012/JPEGImages" / f"{name}.jpg")
        mask = np.zeros((4, 6), np.uint8)
        mask[1:3, 1:4] = value
        mask[0] = 255
        Image.fromarray(mask).save(tmp_path / "VOC2012/SegmentationClassAug" / f"{name}.png")
    (tmp_path / "splits" / "val").mkdir(parents=True)
    (tmp_path / "splits/val/fold1.txt").write_text("b__08\na__08\nc__10\n")
    return tmp_path


def test_pascal_keeps_the_order_of_the_list(voc: Path):
    entries = pascal(voc, voc / "splits", "val", [1])
    assert [(e.image.stem, e.name, e.value) for e in entries] == [("b", "cat", 8), ("a", "cat", 8), ("c", "cow", 10)]


def test_target_marks_object_background_and_ignore(voc: Path):
    target = pascal(voc, voc / "splits", "val", [1])[0].target()
    assert target.tolist() == [[255] * 6, [0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 0, 0], [0] * 6]


def test_names_are_spelled_out_for_prompts():
    assert Entry(Path("x"), Path("y"), "pottedplant").label == "potted plant"
    assert Entry(Path("x"), Path("y"), "fire_truck").label == "fire truck"


def test_missing_files_are_named_together(voc: Path):
    (voc / "VOC2012/JPEGImages/a.jpg").unlink()
    (voc / "VOC2012/SegmentationClassAug/c.png").unlink()
    with pytest.raises(InputError, match=r"a\.jpg.*c\.png"):
        pascal(voc, voc / "splits", "val", [1])


@pytest.mark.parametrize("line", ["a__21", "a__0", "a", "a__x"])
def test_a_line_that_names_no_class_is_refused(voc: Path, line: str):
    (voc / "splits/val/fold1.txt").write_text(line)
    with pytest.raises(InputError, match="2008_000008__13"):
        pascal(voc, voc / "splits", "val", [1])


def test_folder_matches_by_stem_and_takes_nonzero_as_object(tmp_path: Path):
    for kind in ("images", "masks"):
        (tmp_path / "mug" / kind).mkdir(parents=True)
    Image.new("RGB", (2, 1)).save(tmp_path / "mug/images/1.jpg")
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "mug/masks/1.png")
    (entry,) = folder(tmp_path)
    assert entry.name == "mug"
    assert entry.target().tolist() == [[0, 1]]  # 255 is the object here, not "ignore"


def test_a_folder_without_masks_or_classes_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="class/images"):
        folder(tmp_path)
    (tmp_path / "mug" / "images").mkdir(parents=True)
    Image.new("RGB", (2, 1)).save(tmp_path / "mug/images/1.jpg")
    with pytest.raises(InputError, match=r"masks.1\.png"):
        folder(tmp_path)


def entries_of(**classes: int) -> list[Entry]:
    return [Entry(Path(f"{n}{i}"), Path(), n) for n, count in classes.items() for i in range(count)]


def test_episode_i_queries_entry_i_and_supports_are_others_of_its_class():
    entries = entries_of(cat=3, dog=4)
    drawn, skipped = episodes(entries, shots=2, count=20, seed=0)
    assert skipped == []
    assert [q for q, _ in drawn] == [i % 7 for i in range(20)]
    for query, supports in drawn:
        assert len({query, *supports}) == 3
        assert {entries[i].name for i in supports} == {entries[query].name}


def test_episodes_are_seeded():
    entries = entries_of(cat=9)
    assert episodes(entries, 1, 50, 3) == episodes(entries, 1, 50, 3)
    assert episodes(entries, 1, 50, 3) != episodes(entries, 1, 50, 4)


def test_small_classes_are_skipped_and_listed():
    drawn, skipped = episodes(entries_of(cat=1, dog=2), 1, 4, 0)
    assert skipped == ["cat"]
    assert {q for q, _ in drawn} == {1, 2}
    with pytest.raises(InputError, match="2 pictures"):
        episodes(entries_of(cat=1), 1, 1, 0)
