import json

import cv2
import numpy as np
import pytest
from PIL import Image

from imrseg.data.benchmarks import folder
from imrseg.errors import InputError
from tools.coco_to_folder import lay_out


def square(number, image, category, side, crowd=0):
    outline = [0, 0, side, 0, side, side, 0, side]
    shape = {"counts": [0, side * 40, 1600 - side * 40], "size": [40, 40]} if crowd else [outline]
    return {"id": number, "image_id": image, "category_id": category, "area": side * side, "iscrowd": crowd,
            "segmentation": shape}  # fmt: skip


def test_what_covers_two_percent_of_a_picture_is_laid_out(tmp_path):
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 40, "height": 40} for i in range(3)]
    annotations = [
        square(1, 0, 7, 10), square(2, 0, 9, 4), square(3, 1, 9, 20, crowd=1), square(4, 2, 9, 30),
    ]  # fmt: skip
    categories = [{"id": 7, "name": "cup"}, {"id": 9, "name": "wine glass"}]
    file = tmp_path / "instances.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    (tmp_path / "images").mkdir()
    for name in ("0.jpg", "1.jpg", "unknown.jpg"):  # and not 2.jpg
        Image.new("RGB", (40, 40)).save(tmp_path / "images" / name)
    assert lay_out(file, tmp_path / "images", tmp_path / "out") == 1
    (entry,) = folder(tmp_path / "out")
    assert (entry.label, entry.image.name) == ("cup", "0.jpg")
    assert Image.open(entry.image).size == (40, 40)
    expected = np.zeros((40, 40), np.uint8)
    expected[:10, :10] = 1
    assert np.array_equal(entry.target(), expected)
    assert set(np.unique(cv2.imread(str(entry.mask), 0))) == {0, 255}
    assert lay_out(file, tmp_path / "images", tmp_path / "out") == 1  # once more over it


def test_what_is_not_coco_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(InputError, match="does not hold COCO's instance annotations"):
        lay_out(tmp_path / "x.json", tmp_path, tmp_path / "out")
