import numpy as np
import pytest

from imrseg import InputError
from imrseg.clicks import DOT, REACH, grow, grow_dabs


def halves(height: int = 48, width: int = 96) -> np.ndarray:
    """Left half dark red, right half light green."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = 120, 20, 20
    pixels[:, width // 2 :] = 150, 230, 150
    return pixels


@pytest.mark.parametrize("value", [1, -1])
def test_a_region_ends_where_the_colour_changes(value):
    marks = grow(halves(), 24, 24, value)
    assert marks.dtype == np.int8
    assert marks.shape == (48, 96)
    assert (marks[4:44, 4:44] == value).all()
    assert (marks[:, 48:] == 0).all()
    assert set(np.unique(marks)) == {0, value}


def test_a_region_on_one_colour_ends_within_reach():
    marks = grow(np.full((96, 96, 3), 90, np.uint8), 48, 0, 1)
    row = marks[48]
    assert row[: int(REACH * 96) - 1].all()
    assert not row[int(REACH * 96) + 1 :].any()


def test_a_region_goes_around_what_is_not_alike():
    """A wall with a gap: the far side is reached through the gap."""
    pixels = np.full((96, 96, 3), 200, np.uint8)
    pixels[:, 20:24] = 0
    pixels[40:56, 20:24] = 200
    marks = grow(pixels, 48, 8, 1)
    assert marks[48, 40] == 1
    assert marks[60, 30] == 1
    assert not marks[:36, 20:24].any()


def test_a_click_on_noise_marks_a_dot():
    pixels = np.random.default_rng(0).integers(0, 2, (96, 96, 1)).repeat(3, 2).astype(np.uint8) * 255
    pixels[48, 30] = 128  # different from all around
    marks = grow(pixels, 48, 30, -1)
    assert marks[48, 30 - round(DOT * 96)] == -1
    assert np.count_nonzero(marks) < 12


def test_the_size_of_the_picture_does_not_matter():
    small = halves()
    large = small.repeat(3, 0).repeat(3, 1)
    a, b = grow(small, 24, 24, 1), grow(large, 73, 73, 1)
    assert np.mean(a.repeat(3, 0).repeat(3, 1) == b) > 0.99


@pytest.mark.parametrize(
    ("y", "x", "value", "said"), [(48, 0, 1, "48 rows"), (0, -1, 1, "outside"), (0, 0, 0, "1, this is it")]
)
def test_what_is_no_click_is_refused(y, x, value, said):
    with pytest.raises(InputError, match=said):
        grow(halves(), y, x, value)


def test_dabs_grow_and_strokes_stay():
    pixels, painted = halves(), np.zeros((24, 48), np.int8)
    painted[12, 12] = 1
    painted[4, 30:44] = -1
    marks = grow_dabs(painted, pixels)
    assert marks.shape == (48, 96)
    assert (marks[8:40, 8:40] == 1).all()
    assert (marks[:, 48:] == 0).sum() == 48 * 48 - 2 * 28
    assert (marks[8:10, 60:88] == -1).all()
    assert not grow_dabs(np.zeros((1, 1), np.int8), pixels).any()
