"""A run's options, its steps and what it says."""

import pickle
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from imrseg import InputError
from imrseg.images import open_pictures
from imrseg.run import CORRECTED, MAX_DISTRACTORS, Options, check_label, verdict


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
    run.steps[0] = replace(run.steps[0], query_soft=np.zeros_like(run.steps[0].query_soft))
    assert "Nothing was found for “cat”" in run.verdict()[-1]
    assert verdict("cat", ["a"], 0.1, 0.5) == ["a", "“cat” is probably not in the query picture."]
    assert verdict("cat", ["a"], 0.9, 0.5) == verdict("cat", ["a"], None, 0.5) == ["a"]


def test_a_label_is_one_line():
    assert check_label("  red car ") == "red car"
    assert check_label("red\n\t car\u3000\r\n") == "red car"


@pytest.mark.parametrize(
    "label",
    [
        "猫",
        "🐈‍⬛",
        "قطة",
        "a\u200fb",
        "<script>alert(1)</script>",
        "$\\frac{1}{0}$",
        "a, b",
        "the",
        "e\u0301" * 99,
        "x" * 200,
    ],
)
def test_a_label_may_be_any_text(label):
    assert check_label(label) == label


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("", "is empty"),
        (" \t\n\u3000", "is empty"),
        (None, "must be text"),
        (b"cat", "must be text"),
        (["cat"], "must be text"),
        ("x" * 201, "has 201 characters. Accepted: up to 200"),
        ("x" * 10_000, "has 10000 characters. Accepted: up to 200"),
        ("cat\0", "holds control characters"),
        ("\x1b[31mcat", "holds control characters"),
        ("cat\x7f", "holds control characters"),
        ("cat\u202etac", "holds control characters"),
        ("cat\u2067", "holds control characters"),
        ("cat\ud83d", "holds control characters"),
    ],
)
def test_labels_that_are_refused(label, said):
    with pytest.raises(InputError, match=said) as error:
        check_label(label)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"aggregate": "median"}, "vote, mean, or left out"),
        ({"prompts": "many"}, "single, ensemble"),
        ({"edges": "crf"}, "guided, grabcut"),
        ({"edges_on": "first"}, "last, every"),
        ({"consensus": "yes"}, "on, off"),
        ({"consensus": True}, "on, off"),
        ({"distractors": "grass"}, "list of up to 20"),
        ({"distractors": ["x"] * (MAX_DISTRACTORS + 1)}, "list of up to 20"),
        ({"distractors": [" "]}, "distractor is empty"),
        ({"distractors": [3]}, "distractor must be text, not int"),
        ({"distractors": ["a\x1b[31m"]}, "distractor holds control characters"),
        ({"aggregate": 3}, "vote, mean, or left out"),
        ({"aggregate": np.zeros(3)}, "vote, mean, or left out"),
        ({"prompts": None}, "single, ensemble"),
        ({"edges": ["guided"]}, "guided, grabcut"),
        ({"edges": "x" * 10_000}, "not 'xxxxxxxxxxxx...xxxxxxxxxxxxx'"),
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
    single, several = (segmenter.start(cat, [], "cheetah", Options(prompts=p)).steps[0] for p in ("single", "ensemble"))
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


@pytest.mark.parametrize("shots", [0, 1, 2])
def test_a_consensus_moves_every_picture_after_each_step(segmenter, cat, cup, shots):
    """``off`` is the network alone; ``on``, the default, goes on from moved masks."""
    supports = [cat[:, ::-1].copy(), cup][:shots]
    on, alone = (segmenter.segment(cat, supports, "cat", steps=2, consensus=c) for c in ("on", "off"))
    assert segmenter.segment(cat, supports, "cat", steps=0).options.consensus == "on"
    np.testing.assert_array_equal(on.steps[0].query_soft, alone.steps[0].query_soft)
    pictures = open_pictures([cat, *supports])
    with torch.inference_mode():
        features = segmenter.features(segmenter.network.encoder, pictures)
        (prepared,) = segmenter.network.prepare(features[0], features[1:] or features)
        reading = segmenter.masker.read("cat", [], False)
        cams, _ = segmenter.masker.masks(features, reading)
        (plain,) = segmenter.network.begin([prepared], cams[:1], cams[1:] if shots else cams)
        moved = plain
        consensus = segmenter.network.consensus(features)
        for index in (1, 2):
            plain = segmenter.network.step(plain)
            (moved,) = consensus.move([segmenter.network.step(moved)])
            for result, state in ((alone, plain), (on, moved)):
                step = result.steps[index]
                np.testing.assert_allclose(step.query_soft, state.query_masks[:, 0], atol=1e-5)
                for k, soft in enumerate(step.support_soft):
                    np.testing.assert_allclose(soft, state.support_masks[k, 0], atol=1e-5)
            assert not np.allclose(on.steps[index].query_soft, alone.steps[index].query_soft, atol=0.01)


