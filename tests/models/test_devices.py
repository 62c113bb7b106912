"""The networks on a GPU that is only pretended: tensors without numbers, which know their device.

Tensors of two devices that meet raise there as on a real one, and so does asking for a number, which would wait for
the device between steps.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from imrseg.coarse.lite import LiteCam
from imrseg.models import IMRHSNet, lite_refiner
from imrseg.models.consensus import Consensus
from imrseg.models.efficientnet import EFFICIENTNET_LITE2, EfficientNetLite
from imrseg.models.pfenet import IMRPFENet
from imrseg.models.refiner import tensors
from imrseg.networks import LITE_TRAITS

GPU = torch.device("cuda", 0)
PAIRS = 2


def moved(module: nn.Module) -> None:
    """Puts a module on the pretended GPU; ``Module.to`` cannot."""
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, t in held.items():
                if t is None:
                    continue
                there = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=GPU)
                held[name] = nn.Parameter(there, requires_grad=False) if isinstance(t, nn.Parameter) else there


def drawn(*shape: int) -> Tensor:
    return torch.rand(*shape, device=GPU)


def lite() -> tuple[nn.Module, nn.Module, Callable[[], Any], int]:
    refiner = lite_refiner()
    sizes = {name: 128 // int(name[1:].rstrip("abcd")) for name in EFFICIENTNET_LITE2}
    features = lambda: {n: drawn(PAIRS, c, sizes[n], sizes[n]) for n, c in EFFICIENTNET_LITE2.items()}  # noqa: E731
    return refiner, refiner, features, 8


def hsnet() -> tuple[nn.Module, nn.Module, Callable[[], Any], int]:
    net = IMRHSNet("resnet50", authors_compatible=True).fuse()
    return net, net.refiner, lambda: net.backbone(drawn(PAIRS, 3, 400, 400)), 50


def pfenet() -> tuple[nn.Module, nn.Module, Callable[[], Any], int]:
    net = IMRPFENet("resnet50").fuse()
    return net, net.refiner, lambda: net.features(drawn(PAIRS, 3, 129, 129)), 17


@pytest.mark.parametrize("build", [lite, hsnet, pfenet], ids=lambda build: build.__name__)
@pytest.mark.parametrize("precision", [torch.float32, torch.float16], ids=str)
@pytest.mark.filterwarnings("ignore:CUDA is not available")  # autocast, on a device that is not there
def test_steps_stay_on_the_gpu_and_ask_it_for_nothing(build, precision):
    whole, refiner, features, cells = build()
    whole.eval().requires_grad_(False)
    if precision != torch.float32:
        refiner.lower(precision)
    with FakeTensorMode(), torch.no_grad():
        moved(whole)
        state = refiner.start(features(), features(), *drawn(2, PAIRS, 1, cells, cells))
        for _ in range(2):
            state = refiner.step(state)
        assert {t.device for t in tensors(state)} == {GPU}
        assert (len(state.masks), state.masks.dtype, state.logits.dtype) == (2 * PAIRS, torch.float32, torch.float32)


def test_lites_first_stage_and_consensus_stay_on_the_gpu():
    encoder = EfficientNetLite().eval().requires_grad_(False)
    classes = 1000 + 3
    cam = LiteCam(torch.zeros(classes, encoder.classifier.in_features), torch.zeros(classes))
    with FakeTensorMode(), torch.no_grad():
        moved(encoder)
        moved(cam)
        pictures = [encoder(drawn(1, 3, 128, 128)) for _ in range(PAIRS)]
        head = torch.cat([p["head"] for p in pictures])
        masks, evidence = cam(head, drawn(PAIRS, classes), drawn(1, classes))
        found = Consensus.of([[p[name] for name in LITE_TRAITS] for p in pictures])(masks)
        assert {masks.device, evidence.device, found.device} == {GPU}


def test_a_pretended_gpu_would_show_both():
    with FakeTensorMode():
        with pytest.raises(RuntimeError, match="at least two devices"):
            drawn(3) + torch.rand(3)
        with pytest.raises(DataDependentOutputException):
            drawn(3).sum().item()
