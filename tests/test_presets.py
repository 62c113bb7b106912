import pytest

import imrseg
from imrseg.postprocess import AGGREGATES
from imrseg.presets import PRESETS, get_preset


def test_every_row_is_usable():
    assert imrseg.list_presets() == list(PRESETS)
    assert "lite" in PRESETS
    for name, preset in PRESETS.items():
        assert preset.name == name
        assert preset.aggregate in AGGREGATES
        assert preset.steps >= 1
        assert preset.licence


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(imrseg.InputError, match=r"no preset “large”\. Presets: lite"):
        get_preset("large")


def test_only_the_authors_weights_come_by_data_set_and_fold():
    assert get_preset("imr-hsnet-resnet50@pascal-2").checkpoint == "imr-hsnet-resnet50-pascal-2.safetensors"
    assert get_preset("imr-pfenet-resnet50").checkpoint == "imr-pfenet-resnet50.safetensors"
    with pytest.raises(imrseg.InputError, match="no preset “imr-pfenet-resnet50@pascal-2”"):
        get_preset("imr-pfenet-resnet50@pascal-2")


def test_errors_are_what_callers_expect():
    assert issubclass(imrseg.InputError, ValueError)
    assert issubclass(imrseg.WeightsError, RuntimeError)
