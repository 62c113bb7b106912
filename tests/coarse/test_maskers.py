"""Stage 1 behind the Segmenter, with a small CLIP of random weights: how things go together."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from imrseg import ClipSettings, InputError, Segmenter
from imrseg.coarse import maskers
from imrseg.coarse.clip import ClipCam
from imrseg.coarse.prompts import ENSEMBLE, PAPER, contrast_with
from imrseg.encoders import normalise
from imrseg.images import open_picture, to_centre, to_square

open_clip = pytest.importorskip("open_clip")


@pytest.fixture(scope="module")
def cam() -> ClipCam:
    torch.manual_seed(6)
    vision = open_clip.CLIPVisionCfg(layers=(1, 1, 1, 1), width=16, image_size=64, head_width=16)
    text = open_clip.CLIPTextCfg(width=32, heads=2, layers=2)
    return ClipCam(open_clip.CLIP(32, vision, text, quick_gelu=True))


@pytest.fixture
def clip(cam, checkpoint, monkeypatch):
    """Makes a segmenter: CLIP's coarse masks feed lite's network."""
    monkeypatch.setattr(maskers, "load_clip", lambda name, device: (cam, checkpoint))

    def make(coarse: str = "clip", **settings) -> Segmenter:
        return Segmenter.from_preset("lite", "cpu", coarse=coarse, clip=ClipSettings(**settings))

    return make


def seen(cam, pixels, look=to_square, side=64):
    return normalise(look(open_picture(pixels), side)[None], cam.statistics)


@pytest.mark.parametrize("shots", [0, 2])
def test_clips_coarse_masks_feed_lites_network(clip, cam, segmenter, cat, cup, shots):
    supports = [cup, cat[:, ::-1].copy()][:shots]
    made = clip()
    result = made.segment(cat, supports, "cat", steps=2, distractors=["sofa"])
    labels = contrast_with("cat", ["sofa"])
    texts = cam.label_features(labels, PAPER)
    maps, _ = cam.explain(cam.features(seen(cam, cat)), texts, [0])
    np.testing.assert_allclose(result.steps[0].query_soft, maps.numpy(), atol=1e-4)
    assert len(result.steps) == 3
    assert result.mask.shape == cat.shape[:2]
    assert result.confidence is None
    assert result.steps[0].cut() == 0.5
    assert made.masker.name == "clip:RN50"
    assert (made.network.encoder.name, segmenter.network.encoder.name) == ("lite:320", "lite:320")


def test_clip_reads_for_several_threads_at_once():
    torch.manual_seed(6)
    vision = open_clip.CLIPVisionCfg(layers=(1, 1, 1, 1), width=16, image_size=64, head_width=16)
    text = open_clip.CLIPTextCfg(width=32, heads=2, layers=4)
    cam = ClipCam(open_clip.CLIP(32, vision, text, quick_gelu=True).eval())
    words = [f"{'very ' * (i % 7)}long label {i}" for i in range(48)]
    before = cam.model.positional_embedding.shape
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda word: cam.label_features([word], ENSEMBLE), words))
    assert cam.model.positional_embedding.shape == before
    cam._texts.clear()
    for word, features in zip(words, found, strict=True):
        torch.testing.assert_close(features, cam.label_features([word], ENSEMBLE))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"method": "similarity"}, lambda cam, f, t: cam.similar(f, t[:1], [0])),
        ({"contrast": "cosine"}, lambda cam, f, t: cam.explain(f, t[:1], [0], "cosine")[0]),
        ({"vocabulary": ("cat", "dog", "wall")}, lambda cam, f, t: cam.explain(f, t, [0])[0]),
    ],
)
def test_settings(clip, cam, cat, settings, expected):
    texts = cam.label_features(["cat", "dog", "wall"], PAPER)
    got = clip(**settings).segment(cat, [], "cat", steps=0).steps[0].query_soft
    np.testing.assert_allclose(got, expected(cam, cam.features(seen(cam, cat)), texts).numpy(), atol=1e-4)


def test_resolution_and_the_middle_square(clip, cam, cat):
    texts = cam.label_features(contrast_with("cat"), PAPER)
    for settings, pixels in (
        ({"side": 128}, seen(cam, cat, side=128)),
        ({"centre": True}, seen(cam, cat, to_centre)),
    ):
        got = clip(**settings).segment(cat, [], "cat", steps=0).steps[0].query_soft
        expected, _ = cam.explain(cam.features(pixels), texts, [0])
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected.numpy(), atol=1e-4)
    with pytest.raises(InputError, match="divisible by 32"):
        clip(side=100)


def test_an_ensemble_asks_with_every_template(clip, cam, cat):
    reading = clip().masker.read("cat", (), ensemble=True)
    torch.testing.assert_close(reading.words, cam.label_features(contrast_with("cat"), ENSEMBLE))


def test_what_is_cut_or_left_out_is_said(clip):
    said = clip().masker.read("cat " * 49, (), ensemble=False).warnings
    assert said == () or "its end was cut off" in said[0]
    assert "its end was cut off" in clip().masker.read("🐈" * 60, (), ensemble=False).warnings[0]
    assert "were left out" in clip(contrast="cosine").masker.read("cat", ["sofa"], ensemble=False).warnings[0]


def test_features_are_remembered_apart_from_the_networks(clip, cam, cat, monkeypatch):
    made, calls = clip(), []
    features = cam.features
    monkeypatch.setattr(cam, "features", lambda images: calls.append(len(images)) or features(images))
    made.segment(cat, [], "cat", steps=1)
    made.segment(cat, [], "dog", steps=1)
    assert calls == [1]


def test_unknown_settings_are_refused():
    with pytest.raises(InputError, match="gradcam, similarity"):
        ClipSettings(method="attention")
    with pytest.raises(InputError, match="softmax, cosine"):
        ClipSettings(contrast="sigmoid")
    for side in ("448", 0, -32, 448.0, True):
        with pytest.raises(InputError, match="side must be a whole number"):
            ClipSettings(side=side)
    for vocabulary in ("dog", None, [3]):
        with pytest.raises(InputError, match="list of words"):
            ClipSettings(vocabulary=vocabulary)
    assert ClipSettings(vocabulary=["dog"]).vocabulary == ("dog",)