def test_a_consensus_finds_nothing_where_the_network_finds_nothing(segmenter, cat):
    for consensus in ("off", "on"):
        assert not segmenter.segment(cat, [], "car", consensus=consensus).mask.any()


def blot(value: int) -> np.ndarray:
    """Marks in the picture's upper left quarter."""
    marks = np.zeros((60, 80), np.int8)
    marks[:30, :40] = value
    return marks


@pytest.mark.parametrize("shots", [0, 1, 2])
@pytest.mark.parametrize("value", [1, -1])
def test_what_is_marked_stays_and_the_rest_is_refined_on(segmenter, cat, cup, shots, value):
    supports = [cat[:, ::-1].copy(), cup][:shots]
    plain, marked = (segmenter.start(cat, supports, "cat") for _ in range(2))
    for run in (plain, marked):
        run.advance()
    picture = min(1, shots)
    corrected = marked.correct(1, {picture: blot(value)})
    assert corrected is marked.steps[-1]
    assert corrected.index == 1
    for run in (plain, marked):
        run.advance()

    def soft(step):
        return step.support_soft[0] if picture else step.query_soft[0]

    for step in marked.steps[1:]:
        assert (soft(step)[:39, :39] == max(value, 0)).all()
    away = np.abs(soft(marked.steps[2]) - soft(plain.steps[2]))[45:, 45:]
    assert away.max() > 1e-3  # the rest was refined with what is now known
    if picture:
        assert not np.allclose(marked.steps[2].query_soft[0], plain.steps[2].query_soft[0], atol=1e-3)
        np.testing.assert_array_equal(marked.steps[1].query_soft, plain.steps[1].query_soft)


def test_what_is_marked_teaches_the_other_pictures(segmenter, cat, cup):
    """By the consensus, in the very next step; pair by pair a mark on one support never reaches another."""
    supports = [cat[:, ::-1].copy(), cup]
    for consensus in ("on", "off"):
        plain, marked = (segmenter.start(cat, supports, "cat", Options(consensus=consensus)) for _ in range(2))
        for run in (plain, marked):
            run.advance()
        marked.correct(1, {1: blot(-1)})
        away = np.abs(plain.advance().support_soft[1] - marked.advance().support_soft[1])
        assert (away.max() > 1e-3) == (consensus == "on")


@pytest.mark.parametrize("consensus", ["on", "off"])
def test_marks_and_fitted_edges_hold_with_and_without_a_consensus(segmenter, cat, cup, consensus):
    options = Options(consensus=consensus, edges="guided", edges_on="every")
    run = segmenter.start(cat, [cup], "cat", options)
    run.advance()
    run.correct(1, {0: blot(-1)})
    for step in (run.advance(), run.advance()):
        assert (step.query_soft[0][:39, :39] == 0).all()


@pytest.mark.parametrize("how", ["guided", "grabcut"])
@pytest.mark.parametrize("value", [1, -1])
def test_what_is_marked_stays_so_where_the_answer_is_fitted_to_edges(segmenter, cat, cup, how, value):
    run = segmenter.start(cat, [cup], "cat", Options(edges=how))
    run.advance_by(2)
    marks = np.zeros((300, 451), np.int8)
    marks[140:152, 180:240] = value  # a stroke across the face
    run.correct(2, {0: marks})
    run.advance()
    answer = run.finish()
    assert ((answer.query_mask[142:150, 182:238] >= answer.cut()) == (value > 0)).all()
    assert answer.query_soft.shape == segmenter.segment(cat, [cup], "cat", edges=how).steps[-1].query_soft.shape


def test_correcting_an_earlier_step_takes_back_the_later_ones(segmenter, cat):
    run = segmenter.start(cat, [], "cat")
    for _ in range(3):
        run.advance()
    run.correct(0, {0: blot(1)})
    assert [s.index for s in run.steps] == [0]
    assert run.advance().index == 1
    run.correct(1, {0: blot(-1)})  # a new mark counts more than an old one
    assert (run.steps[1].query_soft[0][:39, :39] == 0).all()


