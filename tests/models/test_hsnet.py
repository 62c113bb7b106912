"""IMR-HSNet against what the authors' code computes and what the paper says, and its loaders.

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
import torch.nn.functional as F

from imrseg.errors import InputError, WeightsError
from imrseg.models import IMRHSNet
from imrseg.models.backbones import hsnet_backbone
from imrseg.models.correlation import EPSILON, RawCorrelation, Volume
from imrseg.models.hsnet import HSNetNeck, authors_shapes, resize_aligned

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


needs_parity = pytest.mark.skipif(not PARITY.is_dir(), reason="the authors' outputs are not beside the checkout")


@pytest.fixture(scope="module", params=["resnet50", "vgg16"])
def net(request) -> IMRHSNet:
    net = IMRHSNet(request.param, authors_compatible=True).eval()
    net.load_authors_state_dict(authors_weights(net))
    return net


@needs_parity
def test_their_state_dict_loads(net):
    listed = json.loads((PARITY / f"authors_state_dict_{net.name}.json").read_text())
    theirs = {name: weight(name, tuple(shape)) for name, shape in dict(listed).items()}
    ours = authors_shapes(net)
    assert {name: t.shape for name, t in theirs.items() if name in ours} == ours
    left_out = [name for name in theirs if name not in ours]
    assert left_out
    assert all(name.startswith(("backbone.fc.", "backbone.classifier.")) for name in left_out)
    net.load_authors_state_dict(theirs)
    net.load_authors_state_dict({f"module.{name}": t for name, t in theirs.items()})


@needs_parity
@pytest.mark.slow
@pytest.mark.parametrize("case", ["case-a", "case-b"])
def test_logits_equal_the_authors(net, case):
    expected = np.load(PARITY / f"imr_hsnet_{net.name}_{case}.npz")
    query, support = (torch.from_numpy(draw(f"{case}/{k}_img", (1, 3, 400, 400))) for k in ("query", "support"))
    cams = [draw(f"{case}/{k}_cam", (1, 50, 50)).clip(0) for k in ("query", "support")]
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
    with pytest.raises(WeightsError, match=r"state is \(1,\), not \(1, 128, 50, 50\)"):
        net.load_authors_state_dict({**weights, "state": torch.zeros(1)})


def test_weights_of_another_backbone_are_refused(net):
    other = IMRHSNet("vgg16" if net.name == "resnet50" else "resnet50", authors_compatible=True)
    with pytest.raises(WeightsError, match=f"IMR-HSNet on {other.name}"):
        other.load_authors_state_dict(authors_weights(net))


def test_the_faithful_mode_takes_their_weights_but_for_the_start(net):
    faithful = IMRHSNet(net.name)
    faithful.load_authors_state_dict(authors_weights(net))
    theirs, ours = net.state_dict(), faithful.state_dict()
    assert set(theirs) - set(ours) == {"refiner.cell.start"}
    assert all(torch.equal(t, theirs[name]) for name, t in ours.items())
    with pytest.raises(WeightsError, match="“group”, this network “conv”"):
        IMRHSNet(net.name, cell="conv").load_authors_state_dict(authors_weights(net))


# What the neck correlates, against the definitions spelled out; finest layer first, as the backbones give them.
SIZES = [(6, 6), (6, 6), (3, 3), (2, 2)]
DEPTHS = (1, 1, 2)


def direct(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """HSNet's correlation of features (1, C, h, w): (h, w, h, w)."""
    own, other = (f / (f.norm(dim=1, keepdim=True) + EPSILON) for f in (own, other))
    return torch.einsum("bcij,bckl->ijkl", own, other).relu()


def masked(layers: list[torch.Tensor], mask: torch.Tensor) -> list[torch.Tensor]:
    return [f * resize_aligned(mask, (f.shape[-2], f.shape[-1])) for f in layers]


@pytest.fixture
def episode() -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Features of a query and a support, and three steps' masks of both, partly 0."""
    rng = torch.Generator().manual_seed(0)
    layers = [[torch.randn(1, 5, *size, dtype=torch.float64, generator=rng) for size in SIZES] for _ in range(2)]
    masks = (torch.rand(3, 2, 1, 6, 6, dtype=torch.float64, generator=rng) - 0.2).relu()
    return *layers, list(masks)


