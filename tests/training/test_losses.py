"""Equation 7."""

import pytest
import torch
import torch.nn.functional as F

from imrseg.training.losses import segmentation_loss, step_weights, total_loss


def test_the_loss_counts_valid_pixels_alone():
    logits = torch.randn(1, 2, 8, 8)
    target = torch.zeros(1, 2, 8, 8)
    target[:, 1, :, :4] = 1
    changed = logits.clone()
    changed[..., 4:] = 9.0
    assert torch.equal(segmentation_loss(logits, target, 0.5), segmentation_loss(changed, target, 0.5))


def test_without_dice_the_loss_is_cross_entropy():
    logits, truth = torch.randn(3, 2, 5, 5), torch.randint(0, 2, (3, 5, 5))
    target = torch.stack([truth.float(), torch.ones(3, 5, 5)], 1)
    expected = F.cross_entropy(logits, truth)
    assert segmentation_loss(logits, target, 0.0) == pytest.approx(expected.item(), abs=1e-5)


def test_logits_of_another_size_are_brought_to_the_targets():
    logits, truth = torch.randn(2, 2, 5, 5), torch.randint(0, 2, (2, 10, 10))
    target = torch.stack([truth.float(), torch.ones(2, 10, 10)], 1)
    fine = F.interpolate(logits, (10, 10), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(fine, truth)
    assert segmentation_loss(logits, target, 0.0) == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("dice", [0.0, 0.5])
def test_the_supports_weigh_as_much_as_they_are_said_to(dice):
    """w_s = 0 leaves the query's loss; others mix the two losses."""
    logits, target = torch.randn(2, 2, 6, 6), torch.stack([torch.rand(2, 6, 6).round(), torch.ones(2, 6, 6)], 1)
    query, support = (segmentation_loss(logits[i : i + 1], target[i : i + 1], dice).item() for i in (0, 1))
    for w in (0.0, 0.25, 1.0):
        got = segmentation_loss(logits, target, dice, torch.tensor([1.0, w]))
        assert got.item() == pytest.approx((query + w * support) / (1 + w), abs=1e-5)


def test_schedules():
    assert step_weights("same", 4) == [1, 1, 1, 1]
    assert step_weights("linear", 4) == [0.25, 0.5, 0.75, 1]
    assert step_weights("none", 4) == [0, 0, 0, 1]


def test_the_schedule_says_which_steps_are_supervised():
    losses = [torch.tensor(x, requires_grad=True) for x in (3.0, 2.0, 1.0)]
    total = total_loss(losses, "none")
    total.backward()
    assert (total.item(), losses[0].grad, losses[2].grad.item()) == (1.0, None, 1.0)
    assert total_loss(losses, "same").item() == pytest.approx(2)
    assert total_loss(losses, "linear").item() == pytest.approx((3 / 3 + 2 * 2 / 3 + 1) / 2)


@pytest.mark.parametrize("dice", [0.0, 0.5])
def test_where_all_is_to_be_ignored_nothing_is_taught(dice):
    logits = torch.randn(2, 2, 5, 5, requires_grad=True)
    segmentation_loss(logits, torch.zeros(2, 2, 5, 5), dice).backward()
    assert logits.grad.abs().max() == 0
