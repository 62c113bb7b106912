import pytest

pytest.importorskip("gradio")

from imrseg import InputError, Segmenter, WeightsError, weights
from imrseg.app.handlers import Handlers
from imrseg.app.models import OWN, Models
from imrseg.images import open_picture
from imrseg.run import Options


@pytest.fixture
def models(segmenter, monkeypatch) -> Models:
    """Of a server that has nothing but what ships."""
    monkeypatch.setattr(weights, "have", lambda name: name.startswith("lite"))
    return Models(segmenter)


def test_the_first_is_there_and_is_shared(models, segmenter):
    assert models.get("lite", OWN) is models.get("lite", "lite") is segmenter
    assert models.missing("lite", OWN) == ""


def test_missing_weights_are_shown_in_the_menu(models):
    shown = {name: words for words, name in models.presets()}
    assert shown["lite"] == "lite"
    assert shown["imr-hsnet-resnet50"] == "imr-hsnet-resnet50 (weights missing)"
    note = Handlers(None, models).pick_preset("imr-hsnet-resnet50", OWN)
    assert "imr-hsnet-resnet50-coco-0.safetensors" in note
    assert "RN50.pt" in note
    assert Handlers(None, models).pick_preset("lite", OWN) == ""
    assert "RN50.pt" in Handlers(None, models).pick_preset("lite", "clip")


def test_nothing_takes_the_place_of_what_is_missing(models):
    for preset, coarse in (("imr-hsnet-vgg16", OWN), ("imr-hsnet-vgg16", "lite"), ("lite", "clip")):
        what = "lite cannot run with coarse masks by clip yet" if coarse == "clip" else f"{preset} cannot run yet"
        with pytest.raises(WeightsError, match=what):
            models.get(preset, coarse)
    with pytest.raises(InputError, match="no preset"):
        models.get("huge", OWN)


def test_a_combination_is_loaded_once(segmenter, monkeypatch):
    made = []
    monkeypatch.setattr(weights, "have", lambda name: True)
    monkeypatch.setattr(Segmenter, "from_preset", lambda *args, **kw: made.append((args, kw)) or object())
    models = Models(segmenter)
    assert models.get("imr-hsnet-vgg16", "lite") is models.get("imr-hsnet-vgg16", "lite")
    assert made == [(("imr-hsnet-vgg16", "cpu"), {"coarse": "lite"})]


def test_a_run_that_is_stopped_is_kept_too(models, cat):
    steps = models.begin(("lite", OWN, ""), open_picture(cat), [], "cat", Options(), 3)
    run = next(steps)
    steps.close()
    assert list(models._going.values()) == [run]
