"""The paper's networks behind the Segmenter, with weights drawn at random: how things go together, not how good they are."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from imrseg import Segmenter, WeightsError, weights
from imrseg.images import to_size
from imrseg.models import IMRHSNet
from imrseg.models.pfenet import IMRPFENet
from imrseg.networks import load_network
from imrseg.presets import get_preset

NAME = "imr-hsnet-vgg16-coco-0.safetensors"


def draw(net: torch.nn.Module) -> torch.nn.Module:
    """Fill a network that came without weights."""
    generator = torch.Generator().manual_seed(0)
    for tensor in net.state_dict().values():
        if tensor.ndim > 1:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5)
        elif tensor.is_floating_point():
            tensor.fill_(0.1)
    return net.eval()


def image(pixels: np.ndarray, side: int) -> torch.Tensor:
    """A picture as ImageNet's networks take it, (1, 3, side, side)."""
    import cv2

    how = cv2.INTER_AREA if pixels.shape[0] * pixels.shape[1] > side * side else cv2.INTER_LINEAR
    square = torch.from_numpy(cv2.resize(pixels, (side, side), interpolation=how)).float() / 255
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((square - mean) / deviation).permute(2, 0, 1)[None]


@pytest.fixture(scope="module")
def net() -> IMRHSNet:
    return draw(IMRHSNet("vgg16", authors_compatible=True))


