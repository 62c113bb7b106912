"""Stage 1 of ``lite``: label text -> coarse mask, by closed-form Grad-CAM (paper section 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

DISTRACTION = 0.25  # share of what the picture shows anyway that is taken off
MILDNESS = 2.0  # temperature of the contest at each position
FAINT = 1e-5  # mean of a map under which nothing speaks for the label


class LiteCam(nn.Module):
    """Grad-CAM of a label's log-probability at the last layer of a global-average-pooled net.

    A label is a mixture ``a`` over classes (``Lexicon.meaning``). With logits ``z`` of the pooled
    features, the target is

        l(a)  -  d logsumexp(z)  -  (1 - d) mean(z),       d = DISTRACTION

    that is: the label's classes against everything the picture shows. ``l(a)`` is ``log sum_k a_k exp(z_k)``
    for a word that means classes of ImageNet alone: the picture itself chooses among them (which breed of
    dog, which kind of mouse). The everyday classes behind them do not exclude each other, and a picture
    that shows a sky has not said that "rocket" means it: they keep their share ``a_k``, and the rest ``S`` is
    chosen from, so ``l(a) = S log sum_named a_k / S exp(z_k) + sum_everyday a_k z_k``.

    The gradient with respect to the features needs no backward pass: it is ``(r - d p - (1 - d) / K) W``, the
    same at every position, where ``p`` is the softmax of ``z`` and ``r`` the gradient of ``l``.

    Since it is the same everywhere, the map of "sofa" is high on the dog that lies on one, for dogs and sofas are
    seen together. Beyond Grad-CAM, therefore, each position is contested: with its own logits ``u``, which are those
    of a picture that shows nothing else, the map is multiplied by ``sigmoid((own - others) / t)``, t = ``MILDNESS``,

        own = log sum_k r_k exp(u_k / t),       others = log sum_(k: a_k = 0) p_k exp(u_k / t)

    that is: by the probability, softened, that it shows the label's classes and not what else the picture shows.

    Distractors, mixtures ``b`` of other things in the picture, take over half of what is taken off for
    what it shows: ``d logsumexp(z)`` becomes ``d / 2 logsumexp(z)`` and d / 2 of the mean of ``l(b)`` over them.
    They contest positions, too.

    Args:
        weight: class vectors (K, C). bias: (K,).
        imagenet: how many of the K classes, from the first, are ImageNet's; these count in the mean.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, imagenet: int = 1000) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("mean", weight[:imagenet].mean(0))
        self.imagenet = imagenet

    def target(self, features: Tensor, mixture: Tensor, distractors: Tensor | None = None) -> Tensor:
        """The scalar that is explained, (B,); arguments as for ``forward``."""
        z = features.mean((2, 3)) @ self.weight.T + self.bias
        label, shown = self._likelihood(mixture, z), torch.logsumexp(z, 1)
        if distractors is not None and len(distractors):
            shown = (shown + self._likelihood(distractors, z.unsqueeze(1)).mean(1)) / 2
        return label - DISTRACTION * shown - (1 - DISTRACTION) * z[:, : self.imagenet].mean(1)

    def forward(self, features: Tensor, mixture: Tensor, distractors: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Coarse masks and evidence.

        Args:
            features: last feature map (B, C, h, w) before pooling.
            mixture: (B, K), rows sum to 1.
            distractors: (D, K), of other things in the pictures; none: all classes alike.

        Returns:
            Soft masks (B, 1, h, w) in [0, 1], each with its maximum at 1 (all zero where no
            position speaks for the label), and how much speaks for the label (B,): the logarithm of
            the map's mean before it is scaled, distractors apart. That tells better than the label's
            probability whether the label is there at all: other things in the picture do not take it away.
        """
        z = features.mean((2, 3)) @ self.weight.T + self.bias
        label, shown = self._chosen(mixture, z), z.softmax(1)
        places = torch.einsum("kc,bchw->bkhw", self.weight, features) + self.bias[:, None, None]
        foreign = mixture == 0

        def contested(shown: Tensor) -> Tensor:
            return self._map(features, label, shown) * posterior(places, label, shown * foreign)

        cam = contested(shown)
        evidence = cam.mean((1, 2, 3)).clamp_min(FAINT).log()
        if distractors is not None and len(distractors):
            cam = contested((shown + self._chosen(distractors, z.unsqueeze(1)).mean(1)) / 2)
        return to_one(cam), evidence

    def _likelihood(self, mixture: Tensor, z: Tensor) -> Tensor:
        """``l`` of mixtures (..., K), given logits (..., K)."""
        named, everyday = mixture[..., : self.imagenet], mixture[..., self.imagenet :]
        share, tiny = named.sum(-1, keepdim=True), torch.finfo(z.dtype).tiny  # for there is no logarithm of zero
        meant = (named / share.clamp_min(tiny)).clamp_min(tiny).log()
        chosen = share[..., 0] * torch.logsumexp(meant + z[..., : self.imagenet], -1)
        return chosen + (everyday * z[..., self.imagenet :]).sum(-1)

    def _chosen(self, mixture: Tensor, z: Tensor) -> Tensor:
        """``r``, the gradient of ``l`` by the logits: (..., K)."""
        named, everyday = mixture[..., : self.imagenet], mixture[..., self.imagenet :]
        meant = named.clamp_min(torch.finfo(z.dtype).tiny).log()
        chosen = (meant + z[..., : self.imagenet]).softmax(-1) * named.sum(-1, keepdim=True)
        return torch.cat([chosen, everyday.expand(*chosen.shape[:-1], -1)], -1)

    def _map(self, features: Tensor, label: Tensor, shown: Tensor) -> Tensor:
        """Grad-CAM (B, 1, h, w), >= 0, of the target whose derivatives by the logits are ``label - d shown - ...``."""
        gradient = (label - DISTRACTION * shown) @ self.weight - (1 - DISTRACTION) * self.mean
        return torch.einsum("bc,bchw->bhw", gradient, features).relu().unsqueeze(1)


def posterior(places: Tensor, label: Tensor, others: Tensor) -> Tensor:
    """The probability that each position shows the label and not something else, softened: (B, 1, h, w) in [0, 1].

    Args:
        places: logits of each position, (B, K, h, w).
        label, others: weights of the classes, (B, K).
    """
    tiny = torch.finfo(places.dtype).tiny

    def speaks(weights: Tensor) -> Tensor:
        return torch.logsumexp(weights.clamp_min(tiny).log()[:, :, None, None] + places / MILDNESS, 1, keepdim=True)

    return ((speaks(label) - speaks(others)) / MILDNESS).sigmoid()


def to_one(maps: Tensor) -> Tensor:
    """Maps (B, 1, h, w), each divided by its maximum; none where that is zero."""
    return maps / maps.amax((2, 3), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
