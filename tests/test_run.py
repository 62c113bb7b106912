"""A run's options, its steps and what it says."""

from dataclasses import replace

import numpy as np
import pytest

from imrseg import InputError
from imrseg.run import MAX_DISTRACTORS, Options, check_label, verdict


def test_the_threshold_cuts_the_last_mask(segmenter, cat):
    masks = [segmenter.segment(cat, [], "cat", threshold=t) for t in (0.2, 0.5, 0.8)]
    last = masks[0].steps[-1]
    for threshold, result in zip((0.2, 0.5, 0.8), masks, strict=True):
        assert last.cut(threshold) == threshold
        assert np.array_equal(result.mask, last.query_mask >= threshold)


def test_coarse_masks_are_cut_where_they_fit_best(segmenter, cat):
    coarse = segmenter.segment(cat, [], "cat", steps=0).steps[0]
    assert coarse.cut() == pytest.approx(segmenter.masker.threshold)
    assert coarse.cut(0.25) == pytest.approx(segmenter.masker.threshold / 2)
    assert coarse.cut(0) == 0
    assert coarse.cut(1) <= 1


def test_an_empty_mask_and_a_doubtful_label_are_told(segmenter, cat):
    run = segmenter.start(cat, [], "cat")
    run._last = replace(run.coarse, query_soft=np.zeros_like(run.coarse.query_soft))
    assert "Nothing was found for “cat”" in run.verdict()[-1]
    assert verdict("cat", ["a"], 0.1, 0.5) == ["a", "“cat” is probably not in the query picture."]
    assert verdict("cat", ["a"], 0.9, 0.5) == verdict("cat", ["a"], None, 0.5) == ["a"]


def test_a_label_is_stripped():
    assert check_label("  red car ") == "red car"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"aggregate": "median"}, "None, vote, mean"),
        ({"prompts": "many"}, "single, ensemble"),
        ({"edges": "crf"}, "guided, grabcut"),
        ({"edges_on": "first"}, "last, every"),
        ({"distractors": "grass"}, "list of up to 20"),
        ({"distractors": ["x"] * (MAX_DISTRACTORS + 1)}, "list of up to 20"),
        ({"distractors": [" "]}, "distractor is empty"),
        ({"distractors": [3]}, "distractor is empty"),
    ],
)
def test_options_outside_the_accepted_are_refused(given, said):
    with pytest.raises(InputError, match=said):
        Options(**given)


def test_a_distractor_takes_its_share_of_the_coarse_mask(segmenter, cat):
    """The cat's ears go when "ear" is named among the other things, the cat stays likely."""
    alone = segmenter.segment(cat, [], "cat", steps=0)
    told = segmenter.segment(cat, [], "cat", steps=0, distractors=["wall", "tabby"])
    assert told.options.distractors == ("wall", "tabby")
    assert not np.array_equal(alone.steps[0].query_soft, told.steps[0].query_soft)
    assert told.confidence == pytest.approx(alone.confidence)


def test_an_ensemble_of_wordings_reads_the_label_twice(segmenter, cat):
    single, several = (segmenter.start(cat, [], "cheetah", Options(prompts=p)).coarse for p in ("single", "ensemble"))
    assert not np.array_equal(single.query_soft, several.query_soft)


@pytest.mark.parametrize("how", ["guided", "grabcut"])
@pytest.mark.parametrize("shots", [0, 2])
def test_edges_on_the_last_step_change_that_step_alone(segmenter, cat, cup, how, shots):
    supports = [cat[:, ::-1].copy(), cup][:shots]
    plain = segmenter.segment(cat, supports, "cat", steps=2)
    fitted = segmenter.segment(cat, supports, "cat", steps=2, edges=how)
    for a, b in zip(plain.steps[:-1], fitted.steps[:-1], strict=True):
        assert np.array_equal(a.query_soft, b.query_soft)
    assert fitted.mask.shape == plain.mask.shape
    assert [m.shape for m in fitted.steps[-1].support_masks] == [s.shape[:2] for s in supports]
    assert 0 < np.count_nonzero(fitted.mask != plain.mask) < 0.2 * plain.mask.size
    assert "edges" in fitted.seconds


@pytest.mark.parametrize("shots", [0, 2])
def test_edges_on_every_step_enter_the_next(segmenter, cat, cup, shots):
    supports = [cat[:, ::-1].copy(), cup][:shots]
    plain = segmenter.segment(cat, supports, "cat", steps=2)
    fitted = segmenter.segment(cat, supports, "cat", steps=2, edges="guided", edges_on="every")
    for a, b in zip(plain.steps, fitted.steps, strict=True):
        assert a.query_soft.shape != b.query_soft.shape
        assert len(a.query_soft) == len(b.query_soft)
    one_by_one = list(segmenter.iterate(cat, supports, "cat", steps=2, edges="guided", edges_on="every"))
    assert all(np.array_equal(a.query_soft, b.query_soft) for a, b in zip(fitted.steps, one_by_one, strict=True))


def test_a_run_goes_on_from_its_own_masks_after_it_was_finished(segmenter, cat):
    """ "One more step" continues what the network carries, not what was fitted to edges for showing."""
    options = Options(edges="guided")
    whole, stopped = (segmenter.start(cat, [], "cat", options) for _ in range(2))
    stopped.advance()
    stopped.finish()
    whole.advance()
    assert np.array_equal(whole.advance().query_soft, stopped.advance().query_soft)
