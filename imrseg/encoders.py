"""Frozen image networks as the two stages use them: pictures in, features by name out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from imrseg.images import Picture, to_centre, to_square

Features = dict[str, Tensor]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation of the channels, for 0..1


@dataclass(frozen=True, eq=False)
class Encoder:
    """An image network and how it is shown a picture.

    Attributes:
        name: two encoders of one name give the same features, which are then computed once.
        encode: pictures (B, 3, side, side), float32 in 0..255 -> features, batch first.
        side: of the square that it sees, in pixels.
        device: where it runs.
        centre: see the square in the middle of the picture, as CLIP's own preprocessing does, in place
            of the whole picture stretched to a square.
    """

    name: str
    encode: Callable[[Tensor], Features]
    side: int
    device: torch.device
    centre: bool = False

    def __call__(self, pictures: Sequence[Picture]) -> Features:
        look = to_centre if self.centre else to_square
        batch = torch.stack([look(p, self.side) for p in pictures])
        if self.device.type == "cuda":
            batch = batch.pin_memory()  # else the copy waits for the device
        with torch.inference_mode():
            return self.encode(batch.to(self.device, non_blocking=True))


def normalise(images: Tensor, statistics: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    """Images (B, 3, H, W) in 0..255 with the mean and deviation of ``statistics`` taken off each channel."""
    mean, deviation = (images.new_tensor(s).view(1, 3, 1, 1) for s in statistics)
    return (images / 255 - mean) / deviation
