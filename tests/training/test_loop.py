"""The loop: any network learns by it, can go on, stops early, and survives a full disk."""

import builtins
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from imrseg import ClipSettings, Segmenter, weights
from imrseg.data.features import CachedView
from imrseg.errors import InputError
from imrseg.networks import load_network
from imrseg.precision import lacks_bfloat16
from imrseg.presets import PRESETS
from imrseg.training import CONFIGS, gather, loop, train, trainees

TINY = replace(CONFIGS["lite"], iterations=2, batch=2, views=2)
NO_BFLOAT16 = lacks_bfloat16(torch.device("cpu"))
SMALL = {"iterations": 2, "batch": 2, "held_out": 0.0, "steps": 2}


@pytest.fixture
def sources(pictures):
    return gather("folder", pictures, None, "all", [])


@pytest.fixture
def untrained_backbones(monkeypatch):
    monkeypatch.setattr(trainees, "load_imagenet", lambda backbone, name: None)


class Stopped(Exception):
    pass


def stop_after(monkeypatch, iterations: int) -> None:
    """Break off a run in the iteration behind ``iterations`` others."""
    whole, calls = loop.backward, []

    def some(*args):
        if len(calls) == iterations:
            raise Stopped
        calls.append(1)
        return whole(*args)

    monkeypatch.setattr(loop, "backward", some)


def test_a_run_gives_a_checkpoint_that_segments(sources, pictures, cache, tmp_path):
    checkpoint = train(*sources, TINY, tmp_path, cache)
    picture = next((pictures / "mug/images").iterdir())
    result = Segmenter.from_preset("lite", "cpu", checkpoint=checkpoint).segment(picture, [picture], "mug")
    assert result.mask.shape == (90, 120)
    assert not list(tmp_path.glob("*.part"))
    header = weights.header(checkpoint)
    assert header["config"]["seed"] == 0
    assert header["classes"] == ["mug", "person"]
    assert weights.describe(checkpoint)


