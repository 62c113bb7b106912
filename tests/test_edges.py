import cv2
import numpy as np
import pytest

from imrseg.edges import EDGES, SIDES, _guided, clean
from imrseg.images import to_size
from imrseg.postprocess import iou

WORKING = {how: (side * 3 // 4, side) for how, side in SIDES.items()}  # of the scene, for each way


@pytest.fixture(scope="module")
def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A warm ellipse on a cool ground, both noisy: pixels (240, 320, 3), the object, a mask (20, 20) too wide."""
    truth = cv2.ellipse(np.zeros((240, 320), np.uint8), (150, 120), (70, 55), 30, 0, 360, 1, -1).astype(bool)
    noise = np.random.default_rng(0).normal(0, 12, (240, 320, 3))
    pixels = np.where(truth[..., None], (190, 110, 70), (90, 120, 140)) + noise
    wide = cv2.dilate(truth.astype(np.float32), np.ones((15, 15)))
    soft = 0.03 + 0.92 * cv2.GaussianBlur(wide, (0, 0), 12)
    return pixels.clip(0, 255).astype(np.uint8), truth, cv2.resize(soft, (20, 20), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("how", EDGES)
def test_a_mask_comes_closer_to_the_object(scene, how):
    pixels, truth, soft = scene
    assert iou(to_size(soft, truth.shape) >= 0.5, truth) < 0.85
    assert iou(to_size(clean(soft, pixels, how), truth.shape) >= 0.5, truth) > 0.97


def test_grabcut_fits_at_a_coarse_masks_own_level(scene):
    pixels, truth, soft = scene
    coarse = np.interp(soft, (0, 0.5, 1), (0, 0.2, 1)).astype(np.float32)
    assert iou(to_size(clean(coarse, pixels, "grabcut", 0.2), truth.shape) >= 0.2, truth) > 0.97


def test_the_guided_filter_is_linear_in_the_mask(scene):
    pixels, _, soft = scene
    np.testing.assert_allclose(clean(soft * 0.4, pixels, "guided", 0.2), clean(soft, pixels, "guided") * 0.4, atol=1e-5)


def test_the_guided_filter_is_a_ridge_regression_on_colour_in_every_window():
    rng = np.random.default_rng(1)
    guide, soft = rng.random((15, 17, 3), np.float32), rng.random((15, 17), np.float32)
    radius, y, x = 2, 7, 8

    def window(values: np.ndarray, i: int, j: int) -> np.ndarray:
        return values[i - radius : i + radius + 1, j - radius : j + radius + 1].reshape(25, -1).astype(np.float64)

    predictions = []
    for i in range(y - radius, y + radius + 1):
        for j in range(x - radius, x + radius + 1):
            colours, values = window(guide, i, j), window(soft, i, j)[:, 0]
            centred = colours - colours.mean(0)
            slope = np.linalg.solve(centred.T @ centred + 25 * 1e-4 * np.eye(3), centred.T @ (values - values.mean()))
            predictions.append(values.mean() + (guide[y, x] - colours.mean(0)) @ slope)
    assert _guided(soft, guide, radius)[y, x] == pytest.approx(np.mean(predictions), abs=1e-4)


@pytest.mark.parametrize("how", EDGES)
@pytest.mark.parametrize(
    ("size", "expected"),
    [((960, 1280), (0.75, 1)), ((600, 200), (1, 1 / 3)), ((90, 60), (90, 60)), ((2, 1280), (0, 1)), ((3, 2), (3, 2))],
)  # fmt: skip
def test_the_result_has_the_pictures_aspect_at_a_working_size(how, size, expected):
    pixels = np.random.default_rng(2).integers(0, 256, (*size, 3), np.uint8)
    bump = np.exp(-(np.linspace(-2, 2, 80, dtype=np.float32) ** 2))
    soft = np.outer(bump, bump)
    pixels.flags.writeable = soft.flags.writeable = False
    out = clean(soft, pixels, how)
    assert out.shape == tuple(n if n > 1 else max(1, round(n * SIDES[how])) for n in expected)
    assert out.dtype == np.float32
    assert 0 <= out.min() <= out.max() <= 1


@pytest.mark.parametrize("how", EDGES)
def test_the_same_inputs_give_the_same_bytes(scene, how):
    pixels, _, soft = scene
    first = clean(soft, pixels, how).tobytes()
    cv2.setRNGSeed(99)
    cv2.randu(np.empty((50, 50), np.float32), 0, 1)
    assert clean(soft, pixels, how).tobytes() == first


@pytest.mark.parametrize("how", EDGES)
@pytest.mark.parametrize(("low", "high"), [(0, 0), (0, 0.45), (0.5, 0.5), (0.55, 1), (1, 1)])
def test_nothing_and_everything_stay_as_they_are(scene, how, low, high):
    soft = np.linspace(low, high, 400, dtype=np.float32).reshape(20, 20)
    np.testing.assert_array_equal(clean(soft, scene[0], how), to_size(soft, WORKING[how]))


def test_grabcut_leaves_a_mask_that_is_nowhere_sure(scene):
    pixels, _, soft = scene
    doubtful = soft * 0.8
    assert 0.5 < doubtful.max() < 0.8
    np.testing.assert_array_equal(clean(doubtful, pixels, "grabcut"), to_size(doubtful, WORKING["grabcut"]))


def test_an_object_is_never_lost():
    soft = np.zeros((40, 40), np.float32)
    soft[20, 20] = 0.55  # on a flat picture the filter spreads it out until nothing reaches the level
    pixels = np.full((40, 40, 3), 128, np.uint8)
    assert _guided(soft, pixels / np.float32(255), 1).max() < 0.5
    np.testing.assert_array_equal(clean(soft, pixels, "guided"), soft)


def test_another_threshold_still_means_something_after_grabcut(scene):
    pixels, _, soft = scene
    out, given = clean(soft, pixels, "grabcut"), to_size(soft, WORKING["grabcut"])
    found = out >= 0.5
    np.testing.assert_allclose(out[found], 0.5 + 0.5 * given[found], atol=1e-6)
    np.testing.assert_allclose(out[~found], 0.5 * given[~found], atol=1e-6)
    areas = [np.count_nonzero(out >= threshold) for threshold in (0.3, 0.5, 0.9, 0.95)]
    assert sorted(set(areas), reverse=True) == areas
