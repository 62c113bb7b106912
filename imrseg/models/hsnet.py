"""IMR-HSNet, the paper's own network: HSNet's neck and head with the IMR cell between them.

Two modes:

- *Faithful* follows the paper (section 4.2, supplement 1.2) and HSNet. The other picture is masked by
  its mask of the step before, one's own picture is not masked; nothing but masks and hidden states
  passes from step to step. The hidden state starts from zero, so pictures may have other sizes.
- *Authors-compatible* does what the released code does, since the released weights grew up with it:
  at step 1 each picture's features are masked by the other's coarse mask, every later step masks both
  once more, on top of all masks before, and the hidden state starts from a learned one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imrseg.errors import InputError, WeightsError
from imrseg.models.backbones import BlockBackbone, hsnet_backbone, in_classifier
from imrseg.models.conv4d import CenterPivotConv4d, GroupNorm4d
from imrseg.models.correlation import RawCorrelation, Volume, swap
from imrseg.models.imr import ConvCell, IMRCell, NoCell
from imrseg.models.layers import check_fit, lower_convolutions
from imrseg.models.refiner import Prepared, Refiner, RefinerState

CHANNELS = 128  # of C and of the hidden state
GUIDE = 512  # channels of the image features that the cell sees
SIDE = 400  # of the pictures, in the paper and for the released weights
STRIDE = 8  # of C, the hidden state and the cell's mask
COARSEST = 32  # stride of the coarsest level

Start = tuple[int, int] | None
CELLS: dict[str, Callable[[Start], nn.Module]] = {  # supplement 2.3, table 5
    "group": lambda start: IMRCell(1 + CHANNELS + GUIDE, CHANNELS, squeeze=512, start=start),
    "conv": lambda start: ConvCell(1 + CHANNELS + GUIDE, CHANNELS, start),
    "none": lambda start: NoCell(),
}
MASKINGS = ("features", "correlations")


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


def block(*convs: CenterPivotConv4d) -> nn.Sequential:
    """4D convolutions, each with group norm and ReLU."""
    layers: list[nn.Module] = []
    for conv in convs:
        layers += [conv, GroupNorm4d(4, conv.conv1.out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class HSNetNeck(nn.Module):
    """Correlations of three levels -> ``C`` (2B, 128, 50, 50), HSNet's squeezing and mixing blocks.

    Args:
        depths: layers in each level, the coarsest first.
        guide: projects the middle level's features for the cell.
        authors_compatible, masking: see ``IMRHSNet``.
    """

    def __init__(self, depths: tuple[int, int, int], guide: nn.Module, authors_compatible: bool, masking: str) -> None:
        super().__init__()
        self.depths, self.authors_compatible, self.masking = depths, authors_compatible, masking
        self.squeeze = nn.ModuleList(
            block(*map(CenterPivotConv4d, (depth, 16, 64), (16, 64, CHANNELS), kernels, strides))
            for depth, kernels, strides in zip(
                depths, ([3, 3, 3], [5, 3, 3], [5, 5, 3]), ([2, 2, 2], [4, 2, 2], [4, 4, 2]), strict=True
            )
        )
        self.mix = nn.ModuleList(
            block(*(CenterPivotConv4d(CHANNELS, CHANNELS, 3, 1) for _ in range(3))) for _ in range(2)
        )
        self.guide = guide

    def lower(self, precision: torch.dtype) -> None:
        """Keep correlations and convolve in ``precision``; norms and gains stay float32."""
        lower_convolutions(self.squeeze, precision)
        lower_convolutions(self.mix, precision)

    def prepare(self, query: list[Tensor], support: list[Tensor]) -> HSNetPair:
        """Features of a pair, finest layer first, as ``hsnet_backbone`` gives them."""
        levels, end = [], len(query)
        for depth in self.depths:
            levels.append((query[end - depth : end], support[end - depth : end]))
            end -= depth
        finest = query[0].shape[-2:]
        middle = torch.cat([sum(layers[1:], layers[0]) for layers in levels[1]])
        guide = resize_aligned(self.guide(middle), (finest[0], finest[1]))
        firsts = [squeeze[0] for squeeze in self.squeeze]
        correlations = [
            RawCorrelation.of(*level, conv.stride, conv.conv1.weight.dtype)
            for level, conv in zip(levels, firsts, strict=True)
        ]
        return HSNetPair(correlations, guide)

    def volumes(self, pair: HSNetPair, masks: Tensor) -> tuple[list[list[Volume]], HSNetPair]:
        """Per level, each picture's correlations for ``masks`` (2B, 1, h, w)."""
        fitted = [resize_aligned(masks, c.size) for c in pair.correlations]
        if self.authors_compatible:
            masked = [swap(m) for m in fitted] if pair.masked is None else [
                before * m for before, m in zip(pair.masked, fitted, strict=True)
            ]  # fmt: skip
            pair = replace(pair, masked=masked)
            own = other = [c.gain(m) for c, m in zip(pair.correlations, masked, strict=True)]
        else:
            own = [c.gain() for c in pair.correlations]
            if self.masking == "features":
                other = [c.gain(m) for c, m in zip(pair.correlations, fitted, strict=True)]
            else:
                other = [gain * m.flatten(2) for gain, m in zip(own, fitted, strict=True)]
        return [c.scaled(g, o) for c, g, o in zip(pair.correlations, own, other, strict=True)], pair

    def forward(self, pair: HSNetPair, masks: Tensor) -> tuple[Tensor, HSNetPair]:
        volumes, pair = self.volumes(pair, masks)
        # One picture at a time: the finest correlations are large.
        squeezed = [
            torch.cat([squeeze(volume) for volume in level])
            for squeeze, level in zip(self.squeeze, volumes, strict=True)
        ]
        x = squeezed[0]
        for mix, finer in zip(self.mix, squeezed[1:], strict=True):
            x = mix(resize_own(x, (finer.shape[1], finer.shape[2])) + finer)
        return x.mean((3, 4)).permute(0, 3, 1, 2), pair


