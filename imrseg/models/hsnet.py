"""IMR-HSNet, the paper's own network: HSNet's neck and head with the IMR cell between them.

Two ways of masking. *Faithful* follows the paper and HSNet: the features of the other picture are
masked, one's own are not. *Authors-compatible* does what the released code does, since the released
weights grew up with it: at step 1 each picture's features are masked by the other's coarse mask, and
every later step masks both once more, on top of all masks before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imrseg.errors import InputError, WeightsError
from imrseg.models.backbones import BlockBackbone, hsnet_backbone
from imrseg.models.conv4d import CenterPivotConv4d
from imrseg.models.correlation import RawCorrelation, swap
from imrseg.models.imr import IMRCell
from imrseg.models.refiner import Refiner, RefinerState

CHANNELS = 128  # of C and of the hidden state
GUIDE = 512  # channels of the image features that the cell sees
SIDE = 400  # of the pictures that the released weights take
STRIDE = 8  # of C, the hidden state and the cell's mask


def resize_aligned(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with aligned corners, as HSNet resizes everything."""
    return x if x.shape[-2:] == tuple(size) else F.interpolate(x, size, mode="bilinear", align_corners=True)


@dataclass(frozen=True)
class HSNetPair:
    """What the neck prepares once per pair (see ``refiner.Pair``).

    Attributes:
        correlations: of the three levels, the coarsest first.
        masked: authors-compatible: per level, the product of all masks so far; None before step 1.
    """

    correlations: list[RawCorrelation]
    guide: Tensor
    masked: list[Tensor] | None = None
    mask_size: tuple[int, int] | None = None  # masks stay at the size that they come in


def squeeze_block(inputs: int, outputs: list[int], kernels: list[int], strides: list[int]) -> nn.Sequential:
    """Center-pivot 4D convolutions, each with group norm and ReLU."""
    layers: list[nn.Module] = []
    for channels, kernel, stride in zip(outputs, kernels, strides, strict=True):
        layers += [CenterPivotConv4d(inputs, channels, kernel, stride), nn.GroupNorm(4, channels), nn.ReLU()]
        inputs = channels
    return nn.Sequential(*layers)


class HSNetNeck(nn.Module):
    """Correlations of three levels -> ``C`` (2B, 128, 50, 50), HSNet's squeezing and mixing blocks.

    Args:
        depths: layers in each level, the coarsest first.
        middle: channels of the middle level, projected to 512 for the cell where there are more.
        authors_compatible: see the module's docstring.
    """

    def __init__(self, depths: tuple[int, int, int], middle: int, authors_compatible: bool) -> None:
        super().__init__()
        self.depths, self.authors_compatible = depths, authors_compatible
        outputs = [16, 64, CHANNELS]
        self.squeeze = nn.ModuleList(
            squeeze_block(depth, outputs, kernels, strides)
            for depth, kernels, strides in zip(
                depths, ([3, 3, 3], [5, 3, 3], [5, 5, 3]), ([2, 2, 2], [4, 2, 2], [4, 4, 2]), strict=True
            )
        )
        self.mix = nn.ModuleList(squeeze_block(CHANNELS, [CHANNELS] * 3, [3] * 3, [1] * 3) for _ in range(2))
        self.guide = nn.Conv2d(middle, GUIDE, 1) if middle != GUIDE else nn.Identity()

    def prepare(self, query: list[Tensor], support: list[Tensor]) -> HSNetPair:
        """Features of a pair, finest layer first, as ``hsnet_backbone`` gives them."""
        layers = [torch.cat(pair) for pair in zip(query, support, strict=True)]
        levels, end = [], len(layers)
        for depth in self.depths:
            levels.append(layers[end - depth : end])
            end -= depth
        finest = levels[-1][0].shape[-2:]
        guide = self.guide(resize_aligned(torch.stack(levels[1]).sum(0), (finest[0], finest[1])))
        return HSNetPair([RawCorrelation.of(level) for level in levels], guide)

    def forward(self, pair: HSNetPair, masks: Tensor) -> tuple[Tensor, HSNetPair]:
        fitted = [resize_aligned(masks, c.size) for c in pair.correlations]
        if self.authors_compatible:
            masked = [swap(m) for m in fitted] if pair.masked is None else [
                before * m for before, m in zip(pair.masked, fitted, strict=True)
            ]  # fmt: skip
            pair = replace(pair, masked=masked)
            volumes = [c.cosine(m, m) for c, m in zip(pair.correlations, masked, strict=True)]
        else:
            volumes = [c.cosine(None, m) for c, m in zip(pair.correlations, fitted, strict=True)]
        squeezed = [block(volume) for block, volume in zip(self.squeeze, volumes, strict=True)]
        x = squeezed[0]
        for block, finer in zip(self.mix, squeezed[1:], strict=True):
            x = block(resize_own(x, (finer.shape[2], finer.shape[3])) + finer)
        return x.flatten(4).mean(4), pair