def test_bad_marks_are_refused(segmenter, cat):
    run = segmenter.start(cat, [cat], "cat")
    for index, marks, said in (
        (1, {0: blot(1)}, "no step 1"),
        (0, {2: blot(1)}, "no picture 2"),
        (0, {0: blot(1) * 2}, "1, -1 and 0"),
        (0, {0: blot(1)[0]}, "1, -1 and 0"),
    ):
        with pytest.raises(InputError, match=said):
            run.correct(index, marks)


def test_a_released_run_goes_on_as_if_nothing_had_been(segmenter, cat, cup):
    kept, released = (segmenter.start(cat, [cup], "cat") for _ in range(2))
    for run in (kept, released):
        run.advance()
        run.correct(1, {1: blot(-1)})
        run.advance()
    released.release()
    a, b = kept.advance(), released.advance()
    assert np.array_equal(a.query_soft, b.query_soft)
    assert np.array_equal(a.support_soft[0], b.support_soft[0])
    released.release()
    released.correct(2, {0: blot(1)})
    assert [s.index for s in released.steps] == [0, 1, 2]


def test_a_copy_goes_on_by_itself(segmenter, cat):
    run = segmenter.start(cat, [], "cat")
    run.advance()
    other = run.copy()
    other.correct(1, {0: np.ones((4, 4), np.int8)})
    other.advance()
    assert (len(run.steps), len(other.steps)) == (2, 3)
    assert not run.corrected
    np.testing.assert_array_equal(run.advance().query_soft, segmenter.segment(cat, [], "cat", 2).steps[2].query_soft)


def test_what_a_run_holds_is_let_go_of(segmenter, cat):
    run = segmenter.start(cat, [cat[:, ::-1].copy()], "cat")
    run.advance()
    assert run.held > 10**6
    without = segmenter.start(cat, [cat[:, ::-1].copy()], "cat", Options(consensus="off"))
    without.advance()
    assert run.held > without.held + 5 * 10**6  # features of two pictures
    assert pickle.loads(pickle.dumps(run)).held == 0
    run.release()
    assert run.held == 0
    assert run.advance().index == 2


def test_several_steps_are_launched_before_any_mask_is_looked_at(segmenter, cat, cup, monkeypatch):
    done = []
    step = segmenter.network.refiner.step
    run = segmenter.start(cat, [cup], "cat")
    monkeypatch.setattr(segmenter.network.refiner, "step", lambda state: (done.append("step"), step(state))[1])
    look = run._seen
    monkeypatch.setattr(run, "_seen", lambda *args: (done.append("look"), look(*args))[1])
    steps = run.advance_by(3)
    assert done == ["step"] * 3 + ["look"] * 3
    assert [s.index for s in steps] == [1, 2, 3]
    assert run.steps[1:] == steps
    assert all(run.seconds[f"step{s.index}"] == s.seconds > 0 for s in steps)
    one_by_one = segmenter.start(cat, [cup], "cat")
    for wanted in steps:
        assert np.array_equal(one_by_one.advance().query_soft, wanted.query_soft)


def test_no_steps_are_none(segmenter, cat):
    run = segmenter.start(cat, [], "cat")
    assert run.advance_by(0) == []
    assert len(run.steps) == 1


@pytest.mark.parametrize(
    ("index", "marks", "said"),
    [
        (0, {0: np.ones((4, 4), np.int8), 7: np.ones((4, 4), np.int8)}, "no picture 7"),
        (0, {"0": np.ones((4, 4), np.int8)}, "no picture 0"),
        (0, {0: [[1, 0]]}, "Marks must be"),
        (0, {0: None}, "Marks must be"),
        (0, {0: np.zeros((0, 0))}, "Marks must be"),
        (1.0, {0: np.ones((4, 4), np.int8)}, "no step 1.0"),
        ("1", {}, "no step 1"),
        (None, {}, "no step None"),
    ],
    ids=str,
)
def test_a_refused_correction_leaves_the_run_as_it_was(segmenter, cat, cup, index, marks, said):
    run, control = (segmenter.start(cat, [cup], "cat") for _ in range(2))
    control.advance_by(2)
    run.advance()
    with pytest.raises(InputError, match=said):
        run.correct(index, marks)
    assert not run.corrected
    run.advance()
    assert np.array_equal(run.steps[2].query_soft, control.steps[2].query_soft)
    assert run.correct(1, {0: np.ones((4, 4), np.int8)}).query_mask.min() == 1


