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


def test_scores_agree_with_hsnets_way_of_counting():
    """HSNet's evaluator, written independently: histograms of predictions with ignored pixels set to 255."""
    rng = np.random.default_rng(1)
    classes, scores = ("cat", "cow", "dog"), Scores(1)
    area = {"intersection": np.zeros((2, 2, 3)), "union": np.zeros((2, 2, 3))}  # step, background and object, class
    for episode in range(12):
        number = int(rng.integers(3)) if episode > 2 else episode
        target = rng.choice([0, 1, 255], (8, 11), p=[0.6, 0.3, 0.1]).astype(np.uint8)
        for step in range(2):
            mask = rng.random((8, 11)) < 0.5
            scores.add(classes[number], step, mask, target)
            prediction = np.where(target == 255, 255, mask)
            bins = [-0.5, 0.5, 1.5]
            both = np.histogram(prediction[prediction == target], bins)[0]
            either = np.histogram(prediction, bins)[0] + np.histogram(target, bins)[0] - both
            area["intersection"][step, :, number] += both
            area["union"][step, :, number] += either
    iou = area["intersection"][:, 1] / area["union"][:, 1]
    np.testing.assert_allclose(scores.miou(), iou.mean(1))
    np.testing.assert_allclose(list(scores.per_class().values()), iou.T)
    summed = area["intersection"].sum(2) / area["union"].sum(2)
    np.testing.assert_allclose(scores.fb_iou(), summed.mean(1))


def test_merged_scores_are_those_of_all_episodes():
    rng = np.random.default_rng(2)
    whole, parts = Scores(0), (Scores(0), Scores(0))
    for i in range(9):
        mask, target = rng.random((5, 5)) < 0.5, rng.choice([0, 1, 255], (5, 5))
        name = "cat" if i < 6 else "dog"  # the second part alone has seen a dog
        for scores in (whole, parts[i >= 4]):
            scores.add(name, 0, mask, target)
    parts[0].merge(parts[1])
    assert parts[0].per_class() == whole.per_class()
    assert parts[0].fb_iou() == whole.fb_iou()
