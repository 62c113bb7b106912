"""Correlations of masked features, from raw products that are made once per pair of pictures.

Masking a feature ``f`` by ``M`` and normalising it gives ``M f / (M |f| + eps)``: the raw feature
times a gain per position. So the correlation at any step is the raw product times the two
positions' gains, exactly, and its other direction is the transpose. Masking the correlation itself
is one more gain: ``M / (|f| + eps)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from imrseg.models import memory

EPSILON = 1e-5  # HSNet's
PART = 1_000_000  # numbers of a volume that a processor makes at a time, so that they stay in its cache


@dataclass(frozen=True)
class RawCorrelation:
    """Raw products of a pair's features in L layers of one size; both directions stacked.

    Attributes:
        product: relu(f_own . f_other), (2B, N, L, N), own positions first, queries before supports.
        thinned: the same for every ``stride``-th of the other's rows and columns, (2B, N, N', L).
        norm: lengths |f| of each position's features, (2B, L, N).
        size: (height, width) with N = height * width.
    """

    product: Tensor
    thinned: Tensor
    norm: Tensor
    size: tuple[int, int]
    stride: int

    @classmethod
    @torch.no_grad()
    def of(
        cls, query: list[Tensor], support: list[Tensor], stride: int, dtype: torch.dtype = torch.float32
    ) -> RawCorrelation:
        """From either picture's layers of features (B, C, h, w), products in ``dtype``; the backbone is frozen."""
        pairs, size = len(query[0]), (query[0].shape[-2], query[0].shape[-1])
        positions = size[0] * size[1]
        out = memory.empty((2 * pairs, positions, len(query), positions), dtype, query[0].device)
        count = positions if out.is_cuda else max(1, PART // positions)
        for k, layers in enumerate(zip(query, support, strict=True)):
            # Of channels-last layers these are no copies.
            f, g = (layer.flatten(2).transpose(1, 2).to(dtype).contiguous() for layer in layers)  # (B, N, C)
            for i in range(pairs):
                for start in range(0, positions, count):
                    rows = slice(start, start + count)
                    product = multiply(f[i], g[i, rows]).clamp_min_(0)
                    out[i, :, k, rows] = product
                    out[i + pairs, rows, k] = product.t()
        norm = torch.cat([lengths(query), lengths(support)])
        return cls(out, thin(out, size, stride).transpose(2, 3).contiguous(), norm, size, stride)

    def gain(self, mask: Tensor | None = None) -> Tensor:
        """What masking features by ``mask`` (2B, 1, h, w) and normalising them does: (2B, L, N); None: no mask."""
        if mask is None:
            return 1 / (self.norm + EPSILON)
        m = mask.flatten(2)
        return m / (m * self.norm + EPSILON)

    def scaled(self, own: Tensor, other: Tensor) -> list[Volume]:
        """Each picture's correlations with its partner, for gains (2B, L, N) of pictures as the own or the other one."""
        own, other = own.to(self.product.dtype), swap(other).to(self.product.dtype)
        thinned = thin(other, self.size, self.stride).transpose(1, 2).contiguous()
        pictures = zip(self.product, self.thinned, own, other, thinned, strict=True)
        return [Volume(*picture, self.size, self.stride) for picture in pictures]


@dataclass(frozen=True)
class Volume:
    """Correlations of one picture's positions with the other's: products times gains, made where they are used.

    Attributes:
        product, thinned: (N, L, N) and (N, N', L), own positions first.
        own, other: gains (L, N) of either picture's positions; thinned_other: (N', L).
        size: (height, width) with N = height * width.
        stride: every ``stride``-th row and column of the other's positions is in ``thinned``.
    """

    product: Tensor
    thinned: Tensor
    own: Tensor
    other: Tensor
    thinned_other: Tensor
    size: tuple[int, int]
    stride: int

    def parts(self) -> Iterator[Tensor]:
        """The volume as (N, L, h, w), some of the own positions at a time."""
        whole = self.product.is_cuda or torch.is_grad_enabled()
        count = len(self.product) if whole else max(1, PART // self.product[0].numel())
        for product, own in zip(self.product.split(count), self.own.t().split(count), strict=True):
            yield times(product * own.unsqueeze(2), self.other).view(*own.shape, *self.size)

    def kept(self) -> Tensor:
        """The volume at the kept of the other's positions, (1, h, w, h', w', L)."""
        rows, columns = (-(-side // self.stride) for side in self.size)
        own = self.own.t().repeat(1, columns).unsqueeze(1)  # in long rows: short ones are slow
        kept = self.thinned.view(len(own), rows, -1) * own
        return times(kept, self.thinned_other.view(rows, -1)).view(1, *self.size, rows, columns, -1)


def times(x: Tensor, factor: Tensor) -> Tensor:
    """``x * factor``, in the memory of ``x`` unless gradients are wanted."""
    return x * factor if torch.is_grad_enabled() else x.mul_(factor)


def plus(x: Tensor, term: Tensor) -> Tensor:
    """``x + term``, in the memory of ``x`` unless gradients are wanted."""
    return x + term if torch.is_grad_enabled() else x.add_(term)


def thin(x: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Every ``stride``-th row and column of positions (..., height * width): (..., N')."""
    return x.view(*x.shape[:-1], *size)[..., ::stride, ::stride].flatten(-2)


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """(N, C) and (M, C) -> their products (N, M)."""
    if a.is_cuda:
        return a @ b.t()
    # On processors faster than a matrix product: a 1x1 convolution of a channels-last image of one row.
    return F.conv2d(a[None, None].permute(0, 3, 1, 2), b[:, :, None, None])[0, :, 0].t()


def lengths(layers: list[Tensor]) -> Tensor:
    """L layers of features (B, C, h, w) -> each position's length, (B, L, h * w)."""
    return torch.stack([torch.linalg.vector_norm(layer, dim=1).flatten(1) for layer in layers], 1)


def swap(x: Tensor) -> Tensor:
    """Supports before queries, for queries before supports."""
    query, support = x.chunk(2)
    return torch.cat([support, query])
