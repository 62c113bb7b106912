"""Stage 2 ready to run: a backbone and the refiner behind it, from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from imrseg import weights
from imrseg.encoders import IMAGENET, Encoder, Features, normalise
from imrseg.errors import InputError, WeightsError, shown
from imrseg.models.consensus import Consensus
from imrseg.models.efficientnet import Closer, EfficientNetLite
from imrseg.models.graphs import GraphedStep, cuda_capture
from imrseg.models.hsnet import SIDE, STRIDE, IMRHSNet
from imrseg.models.lite import DETAIL, FINE, HIGH, MIDDLE, lite_refiner
from imrseg.models.pfenet import SIDE as PFENET_SIDE
from imrseg.models.pfenet import STRIDE as PFENET_STRIDE
from imrseg.models.pfenet import ZOOM, IMRPFENet
from imrseg.models.refiner import Prepared, Refiner, RefinerState
from imrseg.presets import Preset

LITE_TRAITS = (DETAIL, FINE, MIDDLE, HIGH)
LITE_SIDE = 320  # pixels; HSNet's is SIDE, PFENet's PFENET_SIDE
LITE_STRIDE = 32  # of the coarsest features: sides are multiples of it
LITE_SIDES = range(128, 1025, LITE_STRIDE)  # that a user may choose
SIDES = range(32, 2049)  # that a checkpoint may ask for
TOGETHER_ON_GPU = 5  # pairs of the paper's networks; a processor takes them one by one, which needs less memory
LAUNCHES = ("eager", "graphs", "compile")  # how a step's kernels are started

Whole = TypeVar("Whole", IMRHSNet, IMRPFENet)  # with their backbones


@dataclass(frozen=True, eq=False)
class Network:
    """A refiner, the encoder whose features it takes, and the file that both came from.

    Attributes:
        encoder: pictures -> features.
        refiner: the loop of section 4.2.
        file: the checkpoint.
        together: pairs that are refined as one batch; what correlations of all layers take in memory
            decides.
        mask_size: (height, width) that coarse masks are brought to before the first step; None leaves
            that to the refiner.
        arrange: features by name -> what the refiner takes.
        graphs: replays steps as CUDA graphs; None: steps are launched kernel by kernel.
        traits: the features, the finest first, by which pictures find a consensus after each step; (): they do not.
        side: of the square that pictures are seen at, in pixels, where it is not what was trained at; else None.
    """

    encoder: Encoder
    refiner: Refiner
    file: Path
    together: int
    mask_size: tuple[int, int] | None = None
    arrange: Callable[[Features], Any] = dict
    graphs: GraphedStep | None = None
    traits: tuple[str, ...] = ()
    side: int | None = None

    def prepare(self, query: Features, supports: Sequence[Features]) -> list[Prepared]:
        """All that does not depend on the label, ``together`` pairs in each.

        Args:
            query: features of the query, batch of one; supports: of each support.
        """
        out: list[Prepared] = []
        for first in range(0, len(supports), self.together):
            part = supports[first : first + self.together]
            others = part[0] if len(part) == 1 else {name: torch.cat([s[name] for s in part]) for name in query}
            own = {name: tensor.expand(len(part), *tensor.shape[1:]) for name, tensor in query.items()}
            # Only the last part may be smaller; the query is the same in all.
            out.append(self.refiner.prepare(self.arrange(own), self.arrange(others), out[0] if out else None))
        return out

    def consensus(self, pictures: Sequence[Features]) -> Consensus | None:
        """Of the query and its supports; None where the network has no ``traits``."""
        return Consensus.of([[p[name] for name in self.traits] for p in pictures]) if self.traits else None

    def begin(self, prepared: Sequence[Prepared], query_mask: Tensor, support_masks: Tensor) -> list[RefinerState]:
        """The states before step 1, one for each of ``prepared``.

        Args:
            query_mask: coarse mask (1, 1, h, w) in [0, 1]; support_masks: (K, 1, h, w).
        """
        masks = torch.cat([query_mask, support_masks])
        if self.mask_size is not None:
            masks = F.interpolate(masks, self.mask_size, mode="bilinear", align_corners=False)
        parts = masks[1:].split(self.together)
        return [
            self.refiner.begin(p, masks[:1].expand(len(part), -1, -1, -1), part)
            for p, part in zip(prepared, parts, strict=True)
        ]

    def step(self, state: RefinerState) -> RefinerState:
        """One refinement of both images' masks by each other."""
        return self.refiner.step(state) if self.graphs is None else self.graphs(state)


