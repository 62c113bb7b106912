"""Pooled IoU against figures worked out by hand, and against a confusion matrix."""

import numpy as np
import pytest

from imrseg.metrics import Scores


def test_iou_is_pooled_over_episodes_and_ignores_255():
    scores = Scores(0)
    target = np.array([[1, 1, 0, 255]])
    scores.add("cat", 0, np.array([[True, False, True, True]]), target)  # 1 of 3
    scores.add("cat", 0, np.array([[True, True, False, False]]), target)  # 2 of 2
    assert scores.per_class() == {"cat": [3 / 5]}


def test_miou_is_the_mean_over_classes_that_had_episodes():
    scores = Scores(1)
    target = np.array([[1, 0]])
    for step, mask in enumerate(([[True, True]], [[True, False]])):
        scores.add("cat", step, np.array(mask), target)
        scores.add("dog", step, np.array([[False, True]]), target)
    assert scores.miou() == [pytest.approx((1 / 2 + 0) / 2), pytest.approx((1 + 0) / 2)]


def test_fb_iou_agrees_with_a_confusion_matrix():
    rng = np.random.default_rng(0)
    scores, confusion = Scores(0), np.zeros((2, 2))
    for name in ("cat", "dog"):
        mask, target = rng.random((9, 7)) < 0.4, rng.choice([0, 1, 255], (9, 7))
        scores.add(name, 0, mask, target)
        for truth in (0, 1):
            for found in (0, 1):
                confusion[truth, found] += ((target == truth) & (mask == found)).sum()
    iou = np.diag(confusion) / (confusion.sum(0) + confusion.sum(1) - np.diag(confusion))
    assert scores.fb_iou() == [pytest.approx(iou.mean())]
