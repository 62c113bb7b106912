"""IMR-PFENet: the loop around PFENet (Tian et al., TPAMI 2020) in place of HSNet (paper section 5.5, table 6).

The paper says: PFENet's prior generation and feature enrichment module (FEM) are the neck, its last
convolutions the head, its hyperparameters stay. What it leaves open, and what is done here:

- The neck ends with the FEM, so ``C`` is the enriched feature and has the state's 256 channels. The
  head has PFENet's four convolutions behind the FEM, as HSNet's has four: a residual block of two,
  then its classifier.
- The cell stands where IMR-HSNet has it, between neck and head: equation 4 reads the own mask, ``C``
  and, for the image features ``F``, PFENet's reduction of the own picture. The state starts from zero.
- Equation 7 supervises the mask of each step. PFENet's classifiers inside the FEM, which serve an
  auxiliary loss of its training alone, are left out.
- Either picture is the query of the other, with one set of weights.
- PFENet masks with zeros and ones. The prior here multiplies the cosine by the other picture's mask:
  the same for such masks, and a soft mask keeps its meaning, which it would lose if it scaled the
  features before they are normalised. So no mask enters the backbone (PFENet's code also masks
  layer4's input, too), and cosines are made once per pair. The prior is training-free,
  in PFENet's words: no gradient runs through it; masks have theirs through the prototype, the cell
  and equation 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imrseg.errors import InputError
from imrseg.models.backbones import BlockBackbone, hsnet_backbone
from imrseg.models.correlation import swap
from imrseg.models.hsnet import check_name, resize_aligned
from imrseg.models.imr import IMRCell, partly
from imrseg.models.refiner import Refiner, RefinerState, Resize

BACKBONES = ("resnet50", "resnet101")
CHANNELS = 256  # of everything behind the backbone, as in PFENet
SIDE = 473  # of the pictures, in PFENet
STRIDE = 8  # of all features; sides are multiples of it, plus one, so that aligned corners meet
SCALES = (60, 30, 15, 8)  # sides that the FEM sees 60 x 60 features at; in proportion for others
ZOOM = 2  # from features to logits, as in IMR-HSNet

Features = dict[str, Tensor]  # "middle" (B, M, h, w) and "high" (B, D, h', w')


def pfenet_backbone(name: str) -> BlockBackbone:
    """A random, frozen ResNet whose layers 2, 3 and 4 all have stride 8: dilated by 2 and 4, as in PFENet."""
    check_name("backbone for PFENet", name, BACKBONES)
    backbone = hsnet_backbone(name)
    for layer, rate in (("layer3", 2), ("layer4", 4)):
        for block in getattr(backbone, layer):
            block.conv2.dilation = block.conv2.padding = (rate, rate)
            block.conv2.stride = (1, 1)
            if block.downsample is not None:
                block.downsample[0].stride = (1, 1)
    return backbone


@dataclass(frozen=True)
class Prior:
    """PFENet's prior generation: how much each position is like anything of the other picture's object.

    Attributes:
        cosine: of high-level features of all positions of query and support, (B, Nq, Ns).
        size: (height, width) with N = height * width.
    """

    cosine: Tensor
    size: tuple[int, int]

    @classmethod
    @torch.no_grad()
    def of(cls, high: Tensor) -> Prior:
        """From features (2B, D, h, w), queries before supports."""
        query, support = F.normalize(high.flatten(2), dim=1).chunk(2)
        return cls(query.transpose(1, 2) @ support, (high.shape[-2], high.shape[-1]))

    @torch.no_grad()
    def __call__(self, masks: Tensor) -> Tensor:
        """Both pictures' priors (2B, 1, h, w) in [0, 1], each for the other's of ``masks`` (2B, 1, h, w).

        The largest masked cosine of each position, then scaled to 0..1 over the picture.
        """
        query, support = masks.flatten(2).chunk(2)
        likeness = [(self.cosine * support).amax(2), (self.cosine * query.transpose(1, 2)).amax(1)]
        found = torch.cat(likeness)
        low, high = found.amin(1, keepdim=True), found.amax(1, keepdim=True)
        return ((found - low) / (high - low + 1e-7)).view(len(masks), 1, *self.size)


def conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    """A convolution that keeps the size; none of PFENet's has a bias."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)


