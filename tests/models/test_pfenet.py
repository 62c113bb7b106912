"""IMR-PFENet's parts against their definitions spelled out, and the loop around them on both backbones."""

import json

import pytest
import torch
import torch.nn.functional as F

from imrseg.errors import InputError
from imrseg.models.efficientnet import EFFICIENTNET_LITE2
from imrseg.models.hsnet import resize_aligned
from imrseg.models.lite import LitePFENetNeck, lite_refiner
from imrseg.models.pfenet import (
    FEM,
    SCALES,
    IMRPFENet,
    PFENetNeck,
    Prior,
    masked_mean,
    pfenet_backbone,
)
from imrseg.models.refiner import Refiner


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def lite_features(batch: int, seed: int, side: int = 96) -> dict[str, torch.Tensor]:
    strides = {name: int(name[1:].rstrip("abcd")) for name in EFFICIENTNET_LITE2}
    return {
        name: drawn(batch, EFFICIENTNET_LITE2[name], side // stride, side // stride, seed=seed + i)
        for i, (name, stride) in enumerate(strides.items())
    }


# The prior


def direct_prior(own: torch.Tensor, other: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """PFENet's, of features (C, h, w): the other's are masked, then compared position by position."""
    best = []
    for p in own.flatten(1).T:
        cosines = [p @ q / (p.norm() * q.norm() + 1e-7) for q in (other * mask).flatten(1).T]
        best.append(max(cosines))
    best = torch.stack(best)
    return ((best - best.min()) / (best.max() - best.min() + 1e-7)).view(own.shape[1:])


def test_prior_of_a_hard_mask_is_pfenets():
    high = drawn(4, 6, 3, 4, dtype=torch.float64).relu()
    masks = (drawn(4, 1, 3, 4, seed=1) > 0.3).double()
    found = Prior.of(high)(masks)
    assert found.shape == (4, 1, 3, 4)
    for own, other in ((0, 2), (1, 3), (2, 0), (3, 1)):  # queries before supports
        expected = direct_prior(high[own], high[other], masks[other])
        torch.testing.assert_close(found[own, 0], expected, atol=1e-5, rtol=0)


def test_a_soft_mask_keeps_its_meaning_in_the_prior():
    """Two positions of the support, each like one of the query: the prior follows how sure the mask is of each."""
    high = torch.eye(3)[torch.tensor([[0, 1, 2], [0, 1, 1]])].transpose(1, 2).unsqueeze(2)  # (2, 3, 1, 3)
    masks = torch.tensor([[1.0, 1, 1], [0.2, 0.8, 0.4]]).view(2, 1, 1, 3)
    torch.testing.assert_close(Prior.of(high)(masks)[0].flatten(), torch.tensor([0.25, 1, 0]))
    torch.testing.assert_close(Prior.of(high)(masks / 2)[0], Prior.of(high)(masks)[0])  # it is relative


def test_prior_of_an_empty_mask_is_empty():
    found = Prior.of(drawn(2, 5, 3, 3))(torch.zeros(2, 1, 3, 3))
    assert torch.equal(found, torch.zeros(2, 1, 3, 3))


def test_no_gradient_runs_through_the_prior():
    masks = torch.full((2, 1, 3, 3), 0.5, requires_grad=True)
    assert not Prior.of(drawn(2, 5, 3, 3).requires_grad_())(masks).requires_grad


# The FEM


def test_prototype_is_the_mean_under_the_mask():
    features, mask = drawn(1, 3, 2, 2), torch.tensor([[[[1.0, 0], [0, 1]]]])
    expected = (features[0, :, 0, 0] + features[0, :, 1, 1]) / 2
    torch.testing.assert_close(masked_mean(features, mask).flatten(), expected, atol=1e-3, rtol=1e-3)
    assert torch.equal(masked_mean(features, 0 * mask), torch.zeros(1, 3, 1, 1))  # an empty one has none


@pytest.mark.parametrize(
    ("size", "scales"),
    [
        ((60, 60), [(60, 60), (30, 30), (15, 15), (8, 8)]),  # PFENet's own
        ((40, 40), [(40, 40), (20, 20), (10, 10), (5, 5)]),
        ((8, 12), [(8, 12), (4, 6), (2, 3), (1, 2)]),
        ((2, 2), [(2, 2), (1, 1), (1, 1), (1, 1)]),
    ],
)
def test_scales_follow_the_size(size, scales):
    prepared = FEM(4, resize_aligned).prepare(torch.zeros(2, 4, *size))
    assert [tuple(x.shape[-2:]) for x in prepared] == scales


def test_fem_by_its_definition():
    """In one piece: features, prototype and prior side by side into each scale's first convolution."""
    torch.manual_seed(0)
    fem = FEM(4, resize_aligned).double().requires_grad_(False)
    own, prior = drawn(2, 4, 16, 12, dtype=torch.float64), drawn(2, 1, 16, 12, seed=1, dtype=torch.float64).sigmoid()
    prototype = drawn(2, 4, 1, 1, seed=2, dtype=torch.float64)
    found: list[torch.Tensor] = []
    for i, scale in enumerate(SCALES):
        size = (max(1, round(16 * scale / 60)), max(1, round(12 * scale / 60)))
        parts = [F.adaptive_avg_pool2d(own, size), prototype.expand(-1, -1, *size), resize_aligned(prior, size)]
        x = fem.merge[i](torch.cat(parts, 1)).relu()
        if i:
            x = x + fem.inherit[i - 1](torch.cat([x, resize_aligned(found[-1], size)], 1)).relu()
        x = x + fem.interact[i](x)
        found.append(resize_aligned(x, (16, 12)))
    expected = fem.concentrate(torch.cat(found, 1))
    torch.testing.assert_close(fem(fem.prepare(own), prototype, prior), expected, atol=1e-12, rtol=1e-12)


# The loop, on EfficientNet-Lite2's features


@pytest.fixture(scope="module")
def refiner() -> Refiner:
    torch.manual_seed(0)
    return lite_refiner(neck="pfenet").eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pair() -> list:
    """Features of two queries and supports, and their coarse masks."""
    masks = [torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4)]
    return [lite_features(2, 1), lite_features(2, 20), *masks]


def test_lite_gives_masks_at_stride_4(refiner, pair):
    states = refiner(*pair, steps=3)
    assert len(states) == 3
    for state in states:
        assert state.logits.shape == (4, 2, 24, 24)
        assert state.hidden.shape == (4, 48, 12, 12)
        assert state.logits.isfinite().all()
    assert not torch.allclose(states[0].masks, states[1].masks)
    assert sum(p.numel() for p in refiner.parameters()) < 400_000


def test_query_and_support_may_change_places(refiner, pair):
    query, support, query_mask, support_mask = pair
    forth = refiner(query, support, query_mask, support_mask, steps=2)[-1]
    back = refiner(support, query, support_mask, query_mask, steps=2)[-1]
    torch.testing.assert_close(forth.query_masks, back.support_masks, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(forth.support_masks, back.query_masks, atol=1e-5, rtol=1e-4)


def test_pairs_in_a_batch_do_not_touch(refiner, pair):
    both = refiner(*pair, steps=2)[-1]
    for i in range(2):
        one = [{k: v[i : i + 1] for k, v in f.items()} for f in pair[:2]] + [m[i : i + 1] for m in pair[2:]]
        alone = refiner(*one, steps=2)[-1]
        torch.testing.assert_close(alone.query_masks, both.query_masks[i : i + 1], atol=1e-5, rtol=1e-4)


def test_each_picture_is_enriched_by_the_others_mask_alone(refiner, pair):
    state = refiner.start(*pair)
    correlation = refiner.neck(state.pair, state.masks)[0]
    query, support = state.masks.chunk(2)
    for mask, changed in ((torch.cat([query.flip(-1), support]), 1), (torch.cat([query, support.flip(-1)]), 0)):
        other = refiner.neck(state.pair, mask)[0]
        assert torch.equal(correlation.chunk(2)[1 - changed], other.chunk(2)[1 - changed])
        assert not torch.allclose(correlation.chunk(2)[changed], other.chunk(2)[changed], rtol=1e-3)


def test_what_no_mask_changes_is_made_once(refiner, pair, monkeypatch):
    calls = {"reduce": 0, "prior": 0, "fem": 0, "cell": 0}

    def counted(name, function):
        def call(*args):
            calls[name] += 1
            return function(*args)

        return call

    for role, reduce in refiner.neck.reduce.items():
        monkeypatch.setattr(refiner.neck.reduce[role], "forward", counted("reduce", reduce.forward))
    monkeypatch.setattr(Prior, "of", counted("prior", Prior.of))
    monkeypatch.setattr(refiner.neck.fem, "prepare", counted("fem", refiner.neck.fem.prepare))
    monkeypatch.setattr(refiner.cell, "prepare", counted("cell", refiner.cell.prepare))
    prepared = refiner.prepare(*pair[:2])
    for masks in (pair[2:], [1 - m for m in pair[2:]]):  # two labels
        state = refiner.begin(prepared, *masks)
        for _ in range(2):
            state = refiner.step(state)
    assert calls == {"reduce": 2, "prior": 1, "fem": 1, "cell": 1}


def test_lites_features_are_evened_out_and_stay_so():
    neck = LitePFENetNeck(16).train()
    features = {name: 3 * t + 5 for name, t in lite_features(4, 1).items()}
    neck.measure([features])
    before = {name: t.clone() for name, t in neck.norms.state_dict().items()}
    high = neck.layers(features)["high"]
    torch.testing.assert_close(high.mean((0, 2, 3)), torch.zeros(352), atol=1e-4, rtol=0)
    torch.testing.assert_close(high.var((0, 2, 3)), torch.ones(352), atol=1e-3, rtol=0)
    neck.prepare(lite_features(2, 5), lite_features(2, 6))
    assert all(torch.equal(t, before[name]) for name, t in neck.norms.state_dict().items())


# The whole network on ResNet50, at a size that is quick

SIDE = 65


@pytest.fixture(scope="module")
def net() -> IMRPFENet:
    torch.manual_seed(0)
    return IMRPFENet().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def inputs() -> list[torch.Tensor]:
    masks = [torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4)]
    return [drawn(1, 3, SIDE, SIDE, seed=1), drawn(1, 3, SIDE, SIDE, seed=2), *masks]


def test_resnets_layers_as_pfenet_takes_them(net):
    features = net.features(drawn(1, 3, SIDE, SIDE + 16))
    assert features["middle"].shape == (1, 1024 + 512, 9, 11)
    assert features["high"].shape == (1, 2048, 9, 11)
    assert all(t.min() == 0 for t in features.values())  # behind the ReLU
    # By torchvision's own forward, made to keep the resolution. It dilates the first block of a layer
    # as the layer before it, PFENet like the rest of its own.
    from torchvision.models import resnet50

    theirs = resnet50(weights=None, replace_stride_with_dilation=[False, True, True]).eval()
    theirs.load_state_dict(net.backbone.state_dict(), strict=False)
    for layer, rate in ((theirs.layer3, 2), (theirs.layer4, 4)):
        layer[0].conv2.dilation = layer[0].conv2.padding = (rate, rate)
    with torch.inference_mode():
        x = theirs.maxpool(theirs.bn1(theirs.conv1(drawn(1, 3, SIDE, SIDE + 16))).relu())
        second = theirs.layer2(theirs.layer1(x))
        third = theirs.layer3(second)
        high = theirs.layer4(third)
    torch.testing.assert_close(features["middle"], torch.cat([third, second], 1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features["high"], high, atol=1e-4, rtol=1e-4)


def test_resnets_masks_by_step(net, inputs):
    two, one = net(*inputs), net(*inputs, steps=1)
    assert [len(two), len(one)] == [2, 1]
    assert torch.equal(two[0].logits, one[0].logits)
    for state in two:
        assert state.logits.shape == (2, 2, 18, 18)
        assert state.logits.isfinite().all()
    back = net(inputs[1], inputs[0], inputs[3], inputs[2])
    torch.testing.assert_close(two[-1].query_masks, back[-1].support_masks, atol=1e-5, rtol=1e-4)


def test_only_the_refiner_is_trained(net):
    network = IMRPFENet().train()
    trained = {id(p) for p in network.parameters() if p.requires_grad}
    assert trained == {id(p) for p in network.refiner.parameters()}
    assert not any(m.training for m in network.backbone.modules())


def test_backbone_takes_torchvisions_file(net):
    file = pfenet_backbone("resnet50").state_dict()
    backbone = pfenet_backbone("resnet50")
    backbone.load_torchvision({**file, "fc.weight": torch.zeros(1)})
    assert all(torch.equal(t, file[name]) for name, t in backbone.state_dict().items())


def test_settings_build_the_same_network(net):
    again = IMRPFENet(**json.loads(json.dumps(net.settings)))
    assert again.settings == net.settings
    again.load_state_dict(net.state_dict())


def test_what_cannot_be_is_refused(net, inputs):
    with pytest.raises(InputError, match="473 x 473, or with sides of a multiple of 8 plus one, not of side 64"):
        net(torch.zeros(1, 3, 65, 64), torch.zeros(1, 3, 65, 64), *inputs[2:])
    with pytest.raises(InputError, match="same shape"):
        net(torch.zeros(1, 3, 65, 65), torch.zeros(1, 3, 65, 73), *inputs[2:])
    with pytest.raises(InputError, match=r"backbone for PFENet “vgg16”\. Accepted: resnet50, resnet101"):
        IMRPFENet("vgg16")


# Training


def scene(seed: int) -> tuple[dict, dict, torch.Tensor, torch.Tensor]:
    """Two pairs of lite's features: noise with an object of the pair's own colour at a place of the picture's own.

    Returns features of queries and supports, coarse masks (4, 1, 3, 3), truth (4, 24, 24).
    """
    pictures, truth = lite_features(4, seed), torch.zeros(4, 1, 24, 24)
    for i, (top, left) in enumerate([(0, 8), (8, 0), (8, 8), (0, 0)]):
        truth[i, :, top : top + 16, left : left + 16] = 1
    for t in pictures.values():
        colour = drawn(2, t.shape[1], 1, 1, seed=seed + 100)
        t += 2 * colour.repeat(2, 1, 1, 1) * F.adaptive_avg_pool2d(truth, t.shape[-2:])
    coarse = F.adaptive_avg_pool2d(truth, 3) * 0.6 + 0.2
    query, support = ({name: t[half] for name, t in pictures.items()} for half in (slice(2), slice(2, 4)))
    return query, support, coarse, truth[:, 0].long()


def losses_of(net: Refiner, iterations: int, rate: float) -> list[float]:
    """Training on two pairs, two steps of refinement supervised (equation 7); the loss at each iteration."""
    query, support, coarse, truth = scene(1)
    optimizer, losses = torch.optim.Adam(net.parameters(), rate), []
    for _ in range(iterations):
        states = net(query, support, *coarse.chunk(2), steps=2)
        loss = torch.stack([F.cross_entropy(state.logits, truth) for state in states]).mean()
        optimizer.zero_grad()
        loss.backward()
        if not losses:
            assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().any()] == []
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_it_learns_two_pairs_by_heart():
    torch.manual_seed(0)
    losses = losses_of(lite_refiner(neck="pfenet").train(), 40, 3e-3)
    assert losses[-1] < 0.3 * losses[0]


def test_pfenets_dropouts_are_there_in_training_only():
    neck = PFENetNeck(6, 8, 0.5, resize_aligned).train()
    features = [{"middle": drawn(8, 6, 4, 4, seed=s), "high": drawn(8, 5, 4, 4, seed=s)} for s in (1, 2)]
    torch.manual_seed(0)
    dropped = (neck.prepare(*features).guide == 0).all((2, 3))
    assert 0.3 < dropped.float().mean() < 0.7  # whole channels
    neck.eval()
    assert not (neck.prepare(*features).guide == 0).all((2, 3)).any()
