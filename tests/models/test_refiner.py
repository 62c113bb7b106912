import pytest
import torch

from imrseg.models.efficientnet import EFFICIENTNET_LITE2
from imrseg.models.lite import lite_refiner
from imrseg.models.refiner import Refiner


def features(batch: int, seed: int, side: int = 96) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    strides = {name: int(name[1:].rstrip("abcd")) for name in EFFICIENTNET_LITE2}
    return {
        name: torch.randn(batch, EFFICIENTNET_LITE2[name], side // stride, side // stride, generator=rng)
        for name, stride in strides.items()
    }


def coarse(batch: int, seed: int) -> torch.Tensor:
    return torch.rand(batch, 1, 3, 3, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def refiner() -> Refiner:
    torch.manual_seed(0)
    return lite_refiner().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pair():
    return features(2, 1), features(2, 2), coarse(2, 3), coarse(2, 4)


@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_as_many_states_as_steps(refiner, pair, steps):
    states = refiner(*pair, steps=steps)
    assert len(states) == steps
    for state in states:
        assert state.masks.shape == (4, 1, 24, 24)
        assert state.query_masks.shape == state.support_masks.shape == (2, 1, 24, 24)
        assert state.logits.shape == (4, 2, 24, 24)
        assert state.hidden.shape == (4, 48, 12, 12)
        torch.testing.assert_close(state.masks, state.logits.softmax(1)[:, 1:])
        assert ((state.masks >= 0) & (state.masks <= 1)).all()


def test_stepping_is_the_loop(refiner, pair):
    state = refiner.start(*pair)
    assert (state.hidden == 0).all()
    for expected in refiner(*pair, steps=3):
        before, state = state, refiner.step(state)
        assert torch.equal(state.masks, expected.masks)
        assert state.pair is before.pair
        assert not torch.equal(state.masks, before.masks)


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


def test_each_image_hears_of_the_others_mask(refiner, pair):
    query, support, query_mask, support_mask = pair
    one = refiner(query, support, query_mask, support_mask, steps=1)[-1]
    other = refiner(query, support, query_mask, 1 - support_mask, steps=1)[-1]
    assert not torch.allclose(one.query_masks, other.query_masks)


def test_gradients_reach_every_weight():
    torch.manual_seed(0)
    net = lite_refiner().train()
    states = net(features(1, 1), features(1, 2), coarse(1, 3), coarse(1, 4), steps=2)
    sum(state.logits[:, 1].square().mean() for state in states).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().any()] == []


@pytest.mark.parametrize("cell", ["group", "none"])
def test_what_a_query_adds_to_the_gates_serves_all_its_supports(pair, cell, monkeypatch):
    torch.manual_seed(0)
    refiner = lite_refiner(cell=cell).eval().requires_grad_(False)
    other = features(2, 5)
    first, wanted = refiner.prepare(*pair[:2]), refiner.prepare(pair[0], other)
    seen = []
    prepare = refiner.cell.prepare
    monkeypatch.setattr(refiner.cell, "prepare", lambda guide: (seen.append(len(guide)), prepare(guide))[1])
    got = refiner.prepare(pair[0], other, first)
    if cell == "none":
        assert got.constant is None
    else:
        assert seen == [2]  # the two supports, not the queries
        torch.testing.assert_close(got.constant, wanted.constant)