class FEM(nn.Module):
    """PFENet's feature enrichment module.

    At each scale the picture's features meet the other's prototype and the prior (inter-source
    enrichment) and what the finer scale found (inter-scale interaction); all scales together make the
    enriched feature (information concentration).

    Args:
        priors: maps of the prior, one in PFENet.
    """

    def __init__(self, channels: int, resize: Resize, priors: int = 1) -> None:
        super().__init__()
        self.channels, self.resize = channels, resize
        self.merge = nn.ModuleList(conv(2 * channels + priors, channels, 1) for _ in SCALES)
        self.inherit = nn.ModuleList(conv(2 * channels, channels, 1) for _ in SCALES[1:])
        self.interact = nn.ModuleList(
            nn.Sequential(conv(channels, channels, 3), nn.ReLU(), conv(channels, channels, 3), nn.ReLU())
            for _ in SCALES
        )
        self.concentrate = nn.Sequential(conv(len(SCALES) * channels, channels, 1), nn.ReLU())

    def prepare(self, own: Tensor) -> list[Tensor]:
        """What features (2B, C, h, w) add to the merge of each scale, which is linear before its ReLU."""
        sizes = [[max(1, round(side * scale / SCALES[0])) for side in own.shape[-2:]] for scale in SCALES]
        merges: list[nn.Conv2d] = list(self.merge)
        return [
            partly([merge], F.adaptive_avg_pool2d(own, size), [slice(self.channels)])
            for merge, size in zip(merges, sizes, strict=True)
        ]

    def forward(self, prepared: list[Tensor], prototype: Tensor, prior: Tensor) -> Tensor:
        """The enriched feature (2B, C, h, w).

        Args:
            prepared: see ``prepare``. prototype: (2B, C, 1, 1). prior: (2B, priors, h, w).
        """
        c, whole = self.channels, (prepared[0].shape[-2], prepared[0].shape[-1])
        merges: list[nn.Conv2d] = list(self.merge)
        found: list[Tensor] = []
        for i, (merge, own) in enumerate(zip(merges, prepared, strict=True)):
            size = (own.shape[-2], own.shape[-1])
            guided = partly([merge], prototype, [slice(c, 2 * c)])
            guided = guided + partly([merge], self.resize(prior, size), [slice(2 * c, None)])
            x = (own + guided).relu()
            if found:
                x = self.inherit[i - 1](torch.cat([x, self.resize(found[-1], size)], 1)).relu() + x
            found.append(self.resize(self.interact[i](x) + x, whole))
        return self.concentrate(torch.cat(found, 1))


@dataclass(frozen=True)
class PFENetPair:
    """What the neck prepares once per pair (see ``refiner.Pair``).

    Attributes:
        guide: either picture's features as the own one, (2B, C, h, w). others: as the other one.
        merged: the FEM's part. compared: the prior generation's.
    """

    guide: Tensor
    others: Tensor
    merged: list[Tensor]
    compared: Any

    @property
    def mask_size(self) -> tuple[int, int]:
        return (ZOOM * self.guide.shape[-2], ZOOM * self.guide.shape[-1])


def masked_mean(features: Tensor, mask: Tensor) -> Tensor:
    """The prototype (B, C, 1, 1) of an object: the mean of features (B, C, h, w) under its mask (B, 1, h, w)."""
    return (features * mask).sum((2, 3), keepdim=True) / (mask.sum((2, 3), keepdim=True) + 5e-4)


class PFENetNeck(nn.Module):
    """Features of a pair of images -> ``C`` (2B, channels, h, w): prior generation and FEM.

    Args:
        middle: channels of the features that are reduced.
        channels: of what they are reduced to.
        dropout: of the reduced channels, in training.
        resize: how masks and features change size.
        priors: maps that the prior generation gives.
    """

    def __init__(self, middle: int, channels: int, dropout: float, resize: Resize, priors: int = 1) -> None:
        super().__init__()
        self.resize = resize
        self.reduce = nn.ModuleDict(
            {
                role: nn.Sequential(conv(middle, channels, 1), nn.ReLU(), nn.Dropout2d(dropout))
                for role in ("own", "other")
            }
        )
        self.fem = FEM(channels, resize, priors)

    def layers(self, features: Features) -> Features:
        """What the backbone gives as "middle", and what ``compare`` takes."""
        return features

    def compare(self, layers: Features) -> Any:
        """What the prior generation needs of ``layers`` of both pictures, queries before supports: made once."""
        return Prior.of(layers["high"])

    def prior(self, compared: Any, masks: Tensor) -> Tensor:
        """Both pictures' priors (2B, priors, h, w)."""
        return compared(self.resize(masks, compared.size))

    def prepare(self, query: Features, support: Features) -> PFENetPair:
        own, other = self.layers(query), self.layers(support)
        both = {name: torch.cat([own[name], other[name]]) for name in own}
        guide = self.reduce["own"](both["middle"])
        others = self.reduce["other"](both["middle"])
        return PFENetPair(guide, others, self.fem.prepare(guide), self.compare(both))

    def forward(self, pair: PFENetPair, masks: Tensor) -> tuple[Tensor, PFENetPair]:
        size = (pair.guide.shape[-2], pair.guide.shape[-1])
        prototype = swap(masked_mean(pair.others, self.resize(masks, size)))
        prior = self.resize(self.prior(pair.compared, masks), size)
        return self.fem(pair.merged, prototype, prior), pair