def test_without_bfloat16_training_takes_float32_and_says_so(sources, cache, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("imrseg.training.lacks_bfloat16", lambda device: True)
    checkpoint = train(*sources, TINY, tmp_path / "careful", cache)
    assert "bfloat16" in caplog.text
    assert weights.header(checkpoint)["config"]["precision"] == "float32"
    exact = train(*sources, replace(TINY, precision="float32"), tmp_path / "exact", cache)
    assert all(torch.equal(tensor, load_file(exact)[name]) for name, tensor in load_file(checkpoint).items())


@pytest.mark.parametrize(
    "settings",
    [
        {"cell": "conv", "schedule": "linear", "support_weight": 0.5},
        {"cell": "none", "precision": "float32", "optimizer": "adam", "clip": 0.0},
        {"neck": "pfenet", "steps": 1},
        {"neck": "hsnet", "cell": "none", "masking": "features", "residual": False, "steps": 1, "start": "true"},
        {"neck": "hsnet", "schedule": "none"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_ablations_train_and_are_read_back(sources, pictures, cache, tmp_path, settings):
    config = replace(TINY, iterations=1, **settings)
    checkpoint = train(*sources, config, tmp_path, cache)
    segmenter = Segmenter.from_preset("lite", "cpu", checkpoint=checkpoint)
    picture = next((pictures / "person/images").iterdir())
    assert len(segmenter.segment(picture, [picture], "person", steps=2).steps) == 3
    assert weights.header(checkpoint)["network"]["cell"] == config.cell


@pytest.mark.parametrize(
    ("precision", "side"),
    # PyTorch's gradients of a bfloat16 convolution with a stride are wrong on a processor where it sees a single
    # position, as in the squeezing blocks at 64.
    [
        ("float32", 64),
        pytest.param("bfloat16", 224, marks=pytest.mark.skipif(NO_BFLOAT16, reason="a processor without bfloat16")),
    ],
)
def test_imr_hsnet_trains_on_masks_made_once(sources, tmp_path, untrained_backbones, segmenter, precision, side):
    config = replace(CONFIGS["imr-hsnet-vgg16"], side=side, precision=precision, **SMALL | {"iterations": 1})
    before = trainees.new_trainee(config, torch.device("cpu")).whole.state_dict()
    checkpoint = train(*sources, config, tmp_path, tmp_path / "masks", masker=segmenter.masker)
    (stored,) = (tmp_path / "masks").glob("coarse-*.npy")
    made = stored.stat().st_mtime_ns
    net = load_network(PRESETS["imr-hsnet-vgg16"], checkpoint, torch.device("cpu"))
    after = {name.removeprefix("refiner."): t for name, t in load_file(checkpoint).items() if "backbone" not in name}
    moved = [n for n, t in net.refiner.state_dict().items() if not torch.equal(t, before[f"refiner.{n}"])]
    assert len(moved) > 0.9 * len(after)
    assert all(torch.equal(after[name], t) for name, t in net.refiner.state_dict().items())
    train(*sources, config, tmp_path / "again", tmp_path / "masks", masker=segmenter.masker)
    assert stored.stat().st_mtime_ns == made


def test_hsnet_itself_trains_and_is_read_back(sources, tmp_path, untrained_backbones):
    config = replace(CONFIGS["hsnet-resnet50-pretrained"], backbone="vgg16", side=64, **SMALL | {"steps": 1})
    checkpoint = train(*sources, config, tmp_path, tmp_path)
    net = load_network(PRESETS["imr-hsnet-vgg16"], checkpoint, torch.device("cpu"))
    assert not net.refiner.head.residual
    assert weights.header(checkpoint)["network"]["cell"] == "none"


def test_imr_pfenet_trains(sources, tmp_path, untrained_backbones, segmenter):
    config = replace(CONFIGS["imr-pfenet-resnet50"], side=33, **SMALL)
    checkpoint = train(*sources, config, tmp_path, tmp_path, masker=segmenter.masker)
    assert weights.header(checkpoint)["network"]["name"] == "imr-pfenet"


def test_networks_need_a_masker_and_known_labels(sources, cache, tmp_path, segmenter):
    with pytest.raises(InputError, match="coarse masker"):
        train(*sources, CONFIGS["imr-hsnet-vgg16"], tmp_path, cache)
    with pytest.raises(InputError, match="negatives=0"):
        train(*sources, TINY, tmp_path, cache, masker=segmenter.masker)


@pytest.mark.parametrize("name", ["lite", "imr-pfenet-resnet50"])  # the second has dropout
def test_a_resumed_run_ends_bit_for_bit_like_an_unbroken_one(
    sources, cache, tmp_path, monkeypatch, untrained_backbones, segmenter, name
):
    config = TINY if name == "lite" else replace(CONFIGS[name], side=33, **SMALL)
    masker = None if name == "lite" else segmenter.masker
    unbroken = load_file(train(*sources, config, tmp_path / "a", cache, masker=masker))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "SAVE_EVERY", 1)
        stop_after(patch, 1)
        with pytest.raises(Stopped):
            train(*sources, config, tmp_path / "b", cache, masker=masker)
    resumed = load_file(train(*sources, config, tmp_path / "b", cache, resume=True, masker=masker))
    assert unbroken.keys() == resumed.keys()
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)
    with pytest.raises(InputError, match=r"another config \(steps="):
        train(*sources, replace(config, steps=1), tmp_path / "b", cache, resume=True, masker=masker)


def test_a_run_does_not_go_on_with_other_data(sources, pictures, cache, tmp_path):
    train(*sources, TINY, tmp_path, cache)
    kept = (tmp_path / "state.pt").read_bytes()
    (main,), seen = sources
    with pytest.raises(InputError, match="belongs to other data"):
        train([[e for e in main if e.image.stem[-1] != "3"]], seen, TINY, tmp_path, cache, resume=True)
    assert (tmp_path / "state.pt").read_bytes() == kept


def test_a_state_of_before_that_does_not_say_its_data_goes_on(sources, cache, tmp_path):
    ended = load_file(train(*sources, TINY, tmp_path, cache))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    del state["data"]
    torch.save(state, tmp_path / "state.pt")
    again = load_file(train(*sources, TINY, tmp_path, cache, resume=True))
    assert all(torch.equal(again[name], t) for name, t in ended.items())


@pytest.mark.parametrize("content", [b"", b"text", "cut"], ids=["empty", "text", "cut"])
def test_what_is_no_state_is_refused(sources, cache, tmp_path, content):
    path = tmp_path / "state.pt"
    if content == "cut":
        torch.save({"config": {}}, path)
        content = path.read_bytes()[:200]
    path.write_bytes(content)
    with pytest.raises(InputError, match="not the state of a training"):
        train(*sources, TINY, tmp_path, cache, resume=True)
    assert path.read_bytes() == content


def test_pictures_are_shown_at_the_size_that_was_trained_at(sources, pictures, tmp_path, untrained_backbones):
    small = train(*sources, replace(TINY, iterations=1, side=64), tmp_path / "lite", tmp_path)
    segmenter = Segmenter.from_preset("lite", "cpu", checkpoint=small)
    assert (segmenter.network.encoder.side, segmenter.masker.encoder.side) == (64, 64)
    picture = next((pictures / "person/images").iterdir())
    assert segmenter.segment(picture, [picture], "person", steps=1).steps[1].query_soft.shape == (1, 16, 16)
    config = replace(CONFIGS["hsnet-resnet50-pretrained"], backbone="resnet101", side=64, **SMALL | {"iterations": 1})
    deep = train(*sources, config, tmp_path / "deep", tmp_path)
    segmenter = Segmenter.from_preset("imr-hsnet-resnet50", "cpu", checkpoint=deep, coarse="lite")  # no preset has it
    assert (segmenter.preset.backbone, segmenter.network.encoder.side) == ("resnet101", 64)
    assert segmenter.segment(picture, [picture], "person", steps=1).mask.shape == (90, 120)


def test_a_full_disk_leaves_the_last_good_state(sources, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY", 1)
    real, count = builtins.open, []

    def fill(path, *args, **kwargs):
        if Path(path).name == "state.pt.part":
            count.append(1)
            path = "/dev/full" if len(count) == 2 else path  # every write to it finds no space left
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", lambda self, *args, **kwargs: fill(self, *args, **kwargs))
    with pytest.raises(InputError, match=r"No space left.*last good one.*--resume"):
        train(*sources, TINY, tmp_path, cache)
    monkeypatch.undo()
    assert torch.load(tmp_path / "state.pt", weights_only=True)["iteration"] == 1
    assert not list(tmp_path.glob("*.part"))
    assert train(*sources, TINY, tmp_path, cache, resume=True).is_file()


def test_features_that_do_not_fit_on_the_disk_are_refused_before(pictures, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10**6})
    monkeypatch.setattr("imrseg.data.features.shutil.disk_usage", lambda path: usage)
    images = sorted((pictures / "mug/images").iterdir())
    with pytest.raises(InputError, match=r"Features of 4 pictures take .* --cache"):
        CachedView(images, 0, 320, tmp_path)


def test_features_of_another_backbone_are_not_taken_for_ones_own(pictures, tmp_path, monkeypatch):
    images = sorted((pictures / "mug/images").iterdir())
    with monkeypatch.context() as before:
        before.setattr("imrseg.data.features.BACKBONE", "another")
        other = CachedView(images, 0, 64, tmp_path).folder
    made = CachedView(images, 0, 64, tmp_path).folder
    assert made != other
    again = (made / "head.npy").stat().st_mtime_ns
    assert CachedView(images, 0, 64, tmp_path).folder == made
    assert (made / "head.npy").stat().st_mtime_ns == again  # found, not made anew


def test_training_stops_where_pictures_kept_back_gain_no_more(sources, cache, tmp_path, monkeypatch):
    scores = iter([0.3, 0.5, 0.4, 0.45, 0.9])
    kept = []

    def scored(forward, *_):
        kept.append({name: t.clone() for name, t in forward.refiner.state_dict().items()})
        return next(scores)

    monkeypatch.setattr(loop, "validate", scored)
    config = replace(TINY, iterations=9, held_out=0.6, validate_every=1, patience=2, seed=1)
    checkpoint = train(*sources, config, tmp_path, cache)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["validation"] for row in rows] == [0.3, 0.5, 0.4, 0.45]
    chosen = load_file(checkpoint)
    assert all(torch.equal(chosen[name], t) for name, t in kept[1].items())


def test_a_perfect_network_validates_at_one(sources, cache):
    from imrseg.training.data import TrainingSet
    from imrseg.training.starts import TrueMasks

    config = replace(TINY, held_out=0.6, seed=1)
    training = TrainingSet(*sources, config, config.side, cache)

    class Perfect(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = torch.nn.Parameter(torch.ones(1))

        def forward(self, batch, steps):
            margin = 20 * (batch.target[:, 0] - 0.49)
            return [torch.stack([-margin, margin * sign], 1) for sign in (-1, 1)]

    assert loop.validate(Perfect(), training, TrueMasks(training), config) == 1.0


def test_tensorboard_is_asked_for_by_name_where_it_is_missing(sources, cache, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"pip install -e '.\[train\]'"):
        train(*sources, TINY, tmp_path, cache, tensorboard=True)


def test_tensorboard_gets_each_steps_loss(sources, cache, tmp_path):
    pytest.importorskip("torch.utils.tensorboard", exc_type=ImportError)
    train(*sources, replace(TINY, iterations=1), tmp_path, cache, tensorboard=True)
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss/step3" in events.read_bytes()


def test_a_gradient_that_is_not_finite_ends_training(sources, cache, tmp_path, monkeypatch):
    whole = loop.backward

    def broken(model, batch, config):
        losses = whole(model, batch, config)
        next(p for p in model.parameters() if p.grad is not None).grad.fill_(float("nan"))
        return losses

    monkeypatch.setattr(loop, "backward", broken)
    with pytest.raises(InputError, match=r"iteration 0 is not finite.*precision=float32"):
        train(*sources, TINY, tmp_path, cache)


def test_the_learning_rate_warms_up_and_decays():
    config = replace(TINY, iterations=100, warmup=10, learning_rate=1.0)
    rates = [loop.learning_rate(config, i) for i in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9]
    assert rates[-1] == pytest.approx(0.02, abs=0.01)
    assert loop.learning_rate(replace(config, decay="constant"), 99) == 1.0


@pytest.mark.parametrize(
    ("name", "side", "said"),
    [
        ("imr-hsnet-vgg16", 200, "no pictures of side 200. The nearest: 192, 224"),
        ("imr-pfenet-resnet50", 400, "no pictures of side 400. The nearest: 393, 401"),
        ("hsnet-resnet50-pretrained", 2080, "from 32 to 2048 pixels"),
        ("lite", 2080, "from 32 to 2048 pixels"),
    ],
)
def test_a_side_that_no_checkpoint_may_have_is_refused_before(untrained_backbones, name, side, said):
    with pytest.raises(InputError, match=said):
        trainees.new_trainee(replace(CONFIGS[name], side=side), torch.device("cpu"))


def test_a_state_of_before_that_says_less_of_its_data_goes_on(sources, cache, tmp_path):
    train(*sources, TINY, tmp_path, cache)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert {*state["data"]} == {"digest", "order", "coarse", "origin"}
    del state["data"]["order"], state["data"]["origin"]
    torch.save(state, tmp_path / "state.pt")
    train(*sources, TINY, tmp_path, cache, resume=True)


def test_imr_pfenet_on_resnet101_is_read_back(sources, tmp_path, untrained_backbones, segmenter):
    config = replace(CONFIGS["imr-pfenet-resnet50"], backbone="resnet101", side=33, **SMALL | {"iterations": 1})
    checkpoint = train(*sources, config, tmp_path, tmp_path, masker=segmenter.masker)
    deep = Segmenter.from_preset("imr-pfenet-resnet50", "cpu", checkpoint=checkpoint, coarse="lite")
    assert deep.preset.backbone == "resnet101"


def test_true_masks_need_no_coarse_masker(sources, tmp_path, segmenter):
    with pytest.raises(InputError, match="Leave the coarse masker out"):
        train(*sources, CONFIGS["hsnet-resnet50-pretrained"], tmp_path, tmp_path, masker=segmenter.masker)


def test_a_run_does_not_go_on_with_other_coarse_masks(sources, tmp_path, untrained_backbones, segmenter, monkeypatch):
    config = replace(CONFIGS["imr-pfenet-resnet50"], side=33, **SMALL | {"iterations": 1})
    train(*sources, config, tmp_path, tmp_path, masker=segmenter.masker)
    monkeypatch.setattr(segmenter.masker, "settings", ClipSettings(method="similarity"))
    with pytest.raises(InputError, match="coarse masks"):
        train(*sources, config, tmp_path, tmp_path, resume=True, masker=segmenter.masker)


def test_processes_that_find_other_states_do_not_go_on(sources, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.distributed, "gathered", lambda first: [first, 4])
    with pytest.raises(InputError, match="a folder that all machines share"):
        train(*sources, TINY, tmp_path, cache)
