"""The data sets' layouts, their fold lists, and lists made where there are none."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imrseg.data.benchmarks import classes, coco20i, expected, folder, fss, gather, held_out, pascal
from imrseg.errors import InputError


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Two pictures of class 8 (cat) and one of 10 (cow), with an ignored rim; the third shows a cat, too."""
    for kind in ("JPEGImages", "SegmentationClassAug"):
        (tmp_path / "VOC2012" / kind).mkdir(parents=True)
    for name, value in (("a", 8), ("b", 8), ("c", 10)):
        Image.new("RGB", (6, 4)).save(tmp_path / "VOC2012/JPEGImages" / f"{name}.jpg")
        mask = np.zeros((4, 6), np.uint8)
        mask[1:3, 1:4] = value
        mask[0] = 255
        mask[3, 5] = 8
        Image.fromarray(mask).save(tmp_path / "VOC2012/SegmentationClassAug" / f"{name}.png")
    for part in ("val", "trn"):
        (tmp_path / "splits" / part).mkdir(parents=True)
        for fold in range(4):
            (tmp_path / f"splits/{part}/fold{fold}.txt").write_text("b__08\na__08\nc__10\n" if fold == 1 else "")
    return tmp_path


def test_pascal_keeps_the_order_of_the_list(voc):
    entries = held_out("pascal", voc, voc / "splits", 1)
    assert [(e.image.stem, e.name, e.value) for e in entries] == [("b", "cat", 8), ("a", "cat", 8), ("c", "cow", 10)]
    assert len(classes("pascal", entries)) == 20


def test_target_marks_object_background_and_ignore(voc):
    target = held_out("pascal", voc, voc / "splits", 1)[0].target()
    assert target.tolist() == [[255] * 6, [0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 0, 0], [0] * 5 + [1]]


@pytest.mark.parametrize("line", ["a__21", "a__0", "a", "a__x"])
def test_a_line_that_names_no_class_is_refused(voc, line):
    (voc / "splits/val/fold1.txt").write_text(line)
    with pytest.raises(InputError, match="2008_000008__13"):
        pascal(voc, voc / "splits", "val", [1])


def test_a_line_of_another_folds_class_is_refused(voc):
    (voc / "splits/val/fold1.txt").write_text("a__08\na__13\n")
    with pytest.raises(InputError, match=r"of a class of another fold .* \(1\): “a__13”"):
        pascal(voc, voc / "splits", "val", [1])


def test_all_classes_of_a_fold_are_expected(voc, coco):
    assert expected("pascal", [], 1) == ["bus", "car", "cat", "chair", "cow"]
    assert len(expected("pascal", [], None)) == 20
    assert expected("coco", coco20i(coco, None, "val", 1), 1) == ["one", "five"]


def test_colours_are_not_the_numbers_of_classes(voc):
    path = voc / "VOC2012/SegmentationClassAug/b.png"
    Image.open(path).convert("RGB").save(path)
    with pytest.raises(InputError, match=r"Masks hold colours, not the numbers of classes \(1\): .*b\.png"):
        held_out("pascal", voc, voc / "splits", 1)


def test_lists_as_windows_saves_them(voc):
    path = voc / "splits/val/fold1.txt"
    path.write_bytes("\ufeffb__08\r\na__08\r\n".encode())
    assert [e.image.stem for e in pascal(voc, voc / "splits", "val", [1])] == ["b", "a"]
    path.write_bytes("b__08\n".encode("utf-16"))
    with pytest.raises(InputError, match=r"fold1\.txt is not text in UTF-8"):
        pascal(voc, voc / "splits", "val", [1])


