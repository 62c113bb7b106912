"""CLIP's image towers, opened before the layer that Grad-CAM explains.

``ResNetTower`` and ``ViTTower`` have one interface: ``side`` and ``stride`` in pixels, ``features``
(everything up to the explained layer, once per picture), ``pool`` (the rest, up to CLIP's image
vector), ``weigh`` (Grad-CAM's sum) and ``dense`` (a vector of CLIP's space at every position).
Pictures of another size than CLIP was trained at are taken whole: positional embeddings are
interpolated.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from imrseg.errors import InputError


class ResNetTower:
    """A ``ModifiedResNet`` of open_clip, explained at the output of its last bottleneck (section 4.1).

    Attributes:
        side: of the pictures that it was trained on, in pixels.
        stride: pixels per position; sides of pictures are multiples of it.
    """

    stride = 32

    def __init__(self, visual: Any) -> None:
        self._visual = visual
        self._native = round((len(visual.attnpool.positional_embedding) - 1) ** 0.5)
        self.side = self._native * self.stride

    def features(self, images: Tensor) -> Tensor:
        """Output of the last bottleneck (B, C, h, w) for CLIP-normalised pictures (B, 3, H, W)."""
        v = self._visual
        x = v.stem(images)
        for layer in (v.layer1, v.layer2, v.layer3, v.layer4):
            x = layer(x)
        return x

    def pool(self, features: Tensor) -> Tensor:
        """CLIP's attention pooling: (B, C, h, w) -> unit vectors (B, D)."""
        pooling, (h, w) = self._visual.attnpool, features.shape[-2:]
        embedding = stretched(pooling.positional_embedding, (self._native, self._native), (h, w))
        return F.normalize(functional_call(pooling, {"positional_embedding": embedding}, (features,)), dim=-1)

    def weigh(self, features: Tensor, gradient: Tensor) -> Tensor:
        """Channels weighted by their mean gradient and added up: (B, h, w)."""
        return (gradient.mean((2, 3), keepdim=True) * features).sum(1)

    def dense(self, features: Tensor) -> Tensor:
        """Value and output projections as 1x1 convolutions (supplement 1.1): unit vectors (B, h, w, D)."""
        pooling = self._visual.attnpool
        return F.normalize(pooling.c_proj(pooling.v_proj(features.permute(0, 2, 3, 1))), dim=-1)


class ViTTower:
    """A ``VisionTransformer`` of open_clip that pools its class token.

    CLIP reads the class token alone after the last block, so that block's patches have no gradient.
    What is explained lies before it, at the output of its first layer norm, through which the class
    token looks at the patches: the layer that CLIP-ES (Lin et al., CVPR 2023) and the grad-cam
    package take. The class token's own row is left out; a channel's weight is its mean gradient over
    the patches. (CLIP-ES explains the mean of the last patches instead of CLIP's own image vector.)

    Attributes:
        side: of the pictures that it was trained on, in pixels.
        stride: of a patch; sides of pictures are multiples of it.
    """

    def __init__(self, visual: Any) -> None:
        self._visual = visual
        self._block = visual.transformer.resblocks[-1]
        self.side = int(visual.image_size[0])
        self.stride = int(visual.patch_size[0])

    def features(self, images: Tensor) -> Tensor:
        """What enters the last block, (B, 1 + h, w, C), for CLIP-normalised pictures (B, 3, H, W).

        Rows 1 to h hold the patches behind the block's first layer norm; row 0 holds the class token
        before it, the same in each column.
        """
        v = self._visual
        x = v.conv1(images)
        b, c, h, w = x.shape
        x = torch.cat([v.class_embedding.expand(b, 1, c), x.flatten(2).transpose(1, 2)], 1)
        x = v.ln_pre(x + stretched(v.positional_embedding, v.grid_size, (h, w)))
        for block in v.transformer.resblocks[:-1]:
            x = block(x)
        patches = self._block.ln_1(x[:, 1:]).view(b, h, w, c)
        return torch.cat([x[:, :1].unsqueeze(2).expand(b, 1, w, c), patches], 1)

    def pool(self, features: Tensor) -> Tensor:
        """The class token through the last block and CLIP's projection: unit vectors (B, D)."""
        v, block = self._visual, self._block
        x = features[:, 0, :1]
        seen = torch.cat([block.ln_1(x), features[:, 1:].flatten(1, 2)], 1)
        x = x + block.ls_1(block.attn(seen[:, :1], seen, seen, need_weights=False)[0])
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
        return F.normalize(v.ln_post(x[:, 0]) @ v.proj, dim=-1)

    def weigh(self, features: Tensor, gradient: Tensor) -> Tensor:
        """Channels weighted by their mean gradient over the patches and added up: (B, h, w)."""
        return (gradient[:, 1:].mean((1, 2), keepdim=True) * features[:, 1:]).sum(-1)

    def dense(self, features: Tensor) -> Tensor:
        """Value and output projections of the last block, then CLIP's: unit vectors (B, h, w, D).

        As in MaskCLIP (Zhou et al., ECCV 2022), but without the block's residual and MLP, as ClearCLIP
        (Lan et al., ECCV 2024) advises: what is left is what supplement 1.1 does with a ResNet.
        """
        v, attention = self._visual, self._block.attn
        value, bias = attention.in_proj_weight.chunk(3)[2], attention.in_proj_bias.chunk(3)[2]
        x = attention.out_proj(F.linear(features[:, 1:], value, bias))
        return F.normalize(v.ln_post(self._block.ls_1(x)) @ v.proj, dim=-1)


Tower = ResNetTower | ViTTower


def open_tower(visual: nn.Module) -> Tower:
    """The image tower of an open_clip model.

    Raises:
        InputError: it is of a kind that cannot be explained.
    """
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    if isinstance(visual, ModifiedResNet) and visual.attnpool is not None:
        return ResNetTower(visual)
    if (
        isinstance(visual, VisionTransformer)
        and visual.attn_pool is None
        and visual.pool_type == "tok"
        and isinstance(visual.transformer.resblocks[-1], ResidualAttentionBlock)
    ):
        return ViTTower(visual)
    raise InputError(
        "Grad-CAM needs a ResNet CLIP that pools by attention, such as RN50, or a ViT CLIP that pools its class"
        f" token, such as ViT-B-16, both of open_clip. This one's image tower is of another kind ({type(visual).__name__})."
    )


def stretched(embedding: Tensor, native: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """A positional embedding (1 + h w, C), of the whole and of a grid, bicubically fitted to another grid."""
    if size == native:
        return embedding
    whole, grid = embedding.split([1, len(embedding) - 1])
    grid = grid.T.reshape(1, -1, *native)
    return torch.cat([whole, F.interpolate(grid, size, mode="bicubic", align_corners=False).flatten(2)[0].T])
