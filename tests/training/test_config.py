import pytest

from imrseg.errors import InputError
from imrseg.training import CONFIGS, get_config


def test_settings_change_a_config_each_in_its_own_kind():
    config = get_config("lite", ["cell=conv", "steps=2", "dice=0", "residual=true"], seed=5)
    assert (config.cell, config.steps, config.dice, config.residual, config.seed) == ("conv", 2, 0.0, True, 5)
    assert get_config("lite") == CONFIGS["lite"]


def test_the_papers_recipe():
    for name in ("imr-hsnet-resnet50", "imr-hsnet-vgg16", "imr-pfenet-resnet50"):
        config = CONFIGS[name]
        assert (config.optimizer, config.learning_rate, config.decay) == ("adam", 2e-4, "constant")
        assert (config.schedule, config.support_weight, config.dice) == ("same", 1.0, 0.0)
        assert (config.flip, config.jitter, config.views, config.negatives) == (0, 0, 1, 0)
    assert CONFIGS["imr-hsnet-resnet50"].side == 400


def test_later_steps_count_more_in_lite_alone():
    assert {name for name, config in CONFIGS.items() if config.schedule != "same"} == {"lite"}
    assert CONFIGS["lite"].schedule == "linear"


@pytest.mark.parametrize(
    ("name", "setting", "said"),
    [
        ("none", "steps=2", "Configs: lite"),
        ("lite", "steps", "KEY=VALUE"),
        ("lite", "colour=red", "Keys: network"),
        ("lite", "steps=two", "a whole number"),
        ("lite", "steps=0", "1 or more"),
        ("lite", "learning_rate=nan", "0 or more"),
        ("lite", "cell=gru", "group, conv, none"),
        ("lite", "schedule=cubic", "same, linear, none"),
        ("lite", "residual=yes", "true or false"),
        ("lite", "backbone=resnet50", "efficientnet-lite2"),
        ("lite", "side=400", "divisible by 32"),
        ("lite", "channels=7", "divisible by 16"),
        ("imr-hsnet-vgg16", "negatives=0.1", "negatives=0"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(name, setting, said):
    with pytest.raises(InputError, match=said):
        get_config(name, [setting])
