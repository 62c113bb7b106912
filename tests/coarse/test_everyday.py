"""Class vectors from image-level labels, on made-up features whose positions are known."""

import numpy as np
import pytest
import torch

from imrseg.coarse.everyday import NEVER, calibrate, learn

SIDE, CHANNELS = 6, 200
NAMES = ("grass", "cow", "sky", "never")


def pictures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Feature maps, which class is where (count, SIDE, SIDE; -1: none), and what pictures show (count, 4).

    A cow never comes without grass, and mostly with sky: pictures as a whole hardly tell them apart.
    """
    rng = np.random.default_rng(seed)
    looks = np.random.default_rng(9).normal(0, 1, (len(NAMES), CHANNELS))
    where = np.full((count, SIDE, SIDE), -1)
    for i in range(count):
        if rng.random() < 0.7:
            where[i, 3:] = 0
            if rng.random() < 0.8:
                where[i, 2:5, 1:5] = 1
        if rng.random() < 0.7:
            where[i, :2] = 2
    maps = np.where(where[..., None] >= 0, looks[where], 0.0) + rng.normal(0, 1, (*where.shape, CHANNELS))
    shown = np.stack([(where == k).any((1, 2)) for k in range(len(NAMES))], 1).astype(np.float32)
    return maps.transpose(0, 3, 1, 2).astype(np.float16), where, shown


@pytest.fixture(scope="module")
def learned():
    maps, _, shown = pictures(120, 0)
    present = torch.from_numpy(shown)
    present[60:, 2] = torch.nan  # of the second data set nobody said where the sky is
    return learn(maps, present, [range(60), range(60, 120)], [0, 2, 3], seed=0), maps, present


def overlap(direction: np.ndarray, maps: np.ndarray, truth: np.ndarray) -> float:
    score = np.einsum("c,nchw->nhw", direction, maps.astype(np.float32))
    found = score > score.max() / 2
    return (found & truth).sum() / (found | truth).sum()


def test_directions_say_where_a_class_is_though_labels_only_say_whether(learned):
    directions, seen, present = learned
    maps, where, _ = pictures(40, 1)
    assert overlap(directions[0].numpy(), maps, where == 0) > 0.8
    assert overlap(directions[1].numpy(), maps, where == 2) > 0.8
    # Pictures as a whole take the cow for grass.
    pooled, grass = seen.astype(np.float32).mean((2, 3)), present[:, 0].numpy() == 1
    assert overlap(pooled[grass].mean(0) - pooled[~grass].mean(0), maps, where == 0) < 0.75


def test_a_class_that_no_picture_shows_has_no_direction_and_is_never_there(learned):
    directions, maps, present = learned
    assert not directions[2].any()
    classifier = torch.zeros(5, CHANNELS), torch.zeros(5)
    pooled = torch.from_numpy(maps.astype(np.float32).mean((2, 3)))
    weight, bias = calibrate(pooled, present[:, [0, 2, 3]], directions, *classifier)
    assert bias[2] == NEVER
    torch.testing.assert_close(weight, directions)  # beside ImageNet's mean, which is zero here
    told = (pooled @ weight.T + bias > np.log(5)).float()  # against five logits of zero
    known = ~present[:, 2].isnan()
    assert (told[:, 0] == present[:, 0]).float().mean() > 0.95
    assert (told[known, 1] == present[known, 2]).float().mean() > 0.95


def test_the_same_seed_learns_the_same(learned):
    directions, maps, present = learned
    again = learn(maps, present, [range(60), range(60, 120)], [0, 2, 3], seed=0)
    assert torch.equal(directions, again)
    other = learn(maps, present, [range(60), range(60, 120)], [0, 2, 3], seed=1)
    assert not torch.equal(directions, other)
