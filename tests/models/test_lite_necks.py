"""Other necks and cells on lite's backbone."""

import pytest
import torch

from imrseg.errors import InputError
from imrseg.models.efficientnet import EFFICIENTNET_LITE2
from imrseg.models.imr import ConvCell, IMRCell, NoCell
from imrseg.models.layers import MeasuredNorms
from imrseg.models.lite import lite_refiner


def features(pairs: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = {k: 64 // int(k[1:].rstrip("abcd")) * 2 for k in EFFICIENTNET_LITE2}  # of pictures of 128 x 128
    return {k: torch.randn(pairs, c, sizes[k], sizes[k], generator=generator) for k, c in EFFICIENTNET_LITE2.items()}


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"cell": "conv"}, {"cell": "none"}, {"neck": "pfenet"}, {"neck": "pfenet", "cell": "none"}, {"neck": "hsnet"},
        {"neck": "hsnet", "cell": "none", "masking": "features", "residual": False},
    ],
    ids=str,
)  # fmt: skip
def test_every_parameter_learns_and_pairs_do_not_mix(settings):
    torch.manual_seed(0)
    refiner = lite_refiner(**settings)
    query, support = features(2, 0), features(2, 1)
    refiner.neck.measure([query, support])
    refiner.train()
    masks = torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 4)
    states = refiner(query, support, *masks, 2)
    states[-1].logits.square().mean().backward()
    assert all(p.grad is not None for p in refiner.parameters())
    refiner.eval()  # dropout draws for all pairs together
    states = refiner(query, support, *masks, 2)
    cells = {"group": IMRCell, "conv": ConvCell, "none": NoCell}
    assert isinstance(refiner.cell, cells[settings.get("cell", "group")])
    alone = refiner({k: t[:1] for k, t in query.items()}, {k: t[:1] for k, t in support.items()},
                    masks[0][:1], masks[1][:1], 2)  # fmt: skip
    for state, single in zip(states, alone, strict=True):
        torch.testing.assert_close(state.query_masks[:1], single.query_masks, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(state.support_masks[:1], single.support_masks, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("neck", ["lite", "pfenet"])
def test_a_pictures_own_edges_go_past_the_neck_to_its_mask(neck):
    torch.manual_seed(0)
    refiner = lite_refiner(neck=neck).eval()
    query, support, mask = features(1, 0), features(1, 1), torch.rand(1, 1, 32, 32)
    other = query | {"s4": features(1, 2)["s4"]}
    states = [refiner.start(q, support, mask, mask) for q in (query, other)]
    seen = [refiner.neck(state.pair, state.masks)[0] for state in states]
    assert torch.equal(*seen)
    one, two = (refiner.step(state) for state in states)
    assert one.masks.shape == (2, 1, *query["s4"].shape[2:])
    assert not torch.allclose(one.query_masks, two.query_masks)
    assert torch.equal(one.support_masks, two.support_masks)


def test_hsnet_itself_knows_nothing_of_its_own_pictures_mask():
    torch.manual_seed(0)
    refiner = lite_refiner(neck="hsnet", cell="none", masking="features", residual=False).eval()
    query, support, mask = features(1, 0), features(1, 1), torch.rand(1, 1, 16, 16)
    one, other = (
        refiner(query, support, own, mask, 1)[0].query_masks for own in (torch.zeros_like(mask), torch.ones_like(mask))
    )
    assert torch.equal(one, other)
    changed = refiner(query, support, mask, (mask > 0.5).float(), 1)[0].query_masks  # a soft mask nearly cancels
    assert not torch.allclose(one, changed)


def test_its_third_step_is_the_papers_chain_of_mutual_refinement():
    """Query 3 comes from support 2, that from query 1, that from support 0 (paper section 5.5)."""
    torch.manual_seed(0)
    refiner = lite_refiner(neck="hsnet", cell="none", residual=False).eval()
    query, support, mask = features(1, 0), features(1, 1), torch.rand(1, 1, 16, 16)
    any_ = torch.rand(1, 1, 16, 16)
    direct = refiner(query, support, any_, mask, 3)[2].query_masks
    first = refiner(query, support, any_, mask, 1)[0].query_masks
    second = refiner(query, support, first, any_, 1)[0].support_masks
    torch.testing.assert_close(refiner(query, support, any_, second, 1)[0].query_masks, direct, atol=1e-5, rtol=1e-5)


def test_what_does_not_go_together_is_refused():
    for settings, said in (
        ({"neck": "resnet"}, "lite, hsnet, pfenet"),
        ({"cell": "gru"}, "group, conv, none"),
        ({"neck": "hsnet", "masking": "none"}, "features, correlations"),
        ({"masking": "features"}, "for the neck “hsnet”"),
        ({"neck": "pfenet", "residual": False}, "for the neck “hsnet”"),
    ):
        with pytest.raises(InputError, match=said):
            lite_refiner(**settings)


def test_norms_are_measured_once_and_stay():
    norms = MeasuredNorms({"a": 3})
    x = torch.randn(40, 3, 5, 5) * 4 + 7
    norms.measure([{"a": x[:20]}, {"a": x[20:]}])
    norms.train()
    out = norms["a"](x)
    assert out.mean().abs() < 1e-3
    assert out.std() == pytest.approx(1, abs=0.01)
    before = norms["a"].running_mean.clone()
    norms["a"](x + 5)
    assert torch.equal(norms["a"].running_mean, before)
