"""Graphed steps on a processor, where a stand-in replays by computing once more into the same memory."""

from dataclasses import replace

import pytest
import torch

from imrseg.models import IMRHSNet, lite_refiner
from imrseg.models.efficientnet import EFFICIENTNET_LITE2
from imrseg.models.graphs import KEPT, GraphedStep, cuda_capture
from imrseg.models.refiner import RefinerState, mapped, tensors


class Recorder:
    """Captures as CUDA does: a replay reads the captured state's memory, and writes that of the captured result."""

    def __init__(self) -> None:
        self.captured = 0

    def __call__(self, step, state):
        self.captured += 1
        out = step(state)
        before = {id(t) for t in tensors(state)}

        class Replay:
            def replay(self) -> None:
                for own, new in zip(tensors(out), tensors(step(state)), strict=True):
                    if id(own) not in before:
                        own.copy_(new)

        return Replay(), out


def features(seed: int, batch: int = 1) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    strides = {name: int(name[1:].rstrip("abcd")) for name in EFFICIENTNET_LITE2}
    return {
        name: torch.randn(batch, channels, 64 // strides[name], 64 // strides[name], generator=rng)
        for name, channels in EFFICIENTNET_LITE2.items()
    }


@pytest.fixture(scope="module")
def refiner():
    torch.manual_seed(0)
    return lite_refiner().eval().requires_grad_(False)


def begun(refiner, seed: int, batch: int = 1) -> RefinerState:
    masks = torch.rand(2, batch, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return refiner.start(features(seed, batch), features(seed + 1, batch), *masks)


def test_replays_give_what_steps_give(refiner):
    capture = Recorder()
    graphed = GraphedStep(refiner.step, capture)
    with torch.inference_mode():
        for seed in (0, 5, 9):  # three pairs of pictures, one graph
            plain = fast = begun(refiner, seed)
            kept = []
            for _ in range(3):
                plain, fast = refiner.step(plain), graphed(fast)
                kept.append((plain, fast))
            for a, b in kept:  # what was given out before stays as it was
                assert torch.equal(a.masks, b.masks)
                assert torch.equal(a.hidden, b.hidden)
                assert torch.equal(a.logits, b.logits)
    assert capture.captured == 1


def test_what_is_made_once_per_pair_is_passed_on_not_copied(refiner):
    with torch.inference_mode():
        state = begun(refiner, 0)
        after = GraphedStep(refiner.step, Recorder())(state)
    assert after.pair.guide is state.pair.guide
    assert after.constant is state.constant


def test_a_network_whose_pair_changes_from_step_to_step():
    torch.manual_seed(0)
    net = IMRHSNet("vgg16", authors_compatible=True).eval()
    rng = torch.Generator().manual_seed(1)
    pictures = [torch.randn(1, 3, 400, 400, generator=rng) for _ in range(2)]
    masks = [torch.rand(1, 1, 50, 50, generator=rng) for _ in range(2)]
    graphed = GraphedStep(net.refiner.step, Recorder())
    with torch.inference_mode():
        plain = fast = net.start(*pictures, *masks)
        for _ in range(2):
            plain, fast = net.refiner.step(plain), graphed(fast)
            torch.testing.assert_close(fast.logits, plain.logits)


def test_each_shape_has_its_graph_and_few_are_kept(refiner):
    capture = Recorder()
    graphed = GraphedStep(refiner.step, capture)
    with torch.inference_mode():
        for batch in range(1, KEPT + 2):
            assert graphed(begun(refiner, 0, batch)).masks.shape[0] == 2 * batch
        assert capture.captured == KEPT + 1
        graphed(begun(refiner, 0, KEPT + 1))
        assert capture.captured == KEPT + 1
        graphed(begun(refiner, 0, 1))  # was let go of
    assert capture.captured == KEPT + 2


def test_mapped_keeps_the_structure(refiner):
    with torch.inference_mode():
        state = begun(refiner, 0)
    twice = mapped(state, lambda t: 2 * t)
    assert type(twice.pair) is type(state.pair)
    assert torch.equal(twice.masks, 2 * state.masks)
    assert len(list(tensors(twice))) == len(list(tensors(state))) > 5
    assert replace(state, logits=None).logits is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_graphs_give_what_steps_give(refiner):
    on_gpu = refiner.to("cuda")
    graphed = GraphedStep(on_gpu.step, cuda_capture)
    with torch.inference_mode():
        for seed in (0, 5):
            there = [{k: t.cuda() for k, t in features(seed + i).items()} for i in range(2)]
            masks = torch.rand(2, 1, 1, 4, 4, generator=torch.Generator().manual_seed(seed)).cuda()
            plain = fast = on_gpu.start(*there, *masks)
            for _ in range(3):
                plain, fast = on_gpu.step(plain), graphed(fast)
            torch.testing.assert_close(fast.logits, plain.logits, atol=1e-4, rtol=1e-4)
    refiner.to("cpu")