def test_marks_are_kept_as_they_were_given(segmenter, cat):
    """Also where the array is used again before the run is computed anew."""
    marks = np.zeros((40, 40), np.int8)
    marks[:20] = 1
    run = segmenter.start(cat, [], "cat")
    run.correct(0, {0: marks})
    other = run.copy()
    expected = other.advance().query_soft
    marks[:] = -1
    run.release()
    assert np.array_equal(run.advance().query_soft, expected)


def test_steps_that_are_taken_back_take_their_times_along(segmenter, cat):
    run = segmenter.start(cat, [], "cat")
    run.advance_by(3)
    run.correct(1, {0: np.ones((4, 4), np.int8)})
    assert [name for name in run.seconds if name.startswith("step")] == ["step1"]


def test_no_steps_backwards(segmenter, cat):
    run = segmenter.start(cat, [], "cat")
    run.advance()
    with pytest.raises(InputError, match="0 or more"):
        run.advance_by(-1)
    assert run.advance_by(0) == []


def test_a_coarser_mark_leaves_finer_ones(segmenter, cat):
    run, fine, coarse = segmenter.start(cat, [], "cat"), np.zeros((400, 400), np.int8), np.zeros((8, 8), np.int8)
    fine[20:60, 20:60], coarse[7, 7] = 1, -1
    run.correct(0, {0: fine})
    last = run.correct(0, {0: coarse})
    assert (last.query_at((400, 400))[25:55, 25:55] > 0.9).all()
    assert (last.query_at((400, 400))[-45:, -45:] < 0.1).all()


@pytest.mark.parametrize("value", [1, -1])
def test_a_mark_smaller_than_a_cell_counts(segmenter, cat, value):
    run, marks = segmenter.start(cat, [], "cat"), np.zeros((3200, 3200), np.int8)
    marks[1605:1608, 1605:1608] = value  # a cell has 40 x 40
    for step in (run.correct(0, {0: marks}), run.advance()):
        assert step.query_at((80, 80))[40, 40] == pytest.approx(float(value == 1), abs=1e-6)


@pytest.mark.parametrize("left", [320, 319])
def test_a_mark_of_several_cells_does_not_spread(segmenter, cat, left):
    run, marks = segmenter.start(cat, [], "cat"), np.zeros((640, 640), np.int8)
    marks[left : left + 18, left : left + 18] = 1  # a cell has 8 x 8
    run.steps[0] = replace(run.steps[0], query_soft=np.zeros((1, 80, 80), np.float32))
    inside = run.correct(0, {0: marks}).query_at((640, 640)) >= 0.5
    assert inside[marks == 1].mean() > 0.85
    assert inside[marks == 0].sum() < 60


@pytest.mark.parametrize("count", [2.0, True, "2", None])
def test_a_number_of_steps_is_whole(segmenter, cat, count):
    with pytest.raises(InputError, match="must be a whole number"):
        segmenter.start(cat, [], "cat").advance_by(count)


def test_marks_come_by_picture(segmenter, cat):
    with pytest.raises(InputError, match="by picture"):
        segmenter.start(cat, [], "cat").correct(0, np.zeros((4, 4), np.int8))


def test_results_are_told_apart_by_what_they_are(segmenter, cat):
    first, second = (segmenter.segment(cat, [], "cat", steps=1) for _ in range(2))
    assert first != second
    assert first.steps[0] in first.steps
    assert first.steps[0] not in second.steps
    assert len({first, second, open_pictures([cat])[0]}) == 3


def test_a_run_without_a_model_says_so(segmenter, cat):
    run = segmenter.start(cat, [], "cat")
    lone = pickle.loads(pickle.dumps(run))
    with pytest.raises(InputError, match="comes without a model"):
        lone.advance()
    lone.segmenter = segmenter
    assert np.array_equal(lone.advance().query_mask, copy(run).advance().query_mask)


def test_a_run_asked_for_one_by_one_ends_in_what_segment_returns(segmenter, cat, cup):
    run = segmenter.start(cat, [cup], "cat", Options(edges="grabcut"))
    run.advance_by(2)
    result, whole = run.result(0.4), segmenter.segment(cat, [cup], "cat", 2, 0.4, edges="grabcut")
    np.testing.assert_array_equal(result.mask, whole.mask)
    assert (result.warnings, result.threshold, len(result.steps)) == (whole.warnings, 0.4, 3)
    run.correct(2, {0: np.ones((4, 4), np.int8)})
    assert run.result().mask.all()
    assert run.result().warnings[-1] == CORRECTED
    with pytest.raises(InputError, match="from 0 to 1"):
        run.result(2)
