import json

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO

from imrseg import coco


def disk(radius: float, height: int = 120, width: int = 170) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (x - 80) ** 2 + (y - 55) ** 2 <= radius**2


def drawn(polygons: list[list[float]], mask: np.ndarray) -> np.ndarray:
    """What COCO's tools take the polygons for."""
    return rle.decode(rle.merge(rle.frPyObjects(polygons, *mask.shape))).astype(bool)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def test_run_lengths_go_down_the_columns():
    shape = coco.shape(np.array([[0, 1, 1], [0, 0, 1]], bool), "cat", 0.75)
    # Column by column 0 0, 1 0, 1 1: two zeros, a one, a zero, two ones.
    known = rle.frPyObjects({"size": [2, 3], "counts": [2, 1, 1, 2]}, 2, 3)
    assert shape.rle == {"size": [2, 3], "counts": known["counts"].decode()}
    assert (shape.area, shape.bbox) == (3, [1, 0, 2, 2])
    assert (shape.label, shape.score) == ("cat", 0.75)


@pytest.mark.parametrize("order", ["C", "F"])
def test_run_lengths_are_exact(order):
    mask = np.asarray(np.random.default_rng(0).random((61, 83)) < 0.4, order=order)
    assert np.array_equal(rle.decode(coco.shape(mask, "x").rle).astype(bool), mask)


def test_polygons_go_around_pixels():
    mask = np.zeros((9, 12), bool)
    mask[3, 4] = True
    assert sorted(np.reshape(coco.outlines(mask), (4, 2)).tolist()) == [[4, 3], [4, 4], [5, 3], [5, 4]]
    mask[6:, 7:] = True  # to the corner of the picture
    assert len(coco.outlines(mask)) == 2
    assert np.array_equal(drawn(coco.outlines(mask), mask), mask)
    assert np.array_equal(drawn(coco.outlines(np.ones((9, 12), bool)), mask), np.ones((9, 12)))
    assert coco.outlines(np.zeros((9, 12), bool)) == []


@pytest.mark.parametrize(("radius", "least"), [(2, 0.75), (9, 0.95), (20, 0.97), (50, 0.99)])
def test_polygons_follow_the_edge(radius, least):
    mask = disk(radius)
    (polygon,) = coco.outlines(mask)
    assert iou(drawn([polygon], mask), mask) > least
    assert len(polygon) // 2 <= 11 + radius


def test_polygons_fill_holes_and_run_lengths_keep_them():
    ring = disk(40) & ~disk(20)
    shape = coco.shape(ring, "ring")
    assert len(shape.polygons) == 1
    assert iou(drawn(shape.polygons, ring), disk(40)) > 0.98
    assert np.array_equal(rle.decode(shape.rle), ring)
    assert shape.area == ring.sum()


def found() -> list[tuple[str, tuple[int, int], list[coco.Shape]]]:
    size = (120, 170)
    return [
        ("tom.jpg", size, [coco.shape(disk(30), "cat", 0.9), coco.shape(np.zeros(size, bool), "dog", 0.1)]),
        ("cup.png", size, [coco.shape(disk(9), "cup"), coco.shape(disk(50), "cat", 0.5)]),
    ]


@pytest.mark.parametrize("segmentation", coco.SEGMENTATIONS)
def test_cocos_own_tools_read_the_data_set(segmentation, tmp_path, capsys):
    (tmp_path / "coco.json").write_text(json.dumps(coco.dataset(found(), segmentation)))
    data = COCO(tmp_path / "coco.json")
    capsys.readouterr()
    assert [(i["file_name"], i["width"], i["height"]) for i in data.loadImgs([1, 2])] == [
        ("tom.jpg", 170, 120), ("cup.png", 170, 120),
    ]  # fmt: skip
    assert [c["name"] for c in data.loadCats([1, 2, 3])] == ["cat", "dog", "cup"]
    expected = [(1, 1, disk(30)), (2, 3, disk(9)), (2, 1, disk(50))]  # the dog was found nowhere
    rows = data.loadAnns(data.getAnnIds())
    assert [(a["image_id"], a["category_id"]) for a in rows] == [row[:2] for row in expected]
    assert [a.get("score") for a in rows] == [0.9, None, 0.5]
    for row, (_, _, mask) in zip(rows, expected, strict=True):
        seen = data.annToMask(row).astype(bool)
        assert np.array_equal(seen, mask) if segmentation == "rle" else iou(seen, mask) > 0.95
        assert row["area"] == mask.sum()
        x, y, w, h = row["bbox"]
        assert mask[int(y) : int(y + h), int(x) : int(x + w)].sum() == mask.sum()
        assert row["iscrowd"] == 0
    assert data.getAnnIds(imgIds=2, catIds=1) == [3]
