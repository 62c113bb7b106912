"""``evaluate`` on a handful of drawn pictures."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from imrseg.data.benchmarks import gather
from imrseg.errors import InputError
from imrseg.evaluation import evaluate, held_out, origin, true_marks
from imrseg.postprocess import iou
from imrseg.presets import PRESETS


@pytest.fixture
def discs(tmp_path: Path) -> Path:
    """Three orange discs on green, of the class "orange", at another size each."""
    for kind in ("images", "masks"):
        (tmp_path / "orange" / kind).mkdir(parents=True)
    for i, (h, w) in enumerate([(120, 160), (160, 120), (200, 200)]):
        y, x = np.mgrid[:h, :w]
        disc = (y - h / 2) ** 2 + (x - w / 2) ** 2 < (0.3 * min(h, w)) ** 2
        pixels = np.where(disc[..., None], (240, 140, 20), (40, 120, 40)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"orange/images/{i}.png")
        Image.fromarray(disc.astype(np.uint8)).save(tmp_path / f"orange/masks/{i}.png")
    return tmp_path


def test_the_result_is_complete_and_repeatable(segmenter, discs):
    entries = held_out("folder", discs, None, None)
    result = evaluate(segmenter, entries, episodes=4, steps=2, seed=1)
    assert set(result) >= {"miou", "fb_iou", "per_class", "skipped", "episodes", "seconds", "seed", "weights"}
    assert result["consensus"] == "on"
    assert result["episodes"] == 4
    assert result["skipped"] == []
    assert list(result["per_class"]) == ["orange"]
    assert len(result["miou"]) == len(result["fb_iou"]) == 3
    assert all(0 <= value <= 1 for value in result["miou"] + result["fb_iou"])
    again = evaluate(segmenter, entries, episodes=4, steps=2, seed=1)
    assert {**again, "seconds": 0} == {**result, "seconds": 0}


def test_one_episode_scores_what_segment_finds(segmenter, discs):
    entries = held_out("folder", discs, None, None)[:2]
    result = evaluate(segmenter, entries, episodes=1, steps=1)
    found = segmenter.segment(entries[0].image, [entries[1].image], "orange", steps=1)
    target = entries[0].target() == 1
    coarse = found.steps[0].query_mask >= found.steps[0].cut()
    assert result["miou"] == [pytest.approx(iou(coarse, target)), pytest.approx(iou(found.mask, target))]


def test_zero_shot_draws_no_support(segmenter, discs):
    entries = held_out("folder", discs, None, None)
    result = evaluate(segmenter, entries, episodes=1, steps=1, zero_shot=True)
    found = segmenter.segment(entries[0].image, [], "orange", steps=1)
    assert result["shots"] == 0
    assert result["miou"][-1] == pytest.approx(iou(found.mask, entries[0].target() == 1))


def test_true_masks_of_supports_are_imposed(segmenter, discs):
    entries = held_out("folder", discs, None, None)[:2]
    result = evaluate(segmenter, entries, episodes=1, steps=2, true_supports=True)
    run = segmenter.start(entries[0].image, [entries[1].image], "orange")
    truth = entries[1].target() == 1
    run.correct(0, {1: np.where(truth, 1, -1)})
    run.advance_by(2)
    found = run.steps[2].query_at(entries[0].target().shape) >= 0.5
    assert result["miou"][2] == pytest.approx(iou(found, entries[0].target() == 1))
    assert iou(run.steps[2].support_masks[0] >= 0.5, truth) > 0.95
    assert result["true_supports"]
    with pytest.raises(InputError, match="zero-shot or true supports"):
        evaluate(segmenter, entries, episodes=1, zero_shot=True, true_supports=True)


def test_what_a_target_does_not_say_is_not_marked():
    assert true_marks(np.array([[1, 0, 255]], np.uint8)).tolist() == [[1, -1, 0]]


def test_unknown_benchmarks_and_folds_are_refused(tmp_path):
    with pytest.raises(InputError, match="pascal, coco, fss, folder"):
        held_out("imagenet", tmp_path, None, None)
    with pytest.raises(InputError, match="--splits"):
        held_out("pascal", tmp_path, None, 0)
    with pytest.raises(InputError, match="0 to 3"):
        held_out("pascal", tmp_path, tmp_path, 4)


def test_scores_at_a_square_as_hsnet_has_them(segmenter, discs):
    entries = held_out("folder", discs, None, None)[:2]
    result = evaluate(segmenter, entries, episodes=1, steps=1, side=50)
    found = segmenter.segment(entries[0].image, [entries[1].image], "orange", steps=1)
    small = cv2.resize(entries[0].target(), (50, 50), interpolation=cv2.INTER_NEAREST) == 1
    assert result["miou"][1] == pytest.approx(iou(found.steps[1].query_at((50, 50)) >= 0.5, small))
    assert result["side"] == 50


def test_numbers_that_are_too_small_are_refused(segmenter, discs):
    entries = held_out("folder", discs, None, None)
    for name in ("shots", "episodes", "side"):
        with pytest.raises(InputError, match=f"number of {name}"):
            evaluate(segmenter, entries, **{name: 0})


def test_the_checkpoint_says_how_it_was_trained(segmenter, discs):
    result = evaluate(segmenter, held_out("folder", discs, None, None), episodes=1, steps=0)
    assert result["config"]["steps"] == 3
    assert result["network"]["channels"] == 48


def test_of_the_authors_own_file_the_preset_tells(segmenter, tmp_path):
    (tmp_path / "best_model.pt").write_bytes(b"pickled")
    network = SimpleNamespace(file=tmp_path / "best_model.pt")
    told = origin(SimpleNamespace(preset=PRESETS["imr-hsnet-vgg16"], network=network))
    assert told == {"network": {"name": "imr-hsnet", "backbone": "vgg16"}}
    assert origin(segmenter)["config"]["steps"] == 3


def test_classes_that_no_episode_came_to_are_told(segmenter, discs):
    (discs / "orange").rename(discs / "b_orange")
    shutil.copytree(discs / "b_orange", discs / "a_orange")
    result = evaluate(segmenter, held_out("folder", discs, None, None), episodes=3, steps=0)
    assert list(result["per_class"]) == ["a_orange"]
    assert result["unreached"] == ["b_orange"]


@pytest.mark.parametrize("benchmark", ["fss", "folder"])
def test_data_sets_without_folds_have_none(tmp_path, benchmark):
    with pytest.raises(InputError, match="has no folds"):
        held_out(benchmark, tmp_path, None, 7)
    with pytest.raises(InputError, match="has no folds"):
        gather(benchmark, tmp_path, None, "0", [])


def test_classes_that_cannot_be_labels_are_told_before_the_work(segmenter, discs):
    for name in ("+", "x" * 206):
        shutil.copytree(discs / "orange", discs / name)
    with pytest.raises(InputError, match=r"what is no label \(2\): \+, xxx"):
        evaluate(segmenter, held_out("folder", discs, None, None), episodes=9, steps=0)


def test_a_class_without_episodes_may_be_called_anything(segmenter, discs):
    for kind in ("images", "masks"):
        (discs / "+" / kind).mkdir(parents=True)
        shutil.copy(discs / "orange" / kind / "0.png", discs / "+" / kind)
    assert evaluate(segmenter, held_out("folder", discs, None, None), episodes=2, steps=0)["skipped"] == ["+"]


def test_what_a_segmenter_remembers_is_its_owners(segmenter, discs, monkeypatch):
    monkeypatch.setattr(segmenter, "remember", 0)
    evaluate(segmenter, held_out("folder", discs, None, None), episodes=2, steps=0)
    assert segmenter.remember == 0


def test_what_is_not_scored_or_was_trained_on_is_told(segmenter, discs):
    (discs / "orange").rename(discs / "cow")
    entries = held_out("folder", discs, None, None)
    result = evaluate(segmenter, entries, episodes=1, steps=0, names=["cow", "bus"])
    assert (result["seen"], result["skipped"], result["unreached"]) == (["cow"], ["bus"], [])
    assert result["aggregate"] == "mean"  # lite's own
