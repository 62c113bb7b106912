import cv2
import numpy as np

from imrseg import bench


def test_drawn_photograph_weighs_what_a_photograph_does():
    pixels = bench.photograph((600, 800), seed=0)
    assert pixels.shape == (600, 800, 3)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, bench.photograph((600, 800), seed=0))
    bits = 8 * len(cv2.imencode(".jpg", pixels)[1]) / (600 * 800)
    assert 1 < bits < 6  # a telephone's JPEGs have 2 to 4 bits per pixel


def test_every_stage_is_timed(monkeypatch, segmenter):
    monkeypatch.setattr(bench, "SIZE", (300, 400))
    monkeypatch.setattr(bench.Segmenter, "from_preset", lambda *_, **__: segmenter)
    remember = segmenter.remember
    measured = bench.bench("lite", "cpu", runs=2)
    stages = ["decode", "features", "coarse", "step1", "step2", "step3", "output", "total"]
    assert list(measured["seconds"]) == stages
    assert all(s > 0 for s in measured["seconds"].values())
    assert measured["new_label_seconds"] > 0
    assert segmenter.remember == remember
    for stage in stages:
        assert stage in bench.table(measured)


def test_the_side_is_told():
    measured = {**bench.bench("lite", "cpu", side=128, runs=1)}
    assert measured["lite_side"] == 128
    assert "pixels seen at 128\n" in bench.table(measured)