def load_network(
    preset: Preset,
    path: Path,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    launch: str = "eager",
    side: int | None = None,
) -> Network:
    """The preset's network with the weights in ``path``, which refines in ``precision``; ``launch`` is one of LAUNCHES.

    Args:
        side: of the square that ``lite`` sees pictures at, in pixels; None: what it was trained at.

    Raises:
        WeightsError: the file cannot be read, or holds another network.
        InputError: a side that is not for this network.
    """
    if side is not None:
        if preset.network != "lite":
            raise InputError(f"Only lite sees pictures at another side than it was trained at, not {preset.name}.")
        if isinstance(side, bool) or not isinstance(side, Integral) or side not in LITE_SIDES:
            least, most = LITE_SIDES[0], LITE_SIDES[-1]
            raise InputError(
                f"lite sees pictures at a multiple of {LITE_STRIDE} from {least} to {most} pixels, not at {shown(side)}."
            )
    loaders: dict[str, Callable[..., Network]] = {
        "lite": load_lite, "imr-hsnet": load_hsnet, "imr-pfenet": load_pfenet
    }  # fmt: skip
    network = loaders[preset.network](preset, path, device)
    if side is not None and side != network.encoder.side:
        network = replace(network, encoder=seen_at(side, network.encoder), side=side)
    if precision != torch.float32:
        network.refiner.lower(precision)
    if launch == "compile":
        for part in (network.refiner.neck, network.refiner.cell, network.refiner.head):
            part.compile()
    if launch == "graphs":
        return replace(network, graphs=GraphedStep(network.refiner.step, cuda_capture))
    return network


def load_lite(preset: Preset, path: Path, device: torch.device) -> Network:
    weights.check_own(path)  # what a header asks for may need more memory than there is
    tensors, metadata = weights.load(path)
    try:
        settings = dict(metadata["network"])
        name = settings.pop("name", "lite")
        if name != "lite":
            raise WeightsError(f"{path} does not hold the lite network, but {name}.")
        refiner = lite_refiner(**settings)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{path} does not hold the {preset.name} network ({error!r}).") from error
    own = {name: as_float(t) for name, t in tensors.items() if not name.startswith(weights.EVERYDAY)}
    weights.fill(refiner, own, path)
    refiner.to(device).requires_grad_(False).eval()
    encoder = lite_encoder(device, trained_side(path, LITE_SIDE, lambda side: side % LITE_STRIDE == 0))
    return Network(encoder, refiner, path, together=10, traits=LITE_TRAITS)


def lite_encoder(device: torch.device, side: int = LITE_SIDE) -> Encoder:
    """EfficientNet-Lite2, which stage 1 and 2 of lite share."""
    return Encoder(f"lite:{side}", EfficientNetLite().to(device), side, device)


def seen_at(side: int, encoder: Encoder) -> Encoder:
    """The ``lite_encoder`` that sees pictures at another side; at a larger one it gives an overview at its own, too."""
    encode = encoder.encode
    if side > encoder.side:
        assert isinstance(encode, EfficientNetLite)
        encode = Closer(encode, encoder.side)
    return replace(encoder, name=f"lite:{side}", encode=encode, side=side)


