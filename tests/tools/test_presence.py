import numpy as np
import pytest

from tools.presence import auroc


def test_it_is_the_chance_that_the_present_one_scores_higher():
    rng = np.random.default_rng(0)
    scores, present = rng.integers(0, 9, 60) / 9.0, rng.random(60) < 0.3
    pairs = [(a > b) + (a == b) / 2 for a in scores[present] for b in scores[~present]]
    assert auroc(scores, present) == pytest.approx(np.mean(pairs))
    assert auroc(present.astype(float), present) == 1
