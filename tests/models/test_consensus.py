"""What all pictures of a run together say of the object."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from imrseg.models.consensus import LIFT, RIDGE, SLOPE, Consensus
from imrseg.models.refiner import RefinerState

SIDE = 12


def squares(count: int, corner: int = 3, side: int = 5) -> torch.Tensor:
    """Masks (count, 1, SIDE, SIDE) of a square, further right in each."""
    masks = torch.zeros(count, 1, SIDE, SIDE)
    for i, mask in enumerate(masks):
        mask[0, corner : corner + side, i : i + side] = 1
    return masks


def layers(masks: torch.Tensor, noise: float = 0.3) -> list[list[torch.Tensor]]:
    """Two layers of each picture, (1, 6, SIDE, SIDE) and one of half the size, whose channels tell the masks apart."""
    draw = torch.Generator().manual_seed(0)
    object_, background = torch.randn(2, 6, 1, 1, generator=draw)
    fine = object_ * masks + background * (1 - masks)
    fine = fine + noise * torch.randn(fine.shape, generator=draw)
    coarse = F.avg_pool2d(fine, 2)
    return [[f.unsqueeze(0), c.unsqueeze(0)] for f, c in zip(fine, coarse, strict=True)]


def state(query: torch.Tensor, support: torch.Tensor) -> RefinerState:
    masks = torch.cat([query, support])
    return RefinerState(None, None, masks, torch.zeros(1), masks)


def iou(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a >= 0.5, b >= 0.5
    return float((a & b).sum() / (a | b).sum())


def test_an_independent_computation():
    masks, given = squares(3), torch.rand(3, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    pictures = layers(masks)
    got = Consensus.of(pictures)(given)

    columns = []
    for fine, coarse in pictures:
        unit = [x.numpy()[0] / np.linalg.norm(x.numpy()[0], axis=0) for x in (fine, coarse)]
        wide = F.interpolate(torch.from_numpy(unit[1])[None], (SIDE, SIDE), mode="bilinear", align_corners=False)[0]
        columns.append(np.concatenate([unit[0], wide.numpy()]).reshape(12, -1).T)
    own = [x.mean(0) - np.mean(columns, (0, 1)) for x in columns]
    x = np.concatenate([x + LIFT * more for x, more in zip(columns, own, strict=True)]).astype(float)
    y = given.numpy().astype(float).ravel()
    covariance = np.cov(x.T, bias=True)
    covariance += RIDGE * covariance.diagonal().mean() * np.eye(12)
    of_object, of_background = np.average(x, 0, y), np.average(x, 0, 1 - y)  # Fisher's direction from the two means
    score = x @ np.linalg.solve(covariance, of_object - of_background)
    slope, start = np.polyfit(score, y, 1, w=np.sqrt(y / y.sum() + (1 - y) / (1 - y).sum()))
    expected = 1 / (1 + np.exp(-SLOPE * (start + slope * score - 0.5)))
    np.testing.assert_allclose(got.numpy().ravel(), expected, atol=1e-4)


def test_a_rough_mask_becomes_the_object():
    masks = squares(4)
    rough = F.avg_pool2d(masks, 5, 1, 2)
    found = Consensus.of(layers(masks))(rough)
    assert iou(found, masks) > 0.95 > iou(rough, masks) + 0.1


def test_a_picture_whose_mask_is_wrong_is_outvoted():
    masks = squares(6)
    wrong = masks.clone()
    wrong[2] = masks[2].roll(6, -1)  # beside the object
    found = Consensus.of(layers(masks))(wrong)
    assert iou(wrong[2], masks[2]) == 0
    assert iou(found[2], masks[2]) > 0.8


@pytest.mark.parametrize("value", [0.0, 0.01, 0.2, 0.9, 1.0])
def test_what_says_nothing_stays_as_it_is(value):
    """An empty mask invites no object, a full one no background."""
    found = Consensus.of(layers(squares(3)))(torch.full((3, 1, SIDE, SIDE), value))
    assert found.isfinite().all()
    assert bool((found >= 0.5).all()) == (value >= 0.5)
    assert bool((found < 0.5).all()) == (value < 0.5)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("channels", [4, 6])
def test_features_that_are_all_alike_say_nothing(value, channels):
    found = Consensus.of([[torch.full((1, channels, SIDE, SIDE), value)]] * 2)(squares(2))
    assert found.isfinite().all()
    assert float(found.std()) < 1e-3


def test_masks_of_another_size_are_moved_at_their_own():
    masks = squares(3)
    large = F.interpolate(masks, scale_factor=3)
    (moved,) = Consensus.of(layers(masks)).move([state(large[:1].expand(2, -1, -1, -1), large[1:])])
    assert moved.logits is None  # they are not those of these masks
    assert moved.masks.shape == (4, 1, 3 * SIDE, 3 * SIDE)
    assert iou(moved.query_masks[0], large[0]) > 0.85


def test_each_pair_keeps_a_mask_of_its_own():
    masks = squares(3)
    one, other = masks[:1], 0.5 * masks[:1]
    (moved,) = Consensus.of(layers(masks)).move([state(torch.cat([one, other]), masks[1:])])
    first, second = moved.query_masks
    torch.testing.assert_close(first - second, (one - other)[0] / 4)  # two rounds, half-way each


def test_pairs_apart_are_moved_as_pairs_together():
    masks = squares(4)
    soft = F.avg_pool2d(masks, 5, 1, 2)
    consensus = Consensus.of(layers(masks))
    query = torch.stack([soft[0], masks[0], 0.5 * soft[0]])
    (together,) = consensus.move([state(query, soft[1:])])
    apart = consensus.move([state(query[k : k + 1], soft[k + 1 : k + 2]) for k in range(3)])
    torch.testing.assert_close(torch.cat([s.query_masks for s in apart]), together.query_masks)
    torch.testing.assert_close(torch.cat([s.support_masks for s in apart]), together.support_masks)


def test_the_order_of_the_supports_does_not_matter():
    masks = squares(4)
    soft, pictures = F.avg_pool2d(masks, 5, 1, 2), layers(masks)
    there = Consensus.of(pictures)(soft)
    back = Consensus.of([pictures[0], *pictures[:0:-1]])(torch.cat([soft[:1], soft[1:].flip(0)]))
    torch.testing.assert_close(back[:1], there[:1], atol=1e-4, rtol=1e-4)


def test_without_a_support_the_query_speaks_for_itself():
    masks = squares(1)
    soft = F.avg_pool2d(masks, 5, 1, 2)
    (moved,) = Consensus.of(layers(masks)).move([state(soft, soft)])
    torch.testing.assert_close(moved.query_masks, moved.support_masks)
    assert iou(moved.query_masks, masks) > 0.9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_features_in_half_precision_are_summed_in_float32(dtype):
    masks = squares(3)
    pictures = layers(masks)
    low = [[layer.to(dtype) for layer in p] for p in pictures]
    found = Consensus.of(low)(masks)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, Consensus.of(pictures)(masks), atol=0.05, rtol=0)