def load_hsnet(preset: Preset, path: Path, device: torch.device) -> Network:
    """IMR-HSNet, from a safetensors file of ours or from a checkpoint of the authors' as it is."""
    if path.suffix == ".safetensors":
        net = open_own(path, "IMR-HSNet", IMRHSNet, preset.backbone)
    else:
        weights.check_authors(path, preset.backbone)
        net = IMRHSNet(preset.backbone, authors_compatible=True)
        net.load_authors_state_dict(weights.read_authors(path))
    net.fuse().to(device).requires_grad_(False).eval()

    def encode(images: Tensor) -> Features:
        return {str(i): layer for i, layer in enumerate(net.backbone(normalise(images, IMAGENET)))}

    side = trained_side(path, SIDE, net.takes)
    encoder = Encoder(f"hsnet:{path}", encode, side, device)
    cells = side // STRIDE
    together = TOGETHER_ON_GPU if device.type == "cuda" else 1
    return Network(encoder, net.refiner, path, together, mask_size=(cells, cells), arrange=in_order)


def load_pfenet(preset: Preset, path: Path, device: torch.device) -> Network:
    """IMR-PFENet, from a safetensors file of ours."""
    net = open_own(path, "IMR-PFENet", IMRPFENet, preset.backbone)
    net.fuse().to(device).requires_grad_(False).eval()

    def encode(images: Tensor) -> Features:
        return net.features(normalise(images, IMAGENET))

    side = trained_side(path, PFENET_SIDE, net.takes)
    encoder = Encoder(f"pfenet:{path}", encode, side, device)
    cells = ZOOM * (side // PFENET_STRIDE + 1)
    together = TOGETHER_ON_GPU if device.type == "cuda" else 1
    return Network(encoder, net.refiner, path, together, mask_size=(cells, cells))


def open_own(path: Path, title: str, build: Callable[..., Whole], backbone: str) -> Whole:
    """The network of a safetensors file, whose header says how it is built and gives its title in small letters."""
    settings = weights.header(path).get("network", {})
    if not isinstance(settings, dict) or settings.get("name") != title.lower():
        raise WeightsError(f"{path} does not hold {title}, but {settings or 'an unnamed network'}.")
    if settings.get("backbone") != backbone:
        raise WeightsError(f"{path} holds {title} on {settings.get('backbone')}; this preset runs on {backbone}.")
    try:
        net = build(**{name: value for name, value in settings.items() if name != "name"})
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path} describes a network that cannot be built ({error}).") from error
    weights.fill(net, {name: as_float(t) for name, t in weights.load(path)[0].items()}, path)
    return net


def trained_side(path: Path, usual: int, takes: Callable[[int], bool]) -> int:
    """The side of the pictures that a checkpoint was trained on, in pixels; the usual one where it does not say.

    Raises:
        WeightsError: it says something else than a number in ``SIDES`` that the network ``takes``.
    """
    config = weights.header(path).get("config") if path.suffix == ".safetensors" else None
    side = config.get("side", usual) if isinstance(config, dict) else usual
    if not isinstance(side, int) or side not in SIDES or not takes(side):
        raise WeightsError(
            f"{path} says that it was trained on pictures of side {side}. Accepted: {usual}, and what else its"
            f" network takes from {SIDES[0]} to {SIDES[-1]}."
        )
    return side


def with_backbone_of(preset: Preset, path: Path) -> Preset:
    """The preset on ResNet101, where a checkpoint of ours for its network is: no preset has that backbone."""
    if preset.network not in ("imr-hsnet", "imr-pfenet") or path.suffix != ".safetensors":
        return preset
    network = weights.header(path).get("network")
    deeper = isinstance(network, dict) and (network.get("name"), network.get("backbone")) == (
        preset.network, "resnet101"
    )  # fmt: skip
    return replace(preset, backbone="resnet101") if deeper else preset


def in_order(features: Features) -> list[Tensor]:
    """HSNet's layers, the finest first."""
    return list(features.values())


def as_float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
