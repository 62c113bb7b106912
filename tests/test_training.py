"""Training on a handful of drawn pictures: what is learned from, and that a run can go on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from imrseg import Segmenter, training
from imrseg.errors import InputError
from imrseg.training import CONFIGS, disturb, gather, segmentation_loss, train

TINY = replace(CONFIGS["lite"], iterations=2, batch=2, views=2)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Four pictures each of two classes, red squares and blue bars."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, colour in (("person", (220, 30, 30)), ("mug", (30, 30, 220))):
        for kind in ("images", "masks"):
            (root / name / kind).mkdir(parents=True)
        for i in range(4):
            mask = np.zeros((90, 120), np.uint8)
            y, x = rng.integers(0, 40, 2)
            mask[y : y + 40, x : x + 60] = 1
            pixels = np.where(mask[..., None], colour, rng.integers(90, 160, (90, 120, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"{name}/images/{name}{i}.png")
            Image.fromarray(mask).save(root / f"{name}/masks/{name}{i}.png")
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("features")


def test_a_run_gives_a_checkpoint_that_segments(pictures, cache, tmp_path):
    sources, paths = gather("folder", pictures, None, "all", [])
    checkpoint = train(sources, paths, TINY, tmp_path, cache)
    picture = next((pictures / "mug/images").iterdir())
    result = Segmenter.from_preset("lite", "cpu", checkpoint=checkpoint).segment(picture, [picture], "mug")
    assert result.mask.shape == (90, 120)
    assert not list(tmp_path.glob("*.part"))


def test_a_resumed_run_ends_bit_for_bit_like_an_unbroken_one(pictures, cache, tmp_path, monkeypatch):
    sources, paths = gather("folder", pictures, None, "all", [])
    unbroken = load_file(train(sources, paths, TINY, tmp_path / "a", cache))
    monkeypatch.setattr(training, "SAVE_EVERY", 1)

    class Stopped(Exception):
        pass

    step = torch.optim.AdamW.step
    calls = []

    def step_once(self, *args, **kwargs):
        if calls:
            raise Stopped
        calls.append(1)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step_once)
    with pytest.raises(Stopped):
        train(sources, paths, TINY, tmp_path / "b", cache)
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    resumed = load_file(train(sources, paths, TINY, tmp_path / "b", cache, resume=True))
    assert unbroken.keys() == resumed.keys()
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)


def test_held_out_classes_are_kept_out_of_extra_data(pictures, tmp_path):
    root = tmp_path / "VOC2012"
    (root / "JPEGImages").mkdir(parents=True)
    (root / "SegmentationClassAug").mkdir()
    Image.new("RGB", (8, 8)).save(root / "JPEGImages/a.jpg")
    Image.new("L", (8, 8)).save(root / "SegmentationClassAug/a.png")
    for fold, number in enumerate(("01", "08", "15", "17")):
        (tmp_path / "trn").mkdir(exist_ok=True)
        (tmp_path / f"trn/fold{fold}.txt").write_text(f"a__{number}\n")
    (main, extra), _ = gather("pascal", tmp_path, tmp_path, "2", [f"folder:{pictures}"])
    assert {e.name for e in main} == {"aeroplane", "cat", "sheep"}
    assert {e.name for e in extra} == {"mug"}  # person is of fold 2
    (main, extra), _ = gather("pascal", tmp_path, tmp_path, "all", [f"folder:{pictures}"])
    assert {e.name for e in main} == {"aeroplane", "cat", "person", "sheep"}
    assert {e.name for e in extra} == {"mug", "person"}


def test_bad_settings_are_refused(pictures, tmp_path):
    with pytest.raises(InputError, match="0 to 3, or all"):
        gather("pascal", tmp_path, tmp_path, "7", [])
    with pytest.raises(InputError, match="folder:DIR"):
        gather("folder", pictures, None, "all", ["msrc"])
    with pytest.raises(InputError, match="folder, and pascal"):
        gather("coco", pictures, None, "all", [])


def test_the_loss_counts_valid_pixels_alone():
    logits = torch.randn(1, 2, 8, 8)
    target = torch.zeros(1, 2, 8, 8)
    target[:, 1, :, :4] = 1
    changed = logits.clone()
    changed[..., 4:] = 9.0
    assert torch.equal(segmentation_loss(logits, target, 0.5), segmentation_loss(changed, target, 0.5))


def test_without_dice_the_loss_is_cross_entropy():
    logits, truth = torch.randn(3, 2, 5, 5), torch.randint(0, 2, (3, 5, 5))
    target = torch.stack([truth.float(), torch.ones(3, 5, 5)], 1)
    expected = torch.nn.functional.cross_entropy(logits, truth)
    assert segmentation_loss(logits, target, 0.0) == pytest.approx(expected.item(), abs=1e-5)


def test_disturbed_masks_stay_masks():
    mask = torch.rand(16, 1, 10, 10)
    out = disturb(mask, np.random.default_rng(0), 1.0)
    assert out.min() >= 0
    assert out.max() <= 1
    assert not torch.equal(out, mask)
    assert torch.equal(disturb(mask, np.random.default_rng(0), 0.0), mask)
