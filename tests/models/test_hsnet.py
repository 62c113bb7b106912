"""IMR-HSNet against what the authors' code computes, and its loader.

The fixtures (expected logits for weights that are a function of their names) are not part of the
project; without them beside the checkout, at ``../shared/parity`` or $IMRSEG_PARITY, those tests skip.
"""

import json
import os
import zlib
from math import prod, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch

from imrseg.errors import InputError, WeightsError
from imrseg.models import IMRHSNet
from imrseg.models.hsnet import authors_shapes

PARITY = Path(os.environ.get("IMRSEG_PARITY", Path(__file__).resolve().parents[3] / "shared" / "parity"))


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype("float32")


def weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor that is a function of its name and shape, as the fixtures' README defines it."""
    r = draw(name, shape)
    if name.endswith("num_batches_tracked"):
        r = np.zeros(shape, np.int64)
    elif name.endswith("running_var"):
        r = 1 + 0.1 * abs(r)
    elif name.endswith("running_mean") or name == "state":
        r = 0.1 * r
    elif len(shape) >= 2:
        r = r * sqrt(2 / prod(shape[1:])) if name.endswith("weight") else 0.02 * r
    else:
        r = 1 + 0.1 * r if name.endswith("weight") else 0.05 * r
    return torch.from_numpy(np.asarray(r))


def authors_weights(net: IMRHSNet) -> dict[str, torch.Tensor]:
    return {name: weight(name, tuple(shape)) for name, shape in authors_shapes(net).items()}


@pytest.fixture(scope="module", params=["resnet50", "vgg16"])
def net(request) -> IMRHSNet:
    net = IMRHSNet(request.param, authors_compatible=True).eval()
    net.load_authors_state_dict(authors_weights(net))
    return net


@pytest.mark.skipif(not PARITY.is_dir(), reason="the authors' outputs are not beside the checkout")
def test_their_state_dict_has_our_names_and_shapes(net):
    listed = json.loads((PARITY / f"authors_state_dict_{net.name}.json").read_text())
    theirs = {name: tuple(shape) for name, shape in dict(listed).items() if not net.backbone.unused(name)}
    assert theirs == {name: tuple(shape) for name, shape in authors_shapes(net).items()}


@pytest.mark.skipif(not PARITY.is_dir(), reason="the authors' outputs are not beside the checkout")
def test_logits_equal_the_authors(net):
    expected = np.load(PARITY / f"imr_hsnet_{net.name}_case-a.npz")
    query, support = (torch.from_numpy(draw(f"case-a/{k}_img", (1, 3, 400, 400))) for k in ("query", "support"))
    cams = [draw(f"case-a/{k}_cam", (1, 50, 50)).clip(0) for k in ("query", "support")]
    with torch.inference_mode():
        steps = net(query, support, *(torch.from_numpy(c / c.max())[None] for c in cams), steps=3)
    assert len(steps) == 3
    for n, step in enumerate(steps, 1):
        for name, logits in (("query", step.query_logits), ("support", step.support_logits)):
            wanted = expected[f"{name}_logits_stage{n}"]
            assert np.abs(logits[0].numpy() - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_names_may_carry_module_and_a_classifier(net):
    weights = authors_weights(net)
    wrapped = {f"module.{name}": tensor for name, tensor in weights.items()}
    wrapped["module.backbone.fc.weight"] = torch.zeros(1)
    net.load_authors_state_dict(wrapped)
    with pytest.raises(WeightsError, match=r"missing convz1\.bias"):
        net.load_authors_state_dict({n: t for n, t in weights.items() if n != "convz1.bias"})
    with pytest.raises(WeightsError, match="unexpected extra"):
        net.load_authors_state_dict({**weights, "extra": torch.zeros(1)})


def test_weights_of_another_backbone_are_refused(net):
    other = IMRHSNet("vgg16" if net.name == "resnet50" else "resnet50")
    with pytest.raises(WeightsError, match=f"IMR-HSNet on {other.name}"):
        other.load_authors_state_dict(authors_weights(net))


def test_other_sizes_and_backbones_are_refused(net):
    with pytest.raises(InputError, match="400 x 400"):
        net(torch.zeros(1, 3, 224, 224), torch.zeros(1, 3, 224, 224), *[torch.zeros(1, 1, 50, 50)] * 2)
    with pytest.raises(InputError, match="resnet50, resnet101, vgg16"):
        IMRHSNet("alexnet")