def resize_own(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize the own picture's positions of (B, ha, wa, hb, wb, C) to ``size``."""
    out = resize_aligned(x.flatten(3).permute(0, 3, 1, 2), size)
    return out.permute(0, 2, 3, 1).reshape(len(x), *size, *x.shape[3:])


class HSNetHead(nn.Module):
    """Equations 5 and 6: HSNet's decoder as ``Head_0``, then the mix with the mask of the step before.

    Args:
        residual: equation 6; without it, this is HSNet's head, which does not see the own mask.
    """

    def __init__(self, residual: bool = True) -> None:
        super().__init__()
        self.residual = residual
        self.decoder1 = nn.Sequential(
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU(), nn.Conv2d(CHANNELS, 64, 3, padding=1), nn.ReLU()
        )
        self.decoder2 = nn.Sequential(
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 2, 3, padding=1)
        )  # fmt: skip
        if residual:
            self.mix = nn.Sequential(nn.Conv2d(3, 10, 1), nn.GELU(), nn.Conv2d(10, 2, 1))

    def lower(self, precision: torch.dtype) -> None:
        """Decode in ``precision``; the mix of both masks stays float32."""
        lower_convolutions(self.decoder1, precision)
        lower_convolutions(self.decoder2, precision)

    def forward(self, x: Tensor, pair: HSNetPair, own: Tensor) -> Tensor:
        own = resize_aligned(own, (x.shape[-2], x.shape[-1]))  # as the cell sees it, then up again
        x = self.decoder1(x.to(self.decoder1[0].weight.dtype))
        size = (2 * x.shape[-2], 2 * x.shape[-1])
        x = self.decoder2(resize_aligned(x, size)).to(own.dtype)
        if not self.residual:
            return x
        return self.mix(torch.cat([x, resize_aligned(own, size)], 1))


@dataclass(frozen=True)
class HSNetStep:
    """One step's output: logits (B, 2, 100, 100) before any resize, channel 1 = object."""

    query_logits: Tensor
    support_logits: Tensor