def dense(level: list[Volume]) -> torch.Tensor:
    """A level's correlations (2B, L, h, w, h, w)."""
    return torch.stack([torch.cat(list(v.parts())).transpose(0, 1).unflatten(1, v.size) for v in level])


def check_volumes(volumes: list[list[Volume]], query: list[torch.Tensor], support: list[torch.Tensor]) -> None:
    """Volumes by level, coarsest first, against expected correlations by layer, finest first."""
    flat = [volume[:, i] for volume, depth in zip(map(dense, volumes), DEPTHS, strict=True) for i in range(depth)]
    order = [3, 2, 0, 1]
    for volume, layer in zip(flat, order, strict=True):
        torch.testing.assert_close(volume[0], query[layer], atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(volume[1], support[layer], atol=1e-12, rtol=1e-12)


def test_authors_masking_is_crossed_once_and_then_cumulative(episode):
    query, support, masks = episode
    neck = HSNetNeck(DEPTHS, torch.nn.Identity(), authors_compatible=True, masking="features").double()
    pair = neck.prepare(query, support)
    for step, (query_mask, support_mask) in enumerate(m.split(1) for m in masks):
        crossed = step == 0
        query = masked(query, support_mask if crossed else query_mask)
        support = masked(support, query_mask if crossed else support_mask)
        volumes, pair = neck.volumes(pair, torch.cat([query_mask, support_mask]))
        check_volumes(volumes, list(map(direct, query, support)), list(map(direct, support, query)))


@pytest.mark.parametrize("masking", ["features", "correlations"])
def test_faithful_masking_is_of_the_other_picture_and_of_this_step(episode, masking):
    query, support, masks = episode
    neck = HSNetNeck(DEPTHS, torch.nn.Identity(), authors_compatible=False, masking=masking).double()
    pair = neck.prepare(query, support)
    for both in masks:
        expected = []
        for own, other, mask in ((query, support, both[1:]), (support, query, both[:1])):
            if masking == "features":
                expected.append(list(map(direct, own, masked(other, mask))))
            else:
                fitted = [resize_aligned(mask, (f.shape[-2], f.shape[-1]))[0, 0] for f in other]
                expected.append([direct(a, b) * m for a, b, m in zip(own, other, fitted, strict=True)])
        volumes, pair = neck.volumes(pair, both)
        check_volumes(volumes, *expected)


# The whole network in the faithful mode, at a size that is quick.
SIDE = 96


@pytest.fixture(scope="module", params=["group", "conv", "none"])
def faithful(request) -> IMRHSNet:
    torch.manual_seed(0)
    return IMRHSNet("resnet50", cell=request.param).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def inputs() -> list[torch.Tensor]:
    """Query, support and their coarse masks, two of each."""
    rng = torch.Generator().manual_seed(1)
    pictures = [torch.randn(2, 3, SIDE, SIDE, generator=rng) for _ in range(2)]
    return pictures + [torch.rand(2, 1, 12, 12, generator=rng) for _ in range(2)]


def test_as_many_steps_as_asked_for(faithful, inputs):
    before = [x.clone() for x in inputs]
    three, two = faithful(*inputs, steps=3), faithful(*inputs, steps=2)
    assert [len(three), len(two)] == [3, 2]
    for step, again in zip(three, two, strict=False):
        assert step.query_logits.shape == step.support_logits.shape == (2, 2, SIDE // 4, SIDE // 4)
        assert torch.equal(step.query_logits, again.query_logits)  # no state is left by an earlier call
        assert torch.equal(step.support_logits, again.support_logits)
    assert not torch.allclose(three[0].query_logits, three[1].query_logits)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))  # and no input is written over


def test_query_and_support_may_change_places(faithful, inputs):
    query, support, query_mask, support_mask = inputs
    forth = faithful(query, support, query_mask, support_mask)
    back = faithful(support, query, support_mask, query_mask)
    for a, b in zip(forth, back, strict=True):
        scale = float(a.query_logits.abs().max())
        torch.testing.assert_close(a.query_logits, b.support_logits, atol=1e-5 * scale, rtol=0)
        torch.testing.assert_close(a.support_logits, b.query_logits, atol=1e-5 * scale, rtol=0)


