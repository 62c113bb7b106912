"""The page where the GPU is lent for a call: what is computed must come back from another process."""

import pickle
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("gradio")

from imrseg import InputError
from imrseg.app.models import OWN, Models
from imrseg.images import open_picture
from imrseg.run import Options

LITE = ("lite", OWN)


def through(thing):
    return pickle.loads(pickle.dumps(thing))


@pytest.fixture
def models(segmenter, monkeypatch):
    """As on ZeroGPU, whose ``spaces`` pickles what goes in and what comes out."""

    def decorate(task, *args, **settings):
        for out in task(*through(args), **through(settings)):
            yield through(out)

    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setitem(
        sys.modules, "spaces", SimpleNamespace(GPU=lambda duration: lambda task: partial(decorate, task))
    )
    return Models(segmenter)


def same(steps, others):
    for one, other in zip(steps, others, strict=True):
        np.testing.assert_array_equal(one.query_soft, other.query_soft)
        np.testing.assert_array_equal(one.support_soft[0], other.support_soft[0])


def test_a_run_comes_back_step_by_step_and_goes_on(models, segmenter, cat):
    picture = open_picture(cat)
    runs = list(models.begin(LITE, picture, [picture], "cat", Options(), 2))
    assert [len(run.steps) for run in runs] == [1, 2, 3]
    (more,) = models.go_on(LITE, runs[-1], 1)
    assert (len(runs[-1].steps), len(more.steps)) == (3, 4)

    whole = segmenter.start(picture, [picture], "cat", Options())
    for _ in range(3):
        whole.advance()
    same(more.steps, whole.steps)

    marks = np.zeros((40, 40), np.int8)
    marks[:10] = -1
    *_, corrected = models.go_on(LITE, more, 1, 1, {0: marks})
    whole.correct(1, {0: marks})
    whole.advance()
    same(corrected.steps, whole.steps)


def test_what_crosses_holds_no_models_and_no_states(models, cat):
    (run,) = models.begin(LITE, open_picture(cat), [], "cat", Options(), 0)
    pixels = run.query.pixels.nbytes
    assert len(pickle.dumps(run)) < pixels + 200_000


def test_bad_input_is_told_in_its_own_words(models, cat):
    with pytest.raises(InputError, match="label is empty"):
        next(models.begin(LITE, open_picture(cat), [], " ", Options(), 0))