class IMRHSNet(nn.Module):
    """The whole network: backbone, neck, IMR cell, head.

    Args:
        backbone: "resnet50", "vgg16" (the paper's) or "resnet101". It is frozen, and random until
            weights are loaded: the authors', or ImageNet's by ``backbone.load_torchvision``.
        authors_compatible: reproduce the released code, which the released weights need.
        cell: the recurrent cell (supplement 2.3): "group" convolutions, as the paper adopts; plain "conv";
            "none", which leaves ``C`` to the head as it is.
        masking: what the other picture's mask is multiplied with. "features", as in HSNet: since they are
            normalised afterwards, it nearly cancels wherever a soft mask is not 0. "correlations", after the
            normalisation, keeps its meaning.
        residual: equation 6. Without it, and with the cell "none", the network is HSNet itself, which knows
            nothing of its own picture's mask (tables 4 and 5).

    Attributes:
        settings: the arguments, from which ``IMRHSNet(**settings)`` builds the same network.

    Raises:
        InputError: a name that is not among these, or another cell or masking than the released code's.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        authors_compatible: bool = False,
        cell: str = "group",
        masking: str = "features",
        residual: bool = True,
    ) -> None:
        super().__init__()
        check_name("cell", cell, CELLS)
        check_name("masking", masking, MASKINGS)
        if authors_compatible and (cell, masking, residual) != ("group", "features", True):
            raise InputError(
                "The released code has the cell “group”, masks “features” and has equation 6; with"
                f" authors_compatible there is no cell “{cell}” with masking “{masking}” and residual={residual}."
            )
        self.name = backbone
        self.settings = {
            "backbone": backbone, "authors_compatible": authors_compatible, "cell": cell, "masking": masking,
            "residual": residual,
        }  # fmt: skip
        self.backbone: BlockBackbone = hsnet_backbone(backbone)
        projects = cell != "none" and self.backbone.middle != GUIDE
        guide = nn.Conv2d(self.backbone.middle, GUIDE, 1) if projects else nn.Identity()
        neck = HSNetNeck(self.backbone.depths, guide, authors_compatible, masking)
        start = (SIDE // STRIDE, SIDE // STRIDE) if authors_compatible else None
        self.refiner = Refiner(neck, CELLS[cell](start), HSNetHead(residual), resize_aligned)

    def fuse(self) -> IMRHSNet:
        """Prepare loaded weights for inference (``BlockBackbone.fuse``); returns itself."""
        self.backbone.fuse()
        return self

    def prepare(self, query: Tensor, support: Tensor) -> Prepared:
        """What does not depend on the masks, for any number of labels and steps; arguments as for ``start``."""
        self._check_sizes(query, support)
        with torch.no_grad():
            features = self.backbone(query), self.backbone(support)
        return self.refiner.prepare(*features)

    def start(self, query: Tensor, support: Tensor, query_mask: Tensor, support_mask: Tensor) -> RefinerState:
        """The state before step 1.

        Args:
            query, support: ImageNet-normalised pictures (B, 3, 400, 400); in the faithful mode sides may
                also be multiples of 32.
            query_mask, support_mask: coarse masks (B, 1, h, w) in [0, 1].

        Raises:
            InputError: pictures of another size.
        """
        return self.refiner.begin(self.prepare(query, support), query_mask, support_mask)

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

        The faithful mode takes them as a start for training, all but the learned first hidden state.

        Raises:
            WeightsError: names or shapes that do not fit this network; the message lists some.
        """
        if self.settings["cell"] != "group":
            raise WeightsError(f"The released weights have the cell “group”, this network “{self.settings['cell']}”.")
        given = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
        given = {n: t for n, t in given.items() if not in_classifier(n.removeprefix("backbone."))}
        if not self.settings["authors_compatible"]:
            given.pop("state", None)
        check_fit(given, authors_shapes(self), f"These are not the weights of IMR-HSNet on {self.name}")
        self.load_state_dict(from_authors(given, self))

    def takes(self, side: int) -> bool:
        """Whether a picture may have a side of so many pixels: of others the levels' strides end at unlike positions."""
        return side == SIDE or (not self.settings["authors_compatible"] and side % COARSEST == 0)

    def _check_sizes(self, query: Tensor, support: Tensor) -> None:
        for side in (*query.shape[-2:], *support.shape[-2:]):
            if not self.takes(side):
                others = "" if self.settings["authors_compatible"] else f" or sides of a multiple of {COARSEST}"
                raise InputError(f"IMR-HSNet takes pictures of {SIDE} x {SIDE}{others}, not of side {side}.")
        if query.shape != support.shape:
            raise InputError(
                f"Query and support must have the same shape, not {tuple(query.shape)} and {tuple(support.shape)}."
            )


def check_name(what: str, name: str, accepted: Iterable[str]) -> None:
    """Raise InputError, listing ``accepted``, where ``name`` is not among them."""
    if name not in accepted:
        raise InputError(f"There is no {what} “{name}”. Accepted: {', '.join(accepted)}.")


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