class PFENetHead(nn.Module):
    """Equations 5 and 6: PFENet's last convolutions as ``Head_0``, then the mix with the mask of the step before."""

    def __init__(self, channels: int, dropout: float, resize: Resize) -> None:
        super().__init__()
        self.resize = resize
        self.block = nn.Sequential(conv(channels, channels, 3), nn.ReLU(), conv(channels, channels, 3), nn.ReLU())
        self.classify = nn.Sequential(
            conv(channels, channels, 3), nn.ReLU(), nn.Dropout2d(dropout), nn.Conv2d(channels, 2, 1)
        )
        self.mix = nn.Sequential(nn.Conv2d(3, 10, 1), nn.GELU(), nn.Conv2d(10, 2, 1))

    def forward(self, x: Tensor, pair: PFENetPair, own: Tensor) -> Tensor:
        x = self.resize(self.classify(self.block(x) + x), pair.mask_size)
        return self.mix(torch.cat([x, own], 1))


class IMRPFENet(nn.Module):
    """The whole network: backbone, neck, IMR cell, head.

    Args:
        backbone: "resnet50" (the paper's) or "resnet101". It is frozen, and random until weights are
            loaded; ImageNet's by ``backbone.load_torchvision``.

    Attributes:
        settings: the arguments, from which ``IMRPFENet(**settings)`` builds the same network.

    Raises:
        InputError: another backbone.
    """

    def __init__(self, backbone: str = "resnet50") -> None:
        super().__init__()
        self.settings = {"backbone": backbone}
        self.backbone = pfenet_backbone(backbone)
        neck = PFENetNeck(512 + 1024, CHANNELS, 0.5, resize_aligned)
        cell = IMRCell(1 + CHANNELS + CHANNELS, CHANNELS, squeeze=512)  # the inputs and squeeze of IMR-HSNet's
        self.refiner = Refiner(neck, cell, PFENetHead(CHANNELS, 0.1, resize_aligned), resize_aligned)

    def fuse(self) -> IMRPFENet:
        """Prepare loaded weights for inference (``BlockBackbone.fuse``); returns itself."""
        self.backbone.fuse()
        return self

    def takes(self, side: int) -> bool:
        """Whether a picture may have a side of so many pixels."""
        return side % STRIDE == 1

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Features:
        """ImageNet-normalised pictures (B, 3, 8m + 1, 8n + 1) -> features at m + 1 by n + 1 positions.

        "middle" are the outputs of layers 3 and 2, "high" those of layer 4.

        Raises:
            InputError: pictures of another size.
        """
        for side in pictures.shape[-2:]:
            if not self.takes(side):
                raise InputError(
                    f"IMR-PFENet takes pictures of {SIDE} x {SIDE}, or with sides of a multiple of {STRIDE}"
                    f" plus one, not of side {side}."
                )
        blocks = self.backbone(pictures)
        _, third, second = self.backbone.depths
        middle = torch.cat([blocks[second + third - 1], blocks[second - 1]], 1)
        return {"middle": middle.relu_(), "high": blocks[-1].relu()}

    def forward(
        self, query: Tensor, support: Tensor, query_mask: Tensor, support_mask: Tensor, steps: int = 2
    ) -> list[RefinerState]:
        """``steps`` refinements of both masks; the state after each, its logits (2B, 2, 120, 120) for 473 x 473.

        Args:
            query, support: see ``features``; of one shape.
            query_mask, support_mask: coarse masks (B, 1, h, w) in [0, 1].

        Raises:
            InputError: pictures of another size, or of two.
        """
        if query.shape != support.shape:
            raise InputError(
                f"Query and support must have the same shape, not {tuple(query.shape)} and {tuple(support.shape)}."
            )
        return self.refiner(self.features(query), self.features(support), query_mask, support_mask, steps)
