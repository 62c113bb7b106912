import cv2
import numpy as np
import pytest

from imrseg import weights
from imrseg.coarse.lexicon import Lexicon
from tools.everyday_objects import SIDE, TALL, backgrounds, pictures, stamps


@pytest.fixture
def lexicon() -> Lexicon:
    return Lexicon(weights.find("lite-text.safetensors"))


def stamp(folder, name, colour, channels=4):
    """A coloured disc in a clear frame, or a picture without opacity."""
    image = np.zeros((60, 80, 4), np.uint8)
    cv2.circle(image, (40, 30), 20, (*colour, 255), -1)
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(file), image[..., :channels])


def test_words_that_are_photographs_are_taken(tmp_path, lexicon):
    for name in ("animals/birds/owl2.png", "animals/birds/xqzv.png", "animals/birds/cartoon/owl.png", "flags/owl.png"):
        stamp(tmp_path, name, (9, 9, 9))
    stamp(tmp_path, "food/fruit/sliced_lime.png", (9, 9, 9))  # no word of the dictionary as it stands
    stamp(tmp_path, "food/fruit/apple.png", (9, 9, 9), channels=3)
    (found,) = stamps(tmp_path, lexicon)
    assert (found.label, found.kind, found.image.shape) == ("owl", "birds", (41, 41, 4))


def test_backgrounds_show_nothing_in_front(tmp_path):
    for name in ("sky/images/a.png", "grass/images/a.png", "grass/images/b.png", "cow/images/b.png"):
        stamp(tmp_path, name, (9, 9, 9))
    assert [f.name for f in backgrounds([tmp_path])] == ["a.png"]


def test_a_picture_shows_two_things_and_the_mask_is_the_first(tmp_path, lexicon):
    stamp(tmp_path, "animals/birds/owl.png", (0, 0, 255))
    stamp(tmp_path, "food/fruit/apple.png", (0, 255, 0))
    cv2.imwrite(str(tmp_path / "sky.png"), np.full((50, 50, 3), 200, np.uint8))
    found = stamps(tmp_path, lexicon)
    made = list(pictures(found, [tmp_path / "sky.png"], 2))
    assert [label for label, _, _ in made] == ["owl", "owl", "apple", "apple"]
    for label, picture, mask in made:
        assert picture.shape == (SIDE, SIDE, 3)
        own, other = (0, 1) if label == "owl" else (1, 0)  # red and green, in RGB
        inside = cv2.erode(mask.astype(np.uint8), np.ones((25, 25))) > 0  # edges are blurred
        assert (picture[inside][:, own] == 255).all()
        assert (picture[inside][:, other] == 0).all()
        halves = mask[:, : SIDE // 2].any(), mask[:, SIDE // 2 :].any()
        assert sorted(halves) == [False, True]
        elsewhere = picture[:, SIDE // 2 :] if halves[0] else picture[:, : SIDE // 2]
        assert (elsewhere == (255 * (other == 0), 255 * (other == 1), 0)).all(-1).any()
        assert np.ptp(np.nonzero(mask)[0]) < TALL[1]
    again = list(pictures(found, [tmp_path / "sky.png"], 2))
    assert all((a[1] == b[1]).all() for a, b in zip(made, again, strict=True))
