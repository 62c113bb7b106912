import numpy as np
import pytest

from imrseg import visualize
from imrseg.run import Step

VIEWS = [visualize.overlay, visualize.outline, visualize.cutout, visualize.heatmap]


def picture(h=60, w=90):
    return np.random.default_rng(0).integers(0, 256, (h, w, 3), np.uint8)


def square_mask(h=60, w=90):
    mask = np.zeros((h, w), np.float32)
    mask[h // 4 : h // 2, w // 4 : w // 2] = 0.9
    return mask


def make_steps(count, shots, size=(60, 90)):
    support = (square_mask(10, 12),) * shots
    return [
        Step(t, np.tile(square_mask(10, 12), (max(1, shots), 1, 1)), support, size, (size,) * shots, 0.5, "mean", 0.01)
        for t in range(count)
    ]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("size", [(60, 90), (1, 1), (2, 300), (7, 3)])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_view_keeps_size_and_leaves_its_inputs_alone(view, size, value):
    pixels, mask = picture(*size), np.full(size, value, np.float32)
    before = pixels.copy()
    shown = view(pixels, mask)
    assert shown.shape == pixels.shape
    assert shown.dtype == np.uint8
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("view", VIEWS)
def test_view_refuses_a_mask_of_another_size(view):
    with pytest.raises(ValueError, match="one size"):
        view(picture(), square_mask(30, 30))


def test_overlay_dims_outside_and_tints_inside():
    pixels = picture(120, 160)
    shown = visualize.overlay(pixels, square_mask(120, 160)).astype(int)
    np.testing.assert_allclose(shown[:20], visualize.DIM * pixels[:20], atol=0.5)
    inside = slice(40, 50), slice(50, 70)
    tinted = (1 - visualize.TINT) * pixels[inside] + visualize.TINT * np.array(visualize.ACCENT)
    np.testing.assert_allclose(shown[inside], tinted, atol=0.5)


def test_cut_moves_the_edge():
    pixels, soft = picture(), np.linspace(0, 1, 90, dtype=np.float32)[None].repeat(60, 0)
    low, high = (visualize.cutout(pixels, soft, cut) for cut in (0.2, 0.8))
    same = [(shown == pixels).all(-1).mean() for shown in (low, high)]
    assert same[0] > same[1] + 0.4


def test_a_bool_mask_is_taken_as_it_is():
    pixels, mask = picture(), square_mask()
    np.testing.assert_array_equal(visualize.overlay(pixels, mask >= 0.5), visualize.overlay(pixels, mask, 0.5))


def test_outline_touches_only_the_edge():
    pixels = picture(200, 200)
    changed = (visualize.outline(pixels, square_mask(200, 200)) != pixels).any(-1)
    assert changed[48:53, 48:100].any()
    assert not changed[65:85, 65:85].any()
    assert not changed[150:].any()


def test_outline_draws_nothing_along_the_frame():
    pixels = picture(200, 200)
    np.testing.assert_array_equal(visualize.outline(pixels, np.ones((200, 200))), pixels)


@pytest.mark.parametrize("shots", [0, 1, 3])
def test_panel_has_a_row_for_each_picture(shots):
    panel = visualize.panel(picture(), [picture()] * shots, make_steps(3, shots), 0.5, "red car")
    assert panel.dtype == np.uint8
    assert panel.shape[2] == 3
    none = visualize.panel(picture(), [], make_steps(3, 0), 0.5, "red car")
    row = (panel.shape[0] - none.shape[0]) / max(1, shots)
    assert row == (0 if shots == 0 else pytest.approx(300 * 60 / 90 + 40, abs=20))
    assert (panel[:5] == 255).all()


def test_panel_is_wider_for_more_steps_and_takes_any_shape():
    narrow = visualize.panel(picture(300, 8), [picture(5, 400)], make_steps(1, 1, (300, 8)), 0.5, "a")
    wide = visualize.panel(picture(300, 8), [picture(5, 400)], make_steps(5, 1, (300, 8)), 0.5, "a" * 200)
    assert wide.shape[1] > narrow.shape[1]


@pytest.mark.parametrize(
    ("share", "words"), [(0, "0 %"), (0.0004, "0.0 %"), (0.034, "3.4 %"), (0.0996, "10 %"), (1, "100 %")]
)
def test_percent(share, words):
    assert visualize.percent(share) == words


def test_describe():
    half = np.arange(100).reshape(10, 10) < 50
    assert visualize.describe(half, None) == "covers 50 %"
    assert visualize.describe(half, np.ones((10, 10), bool)) == "covers 50 %, IoU 0.50"