def test_the_coarse_masks_go_where_the_paper_sends_them(faithful, inputs):
    """``C`` of the query hears of the support's mask alone; the query's goes to the cell and to equation 6."""
    query, support, query_mask, support_mask = inputs
    state = faithful.start(*inputs)
    correlation = faithful.refiner.neck(state.pair, state.masks)[0]
    for mask, changed in (
        (torch.cat([1 - query_mask, support_mask]), 1),
        (torch.cat([query_mask, 1 - support_mask]), 0),
    ):
        other = faithful.refiner.neck(state.pair, mask)[0]
        same = 1 - changed
        assert torch.equal(correlation.chunk(2)[same], other.chunk(2)[same])
        assert not torch.allclose(correlation.chunk(2)[changed], other.chunk(2)[changed], rtol=1e-3)
    one = faithful(query, support, query_mask, support_mask, steps=1)[0].query_logits
    assert not torch.allclose(one, faithful(query, support, 1 - query_mask, support_mask, steps=1)[0].query_logits)


def test_products_and_features_are_made_once_per_pair(faithful, inputs, monkeypatch):
    calls = {"product": 0, "backbone": 0, "constant": 0}
    of, prepare = RawCorrelation.of, faithful.refiner.cell.prepare

    def count(name, function):
        def counted(*args):
            calls[name] += 1
            return function(*args)

        return counted

    monkeypatch.setattr(RawCorrelation, "of", count("product", of))
    monkeypatch.setattr(faithful.refiner.cell, "prepare", count("constant", prepare))
    monkeypatch.setattr(faithful.backbone, "forward", count("backbone", faithful.backbone.forward))
    prepared = faithful.prepare(*inputs[:2])
    once = dict(calls)
    assert once == {"product": 3, "backbone": 2, "constant": 1}  # three levels, two pictures
    for query_mask, support_mask in (inputs[2:], [1 - m for m in inputs[2:]]):  # two labels
        state = faithful.refiner.begin(prepared, query_mask, support_mask)
        for _ in range(3):
            state = faithful.refiner.step(state)
    assert calls == once
    assert torch.equal(state.logits[:2], faithful(*inputs[:2], *(1 - m for m in inputs[2:]))[-1].query_logits)


def test_bfloat16_stays_near_float32(inputs):
    torch.manual_seed(0)
    net = IMRHSNet("resnet50").eval()
    with torch.inference_mode():
        exact = net(*inputs)
        net.refiner.lower(torch.bfloat16)
        near = net(*inputs)
        state = net.refiner.step(net.start(*inputs))
    kept = (state.masks, state.hidden, state.constant, state.pair.guide)  # carried from step to step
    assert {tensor.dtype for tensor in kept} == {torch.float32}
    for a, b in zip(near, exact, strict=True):
        assert b.query_logits.dtype == a.query_logits.dtype == torch.float32
        assert 0 < (a.query_logits - b.query_logits).abs().max() <= 0.02 * b.query_logits.abs().max()


