"""A handful of drawn pictures to train on."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Four pictures each of two classes, red squares and blue bars."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, colour in (("person", (220, 30, 30)), ("mug", (30, 30, 220))):
        for kind in ("images", "masks"):
            (root / name / kind).mkdir(parents=True)
        for i in range(4):
            mask = np.zeros((90, 120), np.uint8)
            y, x = rng.integers(0, 40, 2)
            mask[y : y + 40, x : x + 60] = 1
            pixels = np.where(mask[..., None], colour, rng.integers(90, 160, (90, 120, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"{name}/images/{name}{i}.png")
            Image.fromarray(mask).save(root / f"{name}/masks/{name}{i}.png")
    return root


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Norms are measured on as little as will do."""
    monkeypatch.setattr("imrseg.training.MEASURED", 1)