def resize_own(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize the own picture's positions of (B, C, ha, wa, hb, wb) to ``size``."""
    b, c, ha, wa, hb, wb = x.shape
    x = resize_aligned(x.permute(0, 4, 5, 1, 2, 3).reshape(-1, c, ha, wa), size)
    return x.view(b, hb, wb, c, *size).permute(0, 3, 4, 5, 1, 2)


class HSNetHead(nn.Module):
    """Equations 5 and 6: HSNet's decoder as ``Head_0``, then the mix with the mask of the step before."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder1 = nn.Sequential(
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU(), nn.Conv2d(CHANNELS, 64, 3, padding=1), nn.ReLU()
        )
        self.decoder2 = nn.Sequential(
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 2, 3, padding=1)
        )  # fmt: skip
        self.mix = nn.Sequential(nn.Conv2d(3, 10, 1), nn.GELU(), nn.Conv2d(10, 2, 1))

    def forward(self, x: Tensor, pair: HSNetPair, own: Tensor) -> Tensor:
        own = resize_aligned(own, (x.shape[-2], x.shape[-1]))  # as the cell sees it, then up again
        x = self.decoder1(x)
        size = (2 * x.shape[-2], 2 * x.shape[-1])
        x = self.decoder2(resize_aligned(x, size))
        return self.mix(torch.cat([x, resize_aligned(own, size)], 1))


@dataclass(frozen=True)
class HSNetStep:
    """One step's output: logits (B, 2, 100, 100) before any resize, channel 1 = object."""

    query_logits: Tensor
    support_logits: Tensor


class IMRHSNet(nn.Module):
    """The whole network: backbone, neck, IMR cell, head.

    Args:
        backbone: "resnet50", "resnet101" or "vgg16", frozen; untrained until weights are loaded.
        authors_compatible: reproduce the released code, which the released weights need.
    """

    def __init__(self, backbone: str = "resnet50", authors_compatible: bool = False) -> None:
        super().__init__()
        self.name = backbone
        self.backbone: BlockBackbone = hsnet_backbone(backbone)
        neck = HSNetNeck(self.backbone.depths, self.backbone.middle, authors_compatible)
        cell = IMRCell(
            1 + CHANNELS + GUIDE, CHANNELS, squeeze=512, start=(SIDE // STRIDE, SIDE // STRIDE)
        )  # fmt: skip
        self.refiner = Refiner(neck, cell, HSNetHead(), resize_aligned)

    def start(self, query: Tensor, support: Tensor, query_mask: Tensor, support_mask: Tensor) -> RefinerState:
        """The state before step 1.

        Args:
            query, support: ImageNet-normalised pictures (B, 3, 400, 400).
            query_mask, support_mask: coarse masks (B, 1, h, w) in [0, 1].

        Raises:
            InputError: pictures of another size.
        """
        if query.shape[-2:] != (SIDE, SIDE) or support.shape[-2:] != (SIDE, SIDE):
            raise InputError(f"IMR-HSNet takes pictures of {SIDE} x {SIDE}, not {tuple(query.shape[-2:])}.")
        with torch.no_grad():
            features = self.backbone(query), self.backbone(support)
        return self.refiner.start(*features, query_mask, support_mask)

    def forward(
        self, query: Tensor, support: Tensor, query_mask: Tensor, support_mask: Tensor, steps: int = 3
    ) -> list[HSNetStep]:
        """``steps`` refinements of both masks; arguments as for ``start``."""
        state, out = self.start(query, support, query_mask, support_mask), []
        for _ in range(steps):
            state = self.refiner.step(state)
            assert state.logits is not None
            out.append(HSNetStep(*state.logits.chunk(2)))
        return out

    def load_authors_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load weights under the released code's names, with or without ``module.`` in front.

        Raises:
            WeightsError: names or shapes that do not fit this network; the message lists some.
        """
        given = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
        expected = authors_shapes(self)
        wrong = [f"missing {n}" for n in expected if n not in given]
        wrong += [f"unexpected {n}" for n in given if n not in expected and not self.backbone.unused(n)]
        wrong += [
            f"{n} is {tuple(given[n].shape)}, not {tuple(shape)}"
            for n, shape in expected.items()
            if n in given and given[n].shape != shape
        ]
        if wrong:
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise WeightsError(f"These are not the weights of IMR-HSNet on {self.name}: {'; '.join(wrong[:5])}{more}.")
        self.load_state_dict(from_authors(given, self))


# Prefixes of the released code's names, and of ours.
RENAMED = {
    "hpn_learner.encoder_layer4.": "refiner.neck.squeeze.0.",
    "hpn_learner.encoder_layer3.": "refiner.neck.squeeze.1.",
    "hpn_learner.encoder_layer2.": "refiner.neck.squeeze.2.",
    "hpn_learner.encoder_layer4to3.": "refiner.neck.mix.0.",
    "hpn_learner.encoder_layer3to2.": "refiner.neck.mix.1.",
    "conv1024_512.": "refiner.neck.guide.",
    "decoder1.": "refiner.head.decoder1.",
    "decoder2.": "refiner.head.decoder2.",
    "res.": "refiner.head.mix.",
    "state": "refiner.cell.start",
    "backbone.": "backbone.",
}
# The released code splits each gate's group convolution in two and keeps the gates apart.
GATES = {
    "refiner.cell.gates_in": ("convz0", "convr0"),
    "refiner.cell.gates_out": ("convz1", "convz2", "convr1", "convr2"),
    "refiner.cell.candidate_in": ("convh0",),
    "refiner.cell.candidate_out": ("convh1", "convh2"),
}


def authors_shapes(net: IMRHSNet) -> dict[str, torch.Size]:
    """Names and shapes that the released code's state dict has for this network, its classifier aside."""
    shapes = {}
    for ours, tensor in net.state_dict().items():
        owner, _, kind = ours.rpartition(".")
        if owner in GATES:
            for name in GATES[owner]:
                shapes[f"{name}.{kind}"] = torch.Size([len(tensor) // len(GATES[owner]), *tensor.shape[1:]])
        else:
            theirs, prefix = next((t, o) for t, o in RENAMED.items() if ours.startswith(o))
            shapes[theirs + ours.removeprefix(prefix)] = tensor.shape
    return shapes


def from_authors(given: Mapping[str, Tensor], net: IMRHSNet) -> dict[str, Tensor]:
    """The released code's tensors under our names."""
    out = {}
    for ours in net.state_dict():
        owner, _, kind = ours.rpartition(".")
        if owner in GATES:
            out[ours] = torch.cat([given[f"{name}.{kind}"] for name in GATES[owner]])
        else:
            theirs, prefix = next((t, o) for t, o in RENAMED.items() if ours.startswith(o))
            out[ours] = given[theirs + ours.removeprefix(prefix)]
    # Equation 4 writes the candidate's input as [r h, x], the released code as [x, r h].
    name = "refiner.cell.candidate_in.weight"
    x, h = out[name].split([1 + CHANNELS + GUIDE, CHANNELS], 1)
    out[name] = torch.cat([h, x], 1)
    return out