def test_pascals_lists_are_made_from_vocs_own_where_there_are_none(voc):
    with pytest.raises(InputError, match=r"--splits.*val\.txt"):
        held_out("pascal", voc, None, 1)
    (voc / "VOC2012/ImageSets/Segmentation").mkdir(parents=True)
    (voc / "VOC2012/ImageSets/Segmentation/val.txt").write_text("c\n")
    assert [(e.image.stem, e.name) for e in held_out("pascal", voc, None, 1)] == [("c", "cat"), ("c", "cow")]
    assert held_out("pascal", voc, None, 0) == []
    (main,), pictures = gather("pascal", voc, None, "0", [])
    assert [(e.image.stem, e.name) for e in main] == [("a", "cat"), ("b", "cat")]
    assert {p.stem for p in pictures} == {"a", "b"}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Eight classes, of which "zero" to "seven"; picture p of a part shows class p twice, and in one a crowd of it."""
    root = tmp_path / "COCO2014"
    (root / "annotations").mkdir(parents=True)
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven")
    for part in ("train2014", "val2014"):
        (root / part).mkdir()
        images, annotations = [], []
        for p in range(16):
            name = f"COCO_{part}_{p:012d}.jpg"
            Image.new("RGB", (100, 80)).save(root / part / name)
            images.append({"id": 100 + p, "file_name": name, "width": 100, "height": 80})
            for x in (0, 50):
                box = [x, 0, x + 40, 0, x + 40, 60, x, 60]
                annotations.append({"segmentation": [box], "area": 2400.0, "bbox": [x, 0, 40, 60], "iscrowd": 0})
                annotations[-1] |= {"id": len(annotations), "image_id": 100 + p, "category_id": 10 * (p % 8 + 1)}
        crowd = {"counts": [0, 80 * 10, 80 * 90], "size": [80, 100]}  # the first ten columns
        annotations.append({"segmentation": crowd, "area": 800.0, "bbox": [0, 0, 10, 80], "iscrowd": 1, "id": 99})
        annotations[-1] |= {"image_id": 100, "category_id": 10}
        small = {"segmentation": [[0, 0, 9, 0, 9, 9]], "area": 40.5, "bbox": [0, 0, 9, 9], "iscrowd": 0, "id": 98}
        annotations.append(small | {"image_id": 101, "category_id": 10})
        content = {"images": images, "annotations": annotations}
        # In another order than that of their ids, which have gaps.
        content["categories"] = [{"id": 10 * (i + 1), "name": n} for i, n in reversed(list(enumerate(names)))]
        (root / f"annotations/instances_{part}.json").write_text(json.dumps(content))
    return tmp_path


def test_coco_masks_are_drawn_from_its_annotations(coco):
    entries = held_out("coco", coco, None, 0)
    assert [(e.name, e.image.name[-6:-4]) for e in entries] == [
        ("zero", "00"), ("zero", "08"), ("four", "04"), ("four", "12")
    ]  # fmt: skip
    target = entries[0].target()
    assert target.shape == (80, 100)
    expected = np.zeros((80, 100), np.uint8)
    expected[:, :10] = 255  # the crowd, but for the instance on it
    expected[:60, :40] = expected[:60, 50:90] = 1
    assert (target != expected).mean() < 0.03  # polygons are drawn a pixel wide or not
    assert set(np.unique(target[62:, :9])) == {255}
    assert classes("coco", entries) == ("zero", "one", "two", "three", "four", "five", "six", "seven")


def test_coco_pictures_in_which_a_class_is_tiny_are_not_listed(coco):
    assert not [e for e in coco20i(coco, None, "val", 0) if e.name == "zero" and e.picture == 101]


def test_coco_reads_hsnets_lists(coco):
    for part, numbers, home in (("val", (1, 5), "val2014"), ("trn", (0, 2, 3, 4, 6, 7), "train2014")):
        (coco / "splits" / part).mkdir(parents=True)
        files = {n: [f"{home}/COCO_{home}_{p:012d}.jpg" for p in (n + 8, n)] for n in numbers}
        for fold in range(4):
            content = files if fold == 1 else {n: files.get(n, []) for n in range(8)}
            (coco / f"splits/{part}/fold{fold}.pkl").write_bytes(pickle.dumps({n: [] for n in range(8)} | content))
    entries = held_out("coco", coco, coco / "splits", 1)
    assert [(e.name, e.picture) for e in entries] == [("one", 109), ("one", 101), ("five", 113), ("five", 105)]
    (main,), _ = gather("coco", coco, coco / "splits", "1", [])
    assert {e.name for e in main} == {"zero", "two", "three", "four", "six", "seven"}
    (whole,), _ = gather("coco", coco, coco / "splits", "all", [])
    assert len(whole) == len(set(whole)) == 12
    (coco / "splits/val/fold1.pkl").write_bytes(pickle.dumps({1: ["val2014/none.jpg"]}))
    with pytest.raises(InputError, match=r"val2014/none\.jpg"):
        held_out("coco", coco, coco / "splits", 1)
    (coco / "splits/val/fold1.pkl").write_bytes(pickle.dumps({2: files[2]}))
    with pytest.raises(InputError, match=r"fold 1's val list belong to another fold \(1\): 2"):
        held_out("coco", coco, coco / "splits", 1)


def test_coco_without_annotations_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"instances_val2014\.json"):
        held_out("coco", tmp_path, None, 0)


def test_fss_takes_bright_pixels_of_the_listed_classes(tmp_path):
    for name in ("abacus", "bus", "abe's_flyingfish"):
        (tmp_path / "FSS-1000" / name).mkdir(parents=True)
        for i in (10, 2):
            Image.new("RGB", (3, 1)).save(tmp_path / f"FSS-1000/{name}/{i}.jpg")
            Image.fromarray(np.array([[[90] * 3, [200] * 3, [255] * 3]], np.uint8)).save(
                tmp_path / f"FSS-1000/{name}/{i}.png"
            )
    (tmp_path / "test.txt").write_text("bus\nabe's_flyingfish\n")
    entries = held_out("fss", tmp_path, tmp_path, None)
    assert [(e.label, e.image.stem) for e in entries] == [
        ("abe's flyingfish", "2"), ("abe's flyingfish", "10"), ("bus", "2"), ("bus", "10")
    ]  # fmt: skip
    assert entries[0].target().tolist() == [[0, 1, 1]]
    assert {e.name for e in fss(tmp_path, None, "trn")} == {"abacus", "abe's_flyingfish", "bus"}
    (tmp_path / "test.txt").write_text("bus\nzebra\n")
    with pytest.raises(InputError, match="zebra"):
        held_out("fss", tmp_path, tmp_path, None)
    with pytest.raises(InputError, match=r"1\.jpg"):
        held_out("fss", tmp_path / "none", None, None)


def test_folder_matches_by_stem_and_takes_nonzero_as_object(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / "mug" / kind).mkdir(parents=True)
    Image.new("RGB", (2, 1)).save(tmp_path / "mug/images/1.jpg")
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "mug/masks/1.png")
    (tmp_path / "mug/images/.DS_Store").touch()
    (entry,) = held_out("folder", tmp_path, None, None)
    assert entry.name == "mug"
    assert entry.target().tolist() == [[0, 1]]  # 255 is the object here, not "ignore"
    Image.new("L", (2, 1)).save(tmp_path / "mug/masks/1.webp")
    with pytest.raises(InputError, match=r"same name but for the suffix \(1\): .*mug/masks/1\.webp"):
        held_out("folder", tmp_path, None, None)


def test_what_other_systems_leave_in_folders(tmp_path):
    for home in ("cat", ".ipynb_checkpoints", "__MACOSX"):
        for part in ("images", "masks"):
            (tmp_path / home / part).mkdir(parents=True)
    disc = np.zeros((32, 32), np.uint8)
    disc[8:24, 8:24] = 255
    Image.new("RGB", (32, 32)).save(tmp_path / "cat/images/caf\u00e9.png")
    Image.fromarray(disc).save(tmp_path / "cat/masks/cafe\u0301.jpg", quality=50)
    (tmp_path / "cat/images/Thumbs.db").write_bytes(b"x")
    (entry,) = held_out("folder", tmp_path, None, None)
    assert np.array_equal(entry.target(), disc > 0)  # without what JPEG draws around it
    Image.new("RGB", (32, 32)).save(tmp_path / "cat/images/cafe\u0301.jpg")
    with pytest.raises(InputError, match="Files in images have the same name but for the suffix"):
        held_out("folder", tmp_path, None, None)


def test_a_folder_without_classes_is_refused(tmp_path):
    with pytest.raises(InputError, match="class/images"):
        folder(tmp_path)


def test_everything_that_is_wrong_with_pascals_lists_is_told_together(voc):
    (voc / "splits/val/fold1.txt").write_text("a__99\nb__08\nc\na__²\n")
    (voc / "splits/val/fold2.txt").unlink()
    with pytest.raises(InputError) as error:
        held_out("pascal", voc, voc / "splits", None)
    said = str(error.value)
    assert f"Fold lists are missing (1): {voc / 'splits/val/fold2.txt'}" in said
    assert "Lines are not such as 2008_000008__13 (3): “a__99” of " in said


def test_what_is_wrong_with_masks_that_lists_are_made_of_is_told_together(voc):
    masks = voc / "VOC2012/SegmentationClassAug"
    (voc / "VOC2012/ImageSets/Segmentation").mkdir(parents=True)
    (voc / "VOC2012/ImageSets/Segmentation/val.txt").write_text("a\nb\nc\nd\n")
    Image.open(masks / "b.png").convert("RGB").save(masks / "b.png")
    whole = (masks / "c.png").read_bytes()
    (masks / "c.png").write_bytes(whole.replace(b"IDAT", b"I\x01AT"))
    with pytest.raises(InputError) as error:
        held_out("pascal", voc, None, 1)
    assert "Masks are missing or cannot be read (2)" in str(error.value)
    assert "Masks hold colours, not the numbers of classes (1)" in str(error.value)


def test_a_picture_that_is_listed_twice_is_not_its_own_support(voc):
    (voc / "splits/val/fold1.txt").write_text("a__08\nb__08\na__08\n")
    assert [e.image.stem for e in held_out("pascal", voc, voc / "splits", 1)] == ["a", "b"]
    (voc / "splits/trn/fold1.txt").write_text("a__08\nb__08\na__08\n")
    assert len(gather("pascal", voc, voc / "splits", "all", [])[0][0]) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"category_id": 7}, {"image_id": 7}, {"area": None}, {"iscrowd": None}, {"segmentation": None},
        {"segmentation": []}, {"segmentation": [[1, 2, 3, 4]]}, {"segmentation": {"counts": [6], "size": [2, 3]}},
        {"segmentation": [["a"] * 6]}, {"segmentation": [[1, 2, 3, 4, 5, float("nan")]]},
        *({"segmentation": {"counts": counts, "size": [80, 100]}} for counts in ([5, 5], [-5, 8005], ["a"])),
    ],
    ids=str,
)  # fmt: skip
def test_coco_annotations_that_lack_something_are_refused(coco, change):
    file = coco / "COCO2014/annotations/instances_val2014.json"
    content = json.loads(file.read_text())
    content["annotations"][5] |= change
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"instances_val2014\.json does not hold.*annotation 6 needs"):
        held_out("coco", coco, None, 0)


def test_coco_lists_of_other_pictures_or_classes_say_which(coco):
    (coco / "splits/val").mkdir(parents=True)
    names = ["COCO_val2014_000000000001.jpg", "val2014/none.jpg", "val2014/COCO_val2014_000000000001.jpg"]
    (coco / "splits/val/fold1.pkl").write_bytes(pickle.dumps({1: names, 80: names[2:]}))
    with pytest.raises(InputError) as error:
        held_out("coco", coco, coco / "splits", 1)
    said = str(error.value)
    assert "The annotations lack pictures of fold 1's val list (1): val2014/none.jpg" in said
    assert f"are not in train2014 or val2014 (1): {names[0]}" in said
    assert "Classes of fold 1's val list are not among the annotations' (1): 80" in said


def test_coco_lists_without_pictures_have_no_classes(coco):
    (coco / "splits/val").mkdir(parents=True)
    (coco / "splits/val/fold1.pkl").write_bytes(pickle.dumps({1: []}))
    assert classes("coco", held_out("coco", coco, coco / "splits", 1)) == ()


def test_fss_tells_classes_without_pictures_and_takes_suffixes_as_they_come(tmp_path):
    for name in ("abacus", "bus"):
        (tmp_path / "FSS-1000" / name).mkdir(parents=True)
    Image.new("RGB", (3, 1)).save(tmp_path / "FSS-1000/bus/1.JPG")
    Image.fromarray(np.array([[0, 255, 255]], np.uint8)).convert("1").save(tmp_path / "FSS-1000/bus/1.png")
    (tmp_path / "test.txt").write_text("bus\nbus\n")
    (entry,) = held_out("fss", tmp_path, tmp_path, None)
    assert entry.target().tolist() == [[0, 1, 1]]
    (tmp_path / "FSS-1000/__MACOSX").mkdir()
    assert [e.name for e in fss(tmp_path, tmp_path, "test")] == ["bus", "bus"]
    (tmp_path / "test.txt").write_text("bus\nabacus\n")
    with pytest.raises(InputError, match=r"Classes are empty \(1\): .*abacus"):
        held_out("fss", tmp_path, tmp_path, None)
