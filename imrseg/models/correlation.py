"""Correlations of masked features, from raw products that are made once per pair of pictures.

Masking a feature ``f`` by ``M`` and normalising it gives ``M f / (M |f| + eps)``: the raw feature
times a gain per position. So the correlation at any step is the raw product times the two
positions' gains, exactly, and its other direction is the transpose.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = 1e-5  # HSNet's


@dataclass(frozen=True)
class RawCorrelation:
    """Raw products of a pair's features in L layers of one size; both directions stacked.

    Attributes:
        product: relu(f_own . f_other), (2B, L, N, N).
        norm: lengths |f| of each position's features, (2B, L, N), queries before supports.
        size: (height, width) with N = height * width.
    """

    product: Tensor
    norm: Tensor
    size: tuple[int, int]

    @classmethod
    def of(cls, layers: list[Tensor]) -> RawCorrelation:
        """From layers of features (2B, C, h, w), queries before supports."""
        f = torch.stack(layers, 1).flatten(3)
        query, support = f.chunk(2)
        product = (query.transpose(2, 3) @ support).relu()
        product = torch.cat([product, product.transpose(2, 3)])
        return cls(product, f.norm(dim=2), (layers[0].shape[-2], layers[0].shape[-1]))

    def gain(self, mask: Tensor | None) -> Tensor:
        """What masking by ``mask`` (2B, 1, h, w) at this size and normalising does: (2B, L, N); None: no mask."""
        if mask is None:
            return 1 / (self.norm + EPSILON)
        m = mask.flatten(2)
        return m / (m * self.norm + EPSILON)

    def cosine(self, own: Tensor | None, other: Tensor) -> Tensor:
        """Correlations (2B, L, h, w, h, w) of features masked by ``own`` with the other's, masked by ``other``.

        Both masks are (2B, 1, h, w), in the order of the pictures that they belong to: queries
        before supports.
        """
        gain = swap(self.gain(other))
        out = self.product * self.gain(own).unsqueeze(3) * gain.unsqueeze(2)
        return out.view(*out.shape[:2], *self.size, *self.size)


def swap(x: Tensor) -> Tensor:
    """Supports before queries, for queries before supports."""
    query, support = x.chunk(2)
    return torch.cat([support, query])