@pytest.mark.parametrize("cell", ["group", "conv", "none"])
@pytest.mark.parametrize("masking", ["features", "correlations"])
def test_training_lowers_the_loss(cell, masking):
    """Fifteen steps of Adam on one drawn episode: a square of other colour on noise."""
    torch.manual_seed(0)
    net = IMRHSNet("resnet50", cell=cell, masking=masking).train()
    pictures, truth = 0.3 * torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.long)
    for i, (top, left) in enumerate([(8, 24), (24, 8)]):
        pictures[i, :, top : top + 32, left : left + 32] += torch.tensor([2.0, -1, 1])[:, None, None]
        truth[i, top : top + 32, left : left + 32] = 1
    coarse = F.avg_pool2d(truth[:, None].float(), 8) * 0.6 + 0.2
    trained = [p for p in net.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in net.refiner.parameters()}
    optimizer = torch.optim.Adam(trained, 3e-4)
    losses = []
    for _ in range(15):
        steps = net(pictures[:1], pictures[1:], coarse[:1], coarse[1:], steps=2)
        logits = [torch.cat([s.query_logits, s.support_logits]) for s in steps]
        loss = sum(F.cross_entropy(F.interpolate(x, (64, 64), mode="bilinear"), truth) for x in logits)
        optimizer.zero_grad()
        loss.backward()
        if not losses:
            assert [n for n, p in net.refiner.named_parameters() if p.grad is None] == []
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("backbone", "depths"), [("resnet50", (3, 6, 4)), ("resnet101", (3, 23, 4)), ("vgg16", (1, 3, 3))]
)
def test_backbones_by_level(backbone, depths):
    """Layers as HSNet counts them, and logits at stride 4."""
    torch.manual_seed(0)
    net = IMRHSNet(backbone).eval()
    assert net.backbone.depths == depths
    with torch.inference_mode():
        layers = net.backbone(torch.randn(1, 3, 64, 96))
        steps = net(torch.randn(1, 3, 64, 96), torch.randn(1, 3, 64, 96), *torch.rand(2, 1, 1, 8, 12), steps=1)
    expected = [(64 // s, 96 // s) for s, n in zip((8, 16, 32), reversed(depths), strict=True) for _ in range(n)]
    assert [tuple(f.shape[-2:]) for f in layers] == expected
    assert steps[0].query_logits.shape == (1, 2, 16, 24)
    assert steps[0].query_logits.isfinite().all()


@pytest.mark.parametrize(("cell", "millions"), [("none", 26.1), ("group", 28.5), ("conv", 29.9)])
def test_size_of_the_cells(cell, millions):
    """Table 5, whose counts fit a learned first state of either picture; here none is learned."""
    net = IMRHSNet("resnet50", cell=cell)
    learned = 0 if cell == "none" else 2 * 128 * 50 * 50
    assert round((sum(p.numel() for p in net.parameters()) + learned) / 1e6, 1) == millions


@pytest.mark.parametrize("name", ["resnet50", "vgg16"])
def test_backbone_takes_torchvisions_file(name):
    from torchvision import models

    torch.manual_seed(0)
    backbone, file = hsnet_backbone(name), hsnet_backbone(name).state_dict()
    classifier = {"fc.weight": torch.zeros(1), "classifier.0.bias": torch.zeros(1)}
    kept = {n: t for n, t in file.items() if not n.endswith("num_batches_tracked")}  # as in the older files
    backbone.load_torchvision({**kept, **classifier})
    assert all(torch.equal(t, file[n]) for n, t in backbone.state_dict().items())
    with torch.device("meta"):
        theirs = getattr(models, name)(weights=None).state_dict()
    assert {n for n in theirs if not n.startswith(("fc.", "classifier."))} == set(file)
    first = next(iter(kept))
    with pytest.raises(WeightsError, match=f"missing {first}"):
        backbone.load_torchvision({n: t for n, t in kept.items() if n != first})
    with pytest.raises(WeightsError, match="unexpected extra"):
        backbone.load_torchvision({**kept, "extra": torch.zeros(1)})


def test_settings_build_the_same_network():
    net = IMRHSNet("vgg16", cell="conv", masking="correlations")
    again = IMRHSNet(**json.loads(json.dumps(net.settings)))
    assert again.settings == net.settings
    again.load_state_dict(net.state_dict())


def test_what_cannot_be_is_refused():
    pair = [torch.zeros(1, 1, 50, 50)] * 2
    compatible, own = IMRHSNet("vgg16", authors_compatible=True), IMRHSNet("vgg16")
    with pytest.raises(InputError, match="400 x 400, not of side 224"):
        compatible(*[torch.zeros(1, 3, 224, 224)] * 2, *pair)
    with pytest.raises(InputError, match="multiple of 32, not of side 250"):
        own(*[torch.zeros(1, 3, 250, 224)] * 2, *pair)
    with pytest.raises(InputError, match="same shape"):
        own(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 96), *pair)
    with pytest.raises(InputError, match="resnet50, resnet101, vgg16"):
        IMRHSNet("alexnet")
    with pytest.raises(InputError, match=r"cell “lstm”\. Accepted: group, conv, none"):
        IMRHSNet(cell="lstm")
    with pytest.raises(InputError, match=r"masking “images”\. Accepted: features, correlations"):
        IMRHSNet(masking="images")
    for other in ({"cell": "conv"}, {"masking": "correlations"}):
        with pytest.raises(InputError, match="released code"):
            IMRHSNet(authors_compatible=True, **other)
