"""What is learned from: episodes, looks at pictures, batches."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from imrseg.data.entries import Entry
from imrseg.data.features import View
from imrseg.errors import InputError
from imrseg.models.efficientnet import BACKBONE as LITE
from imrseg.training import CONFIGS, disturb, gather
from imrseg.training.data import Look, TrainingSet, make_batch
from imrseg.training.starts import StoredMasks, TrueMasks

PLAIN = replace(CONFIGS["imr-hsnet-vgg16"], side=64, batch=6, held_out=0.0)


def plain_set(pictures, **changes) -> TrainingSet:
    config = replace(PLAIN, **changes)
    return TrainingSet(*gather("folder", pictures, None, "all", []), config, config.side, None)


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


def test_another_spelling_of_a_held_out_class_is_kept_out_too(pictures, tmp_path):
    root = tmp_path / "VOC2012"
    for kind in ("JPEGImages", "SegmentationClassAug"):
        (root / kind).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "JPEGImages/a.jpg")
    Image.new("L", (8, 8)).save(root / "SegmentationClassAug/a.png")
    (tmp_path / "trn").mkdir()
    for fold in range(4):
        (tmp_path / f"trn/fold{fold}.txt").write_text(f"a__{5 * fold + 1:02d}\n")
    for name in ("potted_plant", "TV monitor", "Sheep", "plant"):
        shutil.copytree(pictures / "mug", tmp_path / "extra" / name)
    (_, extra), _ = gather("pascal", tmp_path, tmp_path, "3", [f"folder:{tmp_path / 'extra'}"])
    assert {e.name for e in extra} == {"plant"}


def test_home_is_known_after_the_colon_of_an_extra_data_set(pictures, monkeypatch):
    monkeypatch.setenv("HOME", str(pictures.parent))
    _, extra = gather("folder", pictures, None, "all", [f"folder:~/{pictures.name}"])[0]
    assert {e.image.parent.parent.parent for e in extra} == {pictures}


def test_data_sets_are_told_apart_by_pictures_and_classes(pictures, tmp_path):
    same = plain_set(pictures).digest()
    moved = shutil.copytree(pictures, tmp_path / "moved")
    assert plain_set(moved).digest() == same
    (moved / "mug").rename(moved / "cup")
    assert plain_set(moved).digest() != same


def test_bad_settings_are_refused(pictures, tmp_path):
    with pytest.raises(InputError, match="0 to 3, or all"):
        gather("pascal", tmp_path, tmp_path, "7", [])
    with pytest.raises(InputError, match="folder:DIR"):
        gather("folder", pictures, None, "all", ["msrc"])
    with pytest.raises(InputError, match="pascal, coco, fss, folder"):
        gather("imagenet", pictures, None, "all", [])


def test_a_look_shows_picture_mask_and_target_alike(pictures):
    """The object is of one colour: it is where the target says, in every view, mirrored or not."""
    training = plain_set(pictures, views=3)
    starts = TrueMasks(training)
    for position in (0, 5):
        blue = training.entries[position].name == "mug"
        for view in range(3):
            for flip in (False, True):
                look = Look(position, training.entries[position].label, view, flip)
                loaded = training.load(look)
                picture = loaded["picture"].float()
                assert picture.shape == (3, 64, 64)
                coloured = (picture[2] - picture[0] if blue else picture[0] - picture[2]) > 60
                target = training.target(position, view)[0]
                target = target.flip(-1) if flip else target
                seen = torch.nn.functional.adaptive_avg_pool2d(coloured.float()[None], (16, 16))[0]
                assert ((seen >= 0.5) == (target >= 0.5)).float().mean() > 0.95
                mask = starts.masks([look], loaded)[0, 0]
                assert torch.allclose(mask, torch.nn.functional.avg_pool2d(target[None], 2)[0], atol=0.01)


def test_true_masks_of_an_absent_label_are_empty(pictures):
    training = plain_set(pictures)
    mug = next(i for i, e in enumerate(training.entries) if e.name == "mug")
    assert TrueMasks(training).masks([Look(mug, "person")], {}).max() == 0
    assert TrueMasks(training).masks([Look(mug, "mug")], {}).max() == 1


def test_batches_depend_on_seed_and_number_alone(pictures):
    training = plain_set(pictures)
    starts = TrueMasks(training)
    one, again = (make_batch(training, starts, PLAIN, 3) for _ in range(2))
    other = make_batch(training, starts, PLAIN, 4)
    assert torch.equal(one.query["picture"], again.query["picture"])
    assert torch.equal(one.target, again.target)
    assert not torch.equal(one.query["picture"], other.query["picture"])
    assert one.target.shape == (12, 2, 16, 16)


def test_some_queries_are_their_own_support(pictures):
    training = plain_set(pictures, alone=0.5)
    rng = np.random.default_rng(0)
    drawn = [training.draw(rng) for _ in range(200)]
    alone = [e for e in drawn if e.query == e.support]
    assert 70 < len(alone) < 130
    assert all(e.present for e in alone)
    training = plain_set(pictures, alone=1.0, views=2, flip=0.5)
    config = replace(PLAIN, alone=1.0, views=2, flip=0.5)
    batch = make_batch(training, TrueMasks(training), config, 0)
    assert torch.equal(batch.query["picture"], batch.support["picture"])  # seen alike, too
    assert torch.equal(batch.target[: config.batch], batch.target[config.batch :])
    assert not any(e.query == e.support for e in map(plain_set(pictures, alone=0.0).draw, [rng] * 50))


def test_pictures_kept_back_are_not_trained_on(pictures):
    for held_out, seed, negatives in ((0.6, 1, 0.0), (0.4, 6, 0.5)):
        training = plain_set(pictures, held_out=held_out, seed=seed)
        training.config = replace(training.config, network="lite", backbone=LITE, negatives=negatives)
        back = {training.rows[i] for e in training.held_out() for i in (e.query, e.support)}
        rng = np.random.default_rng(0)
        drawn = [training.draw(rng) for _ in range(100)]
        seen = {training.rows[i] for e in drawn for i in (e.query, e.support)}
        assert back
        assert seen
        assert not back & seen
        assert any(not e.present for e in drawn) == (negatives > 0)
    with pytest.raises(InputError, match="held_out"):
        plain_set(pictures, held_out=0.01)


def test_disturbed_masks_stay_masks():
    mask = torch.rand(16, 1, 10, 10)
    out = disturb(mask, np.random.default_rng(0), 1.0)
    assert out.min() >= 0
    assert out.max() <= 1
    assert not torch.equal(out, mask)
    assert torch.equal(disturb(mask, np.random.default_rng(0), 0.0), mask)


def test_views_are_crops_that_stay(tmp_path):
    ramp = np.tile(np.arange(200, dtype=np.uint8)[:, None, None], (1, 100, 3))
    Image.fromarray(ramp).save(tmp_path / "a.png")
    view = View([tmp_path / "a.png"], 1, 32)
    cropped = view.crop(ramp, 0)
    assert cropped.shape < ramp.shape
    np.testing.assert_array_equal(cropped, View([tmp_path / "a.png"], 1, 32).crop(ramp, 0))
    np.testing.assert_array_equal(view.pixels(0), View([tmp_path / "a.png"], 1, 32).pixels(0))
    assert View([tmp_path / "a.png"], 0, 32).pixels(0).shape == (32, 32, 3)


def test_pictures_in_another_order_are_told_apart(pictures, tmp_path):
    """By their place pictures are kept back and cropped."""
    parts = []
    for extra in ("a", "z"):
        home = tmp_path / extra
        shutil.copytree(pictures / "mug", home / "m/mug")
        shutil.copytree(pictures / "person", home / extra / "person")
        parts.append(gather("folder", home / "m", None, "all", [f"folder:{home / extra}"]))
    first, second = (TrainingSet(*part, PLAIN, PLAIN.side, None) for part in parts)
    assert first.digest() == second.digest()
    assert first.order() != second.order()


def test_a_query_that_shows_a_little_of_the_class_lacks_it_not(tmp_path):
    """Lists name the pictures that show much of a class; the masks say more."""
    entries = []
    for i in range(12):
        mask = np.zeros((60, 60), np.uint8)
        mask[:30] = 1 + i % 2
        if i in (1, 3, 5):  # of class 2, with a little of class 1
            mask[50:, 50:] = 1
        Image.fromarray(mask).save(tmp_path / f"{i}.png")
        Image.new("RGB", (60, 60)).save(tmp_path / f"{i}.jpg")
        entries.append(Entry(tmp_path / f"{i}.jpg", tmp_path / f"{i}.png", f"c{1 + i % 2}", 1 + i % 2))
    config = replace(CONFIGS["lite"], side=64, negatives=1.0)
    training = TrainingSet([entries], [e.image for e in entries], config, 64, None)
    rng = np.random.default_rng(0)
    drawn = [e for e in (training.draw(rng) for _ in range(300)) if not e.present]
    assert {e.query for e in drawn} == {0, 2, 4, 6, 8, 10} | {7, 9, 11}


def test_coarse_masks_are_made_anew_where_a_picture_was_replaced(pictures, tmp_path, segmenter):
    home = shutil.copytree(pictures, tmp_path / "data")
    training = plain_set(home)
    StoredMasks(training, segmenter.masker, 8, tmp_path)
    moved = plain_set(shutil.copytree(home, tmp_path / "moved"))
    StoredMasks(moved, segmenter.masker, 8, tmp_path)
    assert len(list(tmp_path.glob("coarse-*.npy"))) == 1
    Image.new("RGB", (120, 90)).save(home / "mug/images/mug0.png")
    StoredMasks(training, segmenter.masker, 8, tmp_path)
    assert len(list(tmp_path.glob("coarse-*.npy"))) == 2
