"""What all pictures of a run together say of the object."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from imrseg.models.consensus import FINEST, LIFT, RIDGE, SLOPE, Consensus
from imrseg.models.refiner import RefinerState

SIDE = 12


def squares(count: int, corner: int = 3, side: int = 5) -> torch.Tensor:
    """Masks (count, 1, SIDE, SIDE) of a square, further right in each."""
    masks = torch.zeros(count, 1, SIDE, SIDE)
    for i, mask in enumerate(masks):
        mask[0, corner : corner + side, i : i + side] = 1
    return masks


def layers(masks: torch.Tensor, noise: float = 0.3) -> list[list[torch.Tensor]]:
    """Three layers of each picture, whose channels tell the masks apart.

    (1, 6, SIDE, SIDE), one of half the size, and before them one of (1, 3, 2 SIDE, 2 SIDE).
    """
    draw = torch.Generator().manual_seed(0)
    object_, background = torch.randn(2, 6, 1, 1, generator=draw)
    fine = object_ * masks + background * (1 - masks)
    fine = fine + noise * torch.randn(fine.shape, generator=draw)
    coarse = F.avg_pool2d(fine, 2)
    finest = F.interpolate(fine[:, :3], scale_factor=2)
    finest = finest + noise * torch.randn(finest.shape, generator=draw)
    return [[layer.unsqueeze(0) for layer in p] for p in zip(finest, fine, coarse, strict=True)]


def state(query: torch.Tensor, support: torch.Tensor) -> RefinerState:
    masks = torch.cat([query, support])
    return RefinerState(None, None, masks, torch.zeros(1), masks)


def iou(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of masks; a larger one is averaged to the other's size."""
    side = min(a.shape[-1], b.shape[-1])
    a, b = (F.adaptive_avg_pool2d(x, side).view(-1, side, side) >= 0.5 for x in (a, b))
    return float((a & b).sum() / (a | b).sum())


def test_an_independent_computation():
    masks, given = squares(3), torch.rand(3, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    pictures = layers(masks)
    got = Consensus.of(pictures)(given)

    def sized(x, side):  # averages on the way down
        if x.shape[-1] > side:
            return x.reshape(len(x), side, 2, side, 2).mean((2, 4))
        return F.interpolate(torch.from_numpy(x)[None], (side, side), mode="bilinear", align_corners=False)[0].numpy()

    columns, finest = [], []
    for picture in pictures:
        first, *others = (x.numpy()[0] / np.linalg.norm(x.numpy()[0], axis=0) for x in picture)
        finest.append(FINEST * first)
        columns.append(np.concatenate([sized(x, SIDE) for x in (finest[-1], *others)]).reshape(15, -1).T)
    own = [x.mean(0) - np.mean(columns, (0, 1)) for x in columns]
    x = np.concatenate([x + LIFT * more for x, more in zip(columns, own, strict=True)]).astype(float)
    y = given.numpy().astype(float).ravel()
    covariance = np.cov(x.T, bias=True)
    covariance += RIDGE * covariance.diagonal().mean() * np.eye(15)
    of_object, of_background = np.average(x, 0, y), np.average(x, 0, 1 - y)  # Fisher's direction from the two means
    direction = np.linalg.solve(covariance, of_object - of_background)
    score = x @ direction
    slope, start = np.polyfit(score, y, 1, w=np.sqrt(y / y.sum() + (1 - y) / (1 - y).sum()))
    # What the finest layer shows beyond the mean that was fitted moves the score of its own positions.
    for picture, values, fine in zip(got, score.reshape(3, SIDE, SIDE), finest, strict=True):
        beyond = np.pad(fine - sized(sized(fine, SIDE), 2 * SIDE), ((0, 0), (1, 1), (1, 1)), constant_values=np.nan)
        beyond = np.nanmean(np.lib.stride_tricks.sliding_window_view(beyond, (3, 3), (1, 2)), (3, 4))
        large = sized(values[None], 2 * SIDE)[0] + np.tensordot(direction[:3], beyond, 1)
        expected = 1 / (1 + np.exp(-SLOPE * (start + slope * large - 0.5)))
        np.testing.assert_allclose(picture[0].numpy(), expected, atol=1e-4)


def test_a_rough_mask_becomes_the_object():
    masks = squares(4)
    rough = F.avg_pool2d(masks, 5, 1, 2)
    consensus = Consensus.of(layers(masks))
    found = consensus(consensus(rough))  # as after two steps
    assert iou(found, masks) > 0.95 > iou(rough, masks) + 0.1


def test_edges_are_those_of_the_finest_layer():
    """Of an object that begins and ends within the second layer's cells."""
    large = torch.zeros(3, 1, 2 * SIDE, 2 * SIDE)
    large[:, :, :, 7:18] = 1
    small = F.avg_pool2d(large, 2)
    pictures = [
        [torch.stack([m, 1 - m]).unsqueeze(0) for m in layers] for layers in zip(large[:, 0], small[:, 0], strict=True)
    ]
    rough = small.ceil()
    found = Consensus.of(pictures)(rough)
    assert iou(found, large) == 1 > iou(F.interpolate(rough, scale_factor=2), large)


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
    found = Consensus.of([[torch.full((1, channels, side, side), value) for side in (2 * SIDE, SIDE)]] * 2)(squares(2))
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
    torch.testing.assert_close(first - second, (one - other)[0] / 2)  # half-way


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
    consensus = Consensus.of(layers(masks))
    (once,) = consensus.move([state(soft, soft)])
    (moved,) = consensus.move([once])
    torch.testing.assert_close(moved.query_masks, moved.support_masks)
    assert iou(moved.query_masks, masks) > 0.9 > iou(once.query_masks, masks) > iou(soft, masks)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_features_in_half_precision_are_summed_in_float32(dtype):
    masks = squares(3)
    pictures = layers(masks)
    low = [[layer.to(dtype) for layer in p] for p in pictures]
    found = Consensus.of(low)(masks)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, Consensus.of(pictures)(masks), atol=0.05, rtol=0)