@pytest.fixture(scope="module")
def folder(net, tmp_path_factory):
    """The user's cache, with IMR-HSNet's weights in it."""
    cache = tmp_path_factory.mktemp("cache")
    (cache / "imrseg").mkdir()
    header = {"network": {"name": "imr-hsnet", "backbone": "vgg16", "authors_compatible": True}}
    save_file(net.state_dict(), cache / "imrseg" / NAME, {"imrseg": json.dumps(header)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        yield cache / "imrseg"


@pytest.fixture(scope="module")
def hsnet(folder) -> Segmenter:
    """Lite's coarse masks feed IMR-HSNet."""
    return Segmenter.from_preset("imr-hsnet-vgg16", "cpu", coarse="lite")


def test_lites_coarse_masks_feed_imr_hsnet(hsnet, segmenter, net, cat, cup):
    result = hsnet.segment(cat, [cup], "cat", steps=2)
    lite = segmenter.segment(cat, [cup], "cat", steps=0)
    np.testing.assert_array_equal(result.steps[0].query_soft, lite.steps[0].query_soft)
    assert result.confidence == pytest.approx(lite.confidence)
    masks = [to_size(m, (50, 50)) for m in (lite.steps[0].query_soft[0], lite.steps[0].support_soft[0])]
    with torch.inference_mode():
        direct = net(image(cat, 400), image(cup, 400), *(torch.from_numpy(m)[None, None] for m in masks), steps=2)
    for step, wanted in zip(result.steps[1:], direct, strict=True):
        expected = wanted.query_logits.softmax(1)[0, 1].numpy()
        np.testing.assert_allclose(step.query_soft[0], expected, atol=1e-3)
    assert hsnet.hashes.keys() == {NAME, "lite.safetensors", "lite-text.safetensors"}


def test_supports_are_refined_pair_by_pair_from_one_pass_over_the_query(hsnet, cat, cup, monkeypatch):
    single = hsnet.segment(cup, [cat], "cup", steps=1)
    hsnet._remembered.clear()
    seen = []
    encode = hsnet.network.encoder.encode
    object.__setattr__(hsnet.network.encoder, "encode", lambda images: seen.append(len(images)) or encode(images))
    try:
        both = hsnet.segment(cup, [cat[:, ::-1].copy(), cat], "cup", steps=1)
    finally:
        object.__setattr__(hsnet.network.encoder, "encode", encode)
    assert sum(seen) == 3  # one pass for each picture, the query's too
    np.testing.assert_allclose(both.steps[1].query_soft[1], single.steps[1].query_soft[0], atol=1e-4)
    assert both.steps[1].how == "vote"


def test_pairs_that_are_refined_together_do_not_mix(hsnet, cat, cup):
    supports = [cat[:, ::-1].copy(), cat]
    one_by_one = hsnet.segment(cup, supports, "cup", steps=1)
    together = Segmenter(hsnet.preset, hsnet.masker, replace(hsnet.network, together=2), hsnet.device)
    result = together.segment(cup, supports, "cup", steps=1)
    np.testing.assert_allclose(result.steps[1].query_soft, one_by_one.steps[1].query_soft, atol=1e-4)
    np.testing.assert_allclose(result.steps[1].support_soft, one_by_one.steps[1].support_soft, atol=1e-4)


def test_the_papers_networks_have_no_consensus(hsnet, cat, cup):
    on, off = (hsnet.segment(cat, [cup], "cat", steps=1, consensus=c) for c in ("on", "off"))
    np.testing.assert_array_equal(on.steps[1].query_soft, off.steps[1].query_soft)
    assert on.options.consensus == "off"


def test_zero_shot(hsnet, cup):
    alone, itself = hsnet.segment(cup, [], "cup", steps=1), hsnet.segment(cup, [cup], "cup", steps=1)
    np.testing.assert_allclose(alone.steps[1].query_soft, itself.steps[1].query_soft, atol=1e-5)
    assert alone.steps[1].support_masks == []


def test_steps_are_those_of_the_data_set(hsnet, folder):
    assert hsnet.preset.steps == 3
    (folder / NAME.replace("coco-0", "pascal-2")).symlink_to(folder / NAME)
    assert Segmenter.from_preset("imr-hsnet-vgg16@pascal-2", "cpu", coarse="lite").preset.steps == 2


def test_a_preset_without_its_weights_says_what_to_do(folder):
    with pytest.raises(WeightsError, match=r"imr-hsnet-resnet50-coco-0\.safetensors"):
        Segmenter.from_preset("imr-hsnet-resnet50", "cpu", coarse="lite")


def test_an_authors_file_is_taken_as_it_is(net, folder, tmp_path, hsnet, cup):
    theirs = {f"module.{name}": tensor for name, tensor in to_authors(net).items()}
    torch.save(theirs, tmp_path / "best_model.pt")
    loaded = Segmenter.from_preset("imr-hsnet-vgg16", "cpu", tmp_path / "best_model.pt", coarse="lite")
    a, b = (s.segment(cup, [], "cup", steps=1).steps[1].query_soft for s in (hsnet, loaded))
    np.testing.assert_array_equal(a, b)


def to_authors(net: IMRHSNet) -> dict[str, torch.Tensor]:
    """Our tensors under the released code's names: the loader, backwards."""
    from imrseg.models.hsnet import authors_shapes, from_authors

    shapes = authors_shapes(net)
    starts, total = {}, 0
    for name, shape in shapes.items():
        starts[name], total = total, total + shape.numel()
    numbers = {n: torch.arange(starts[n], starts[n] + s.numel(), dtype=torch.int64).view(s) for n, s in shapes.items()}
    flat = torch.zeros(total)
    for ours, places in from_authors(numbers, net).items():
        flat[places.flatten()] = net.state_dict()[ours].flatten().float()
    return {name: flat[numbers[name]] for name in shapes}


def test_another_network_is_refused(folder, tmp_path, checkpoint):
    for backbone, file, said in (
        ("resnet50", folder / NAME, "vgg16"),
        ("vgg16", checkpoint, "does not hold IMR-HSNet"),
    ):
        with pytest.raises(WeightsError, match=said):
            Segmenter.from_preset(f"imr-hsnet-{backbone}", "cpu", file, coarse="lite")
    with pytest.raises(WeightsError, match="does not hold the lite network"):
        Segmenter.from_preset("lite", "cpu", folder / NAME)
    header = {"network": {"name": "imr-hsnet", "backbone": "vgg16", "colour": "red"}}
    save_file({"a": torch.zeros(1)}, tmp_path / "odd.safetensors", {"imrseg": json.dumps(header)})
    with pytest.raises(WeightsError, match="cannot be built"):
        Segmenter.from_preset("imr-hsnet-vgg16", "cpu", tmp_path / "odd.safetensors", coarse="lite")
    assert weights.find(checkpoint) == checkpoint


# IMR-PFENet

PFENET = get_preset("imr-pfenet-resnet50")


@pytest.fixture(scope="module")
def pfenet() -> IMRPFENet:
    torch.manual_seed(0)
    net = IMRPFENet().eval().requires_grad_(False)
    net.refiner.head.mix[2].weight.mul_(20)  # masks that are far from even
    return net


@pytest.fixture(scope="module")
def pfenet_file(pfenet, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pfenet") / "imr-pfenet-resnet50.safetensors"
    header = {"network": {"name": "imr-pfenet", **pfenet.settings}}
    save_file(pfenet.state_dict(), path, {"imrseg": json.dumps(header)})
    return path


def test_lites_coarse_masks_feed_imr_pfenet(pfenet, pfenet_file, segmenter, cat, cup):
    paper = Segmenter.from_preset("imr-pfenet-resnet50", "cpu", pfenet_file, coarse="lite")
    result = paper.segment(cat, [cup], "cat", steps=1)
    coarse = segmenter.segment(cat, [cup], "cat", steps=0).steps[0]
    masks = [to_size(m, (120, 120)) for m in (coarse.query_soft[0], coarse.support_soft[0])]
    with torch.inference_mode():
        direct = pfenet(image(cat, 473), image(cup, 473), *(torch.from_numpy(m)[None, None] for m in masks), steps=1)
    expected = direct[0].query_masks[0, 0].numpy(), direct[0].support_masks[0, 0].numpy()
    assert all(np.ptp(mask) > 0.2 for mask in expected)
    np.testing.assert_allclose(result.steps[1].query_soft[0], expected[0], atol=1e-3)
    np.testing.assert_allclose(result.steps[1].support_soft[0], expected[1], atol=1e-3)
    assert result.mask.shape == cat.shape[:2]


def test_imr_pfenet_takes_its_own_file_alone(pfenet_file, folder, checkpoint):
    cpu = torch.device("cpu")
    for file in (checkpoint, folder / NAME):
        with pytest.raises(WeightsError, match="does not hold IMR-PFENet"):
            load_network(PFENET, file, cpu)
    assert "fits its network, imr-pfenet" in "\n".join(weights.describe(pfenet_file))
    with pytest.raises(WeightsError, match="holds IMR-PFENet on resnet50; this preset runs on resnet101"):
        load_network(replace(PFENET, backbone="resnet101"), pfenet_file, cpu)
    with pytest.raises(WeightsError, match="does not hold IMR-HSNet"):
        Segmenter.from_preset("imr-hsnet-resnet50", "cpu", pfenet_file, coarse="lite")


def test_a_side_that_the_network_does_not_take_is_known_before_any_picture():
    faithful, released = (IMRHSNet("vgg16", authors_compatible=compatible) for compatible in (False, True))
    assert [faithful.takes(side) for side in (400, 320, 100)] == [True, True, False]
    assert [released.takes(side) for side in (400, 320, 100)] == [True, False, False]
