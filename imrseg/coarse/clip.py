"""Stage 1 of the paper: coarse masks from CLIP (section 4.1; supplement 1.1).

Works with the ResNet image towers of open_clip (``RN50`` with OpenAI's weights needs the
``RN50-quickgelu`` architecture).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from imrseg.errors import InputError

TEMPERATURE = 100.0  # of the softmax over prompts, fixed as in the released code
SIGMA = 1e-4  # supplement equation 1
CONTRASTS = ("softmax", "cosine")


class ClipCam(nn.Module):
    """Grad-CAM of CLIP's image-text similarity at the last bottleneck.

    The trunk runs without gradients; one vector-Jacobian product goes through the attention pooling
    alone. Pictures of another size than CLIP was trained at are taken whole: the pooling's positional
    embedding is interpolated.

    Args:
        model: an open_clip model whose image tower is a ``ModifiedResNet``.

    Raises:
        InputError: the image tower is of another kind.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        visual: Any = model.visual
        if not hasattr(visual, "attnpool"):
            raise InputError("Grad-CAM needs a ResNet CLIP, such as RN50, RN101 or RN50x4.")
        self.model = model.eval().requires_grad_(False)
        self._visual = visual
        self._texts: dict[tuple[str, ...], Tensor] = {}

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """Unit text features (P, D), remembered per list of prompts."""
        key = tuple(prompts)
        if key not in self._texts:
            import open_clip

            device = next(self.model.parameters()).device
            with torch.no_grad():
                text: Any = self.model
                tokens = open_clip.tokenize(list(prompts), context_length=text.context_length).to(device)
                self._texts[key] = F.normalize(text.encode_text(tokens), dim=-1)
        return self._texts[key]

    def features(self, images: Tensor) -> Tensor:
        """Output of the last bottleneck (B, C, h, w) for CLIP-normalised pictures (B, 3, H, W)."""
        v = self._visual
        with torch.no_grad():
            x = v.stem(images)
            for layer in (v.layer1, v.layer2, v.layer3, v.layer4):
                x = layer(x)
        return x

    def pool(self, features: Tensor) -> Tensor:
        """CLIP's attention pooling at any size: (B, C, h, w) -> unit vectors (B, D)."""
        return F.normalize(functional_call(self._visual.attnpool, self._embedding(features), (features,)), dim=-1)

    def _embedding(self, features: Tensor) -> dict[str, Tensor]:
        whole, grid = self._visual.attnpool.positional_embedding.split([1, self._positions()])
        side, size = round(len(grid) ** 0.5), features.shape[-2:]
        if size != (side, side):
            grid = grid.T.reshape(1, -1, side, side)
            grid = F.interpolate(grid, size, mode="bicubic", align_corners=False).flatten(2)[0].T
        return {"positional_embedding": torch.cat([whole, grid])}

    def _positions(self) -> int:
        return len(self._visual.attnpool.positional_embedding) - 1

    def maps(
        self, images: Tensor, prompts: Sequence[str], targets: Sequence[int] | Tensor, contrast: str = "softmax"
    ) -> Tensor:
        """Grad-CAM of one prompt per picture.

        Args:
            images: CLIP-normalised pictures (B, 3, H, W), sides divisible by 32.
            prompts: texts; with ``contrast="softmax"`` all but the target distract.
            targets: one index into ``prompts`` per picture.
            contrast: explain the target's softmax probability among the prompts ("softmax", at a
                temperature of 100, as the released code does) or its cosine similarity ("cosine").
                A single prompt has no contrast, its probability is always 1: its cosine is taken.

        Returns:
            (B, h, w) at the layer's own size, ReLU, min-max scaled to [0, 1].

        Raises:
            InputError: no prompt, unknown contrast, or targets that do not fit.
        """
        target = torch.as_tensor(targets)
        if contrast not in CONTRASTS:
            raise InputError(f"contrast must be one of {', '.join(CONTRASTS)}, not {contrast!r}.")
        if not prompts or target.shape != (len(images),) or not ((target >= 0) & (target < len(prompts))).all():
            raise InputError(f"Each of the {len(images)} pictures needs one target, 0 to {len(prompts) - 1}.")
        text = self.text_features(prompts)
        features = self.features(images).requires_grad_()
        with torch.enable_grad():
            scores = self.pool(features) @ text.T
            if contrast == "softmax" and len(prompts) > 1:
                scores = (TEMPERATURE * scores).softmax(-1)
            explained = scores.gather(1, target.to(scores.device).unsqueeze(1)).sum()
            (gradient,) = torch.autograd.grad(explained, features)
        weights = gradient.mean((2, 3), keepdim=True)
        return scale((weights * features.detach()).sum(1).relu())

    def similarity(self, images: Tensor, prompts: Sequence[str], targets: Sequence[int] | Tensor) -> Tensor:
        """Pixel-level cosine similarity (supplement 1.1): value and output projections as 1x1 convolutions.

        Arguments as for ``maps``; returns (B, h, w), min-max scaled by supplement equation 1.
        """
        pooling, features = self._visual.attnpool, self.features(images)
        with torch.no_grad():
            dense = F.normalize(pooling.c_proj(pooling.v_proj(features.flatten(2).transpose(1, 2))), dim=-1)
            text = self.text_features(prompts)[torch.as_tensor(targets).to(features.device)]
            s = (dense @ text.unsqueeze(2)).squeeze(2).view(len(images), *features.shape[-2:])
        low, high = s.amin((1, 2), keepdim=True), s.amax((1, 2), keepdim=True)
        return (s - low) / (high - low + SIGMA)


def scale(x: Tensor) -> Tensor:
    """Each map of (B, h, w) stretched to [0, 1]; a flat one becomes 0."""
    x = x - x.amin((1, 2), keepdim=True)
    return x / x.amax((1, 2), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
