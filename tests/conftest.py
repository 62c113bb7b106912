"""What all tests share: one segmenter, and photographs that an installed package ships."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from imrseg import Segmenter, weights

# The tests' inputs are small: more threads cost more than they bring, above all on a busy machine.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def segmenter() -> Segmenter:
    return Segmenter.from_preset("lite", device="cpu")


@pytest.fixture(scope="session")
def cat() -> np.ndarray:
    """Photograph of a cat's face, uint8 (300, 451, 3)."""
    return skimage.data.chelsea()


@pytest.fixture(scope="session")
def cup() -> np.ndarray:
    """Photograph of a coffee cup on a table, uint8 (200, 300, 3)."""
    return skimage.data.coffee()[::2, ::2].copy()


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    return weights.find("lite.safetensors")


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Saves pixels under a name in the test's own folder; returns the path."""

    def save_as(pixels: np.ndarray, name: str, **options) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, **options)
        return path

    return save_as
