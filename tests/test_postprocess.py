import numpy as np
import pytest

from imrseg.postprocess import aggregate, iou


def masks(k: int) -> list[np.ndarray]:
    return list(np.random.default_rng(k).random((k, 5, 7), np.float32))


def test_vote_is_equation_2_of_the_supplement():
    given = masks(4)
    votes = sum((m >= 0.5).astype(np.float64) for m in given)
    expected = votes / max(1, votes.max())
    np.testing.assert_allclose(aggregate(given, "vote"), expected, atol=1e-6)
    assert aggregate(given, "vote").dtype == np.float32


def test_votes_that_find_nothing_stay_nothing():
    assert (aggregate([np.full((2, 2), 0.49, np.float32)] * 3, "vote") == 0).all()


def test_mean_is_the_mean():
    given = masks(3)
    np.testing.assert_allclose(aggregate(given, "mean"), np.mean(given, 0), atol=1e-6)


@pytest.mark.parametrize("how", ["vote", "mean"])
def test_one_mask_stays_as_it_is(how):
    (mask,) = masks(1)
    assert aggregate([mask], how) is mask


def test_iou():
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert iou(a, b) == 1
    a[:2], b[1:3] = True, True
    assert iou(a, b) == pytest.approx(1 / 3)
    assert iou(a, ~a) == 0
