"""Stage 1 of ``lite``: label text -> coarse mask, by closed-form Grad-CAM (paper section 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

DISTRACTION = 0.25  # share of what the picture shows anyway that is taken off
FAINT = 1e-3  # mean of a map under which nothing speaks for the label


class LiteCam(nn.Module):
    """Grad-CAM of a label's log-probability at the last layer of a global-average-pooled net.

    A label is a mixture ``a`` over classes (``Lexicon.meaning``). With logits ``z`` of the pooled
    features, the target is

        log sum_k a_k exp(z_k)  -  d logsumexp(z)  -  (1 - d) mean(z),       d = DISTRACTION

    that is: the label's classes against everything the picture shows. Its gradient with respect to
    the features needs no backward pass: it is ``(r - d p - (1 - d) / K) W``, the same at every
    position, where ``p`` is the softmax of ``z`` and ``r`` that of ``log a + z``: the picture itself
    chooses among the classes a word may mean (which breed of dog, which kind of mouse).

    Distractors, mixtures ``b`` of other things in the picture, take over half of what is taken off for
    what it shows: ``d logsumexp(z)`` becomes ``d / 2 logsumexp(z)`` and d / 2 of the mean of
    ``log sum_k b_k exp(z_k)`` over them.

    Args:
        weight: class vectors (K, C). bias: (K,).
        imagenet: how many of the K classes, from the first, count in the mean.
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
        label, shown = torch.logsumexp(mixture.log() + z, 1), torch.logsumexp(z, 1)
        if distractors is not None and len(distractors):
            shown = (shown + torch.logsumexp(distractors.log() + z.unsqueeze(1), 2).mean(1)) / 2
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
        label, shown = (mixture.log() + z).softmax(1), z.softmax(1)
        cam = self._map(features, label, shown)
        evidence = cam.mean((1, 2, 3)).clamp_min(FAINT).log()
        if distractors is not None and len(distractors):
            shown = (shown + (distractors.log() + z.unsqueeze(1)).softmax(2).mean(1)) / 2
            cam = self._map(features, label, shown)
        return cam / cam.amax((2, 3), keepdim=True).clamp_min(1e-6), evidence

    def _map(self, features: Tensor, label: Tensor, shown: Tensor) -> Tensor:
        """Grad-CAM (B, 1, h, w), >= 0, of the target whose derivatives by the logits are ``label - d shown - ...``."""
        gradient = (label - DISTRACTION * shown) @ self.weight - (1 - DISTRACTION) * self.mean
        return torch.einsum("bc,bchw->bhw", gradient, features).relu().unsqueeze(1)
