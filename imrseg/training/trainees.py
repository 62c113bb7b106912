"""What is trained: a refiner, and the frozen backbone that it sees pictures through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from imrseg import weights
from imrseg.encoders import IMAGENET, normalise
from imrseg.errors import InputError
from imrseg.hub import KNOWN
from imrseg.models.backbones import BlockBackbone
from imrseg.models.hsnet import STRIDE, IMRHSNet
from imrseg.models.lite import lite_refiner
from imrseg.models.pfenet import ZOOM, IMRPFENet
from imrseg.models.refiner import Refiner
from imrseg.networks import SIDES
from imrseg.training.config import Config
from imrseg.training.data import Loaded


@dataclass(frozen=True, eq=False)
class Trainee:
    """A network in training.

    Attributes:
        refiner: what is learned.
        encode: what was loaded of pictures -> features as the refiner takes them, without gradients.
        whole: whose tensors make the checkpoint.
        settings: from which the checkpoint's reader builds it again.
        cells: side of the masks that it is given.
        file: name of the checkpoint.
    """

    refiner: Refiner
    encode: Callable[[Loaded], Any]
    whole: nn.Module
    settings: dict[str, Any]
    cells: int
    file: str


def new_trainee(config: Config, device: torch.device) -> Trainee:
    """The network that a config describes, with fresh weights drawn from its seed.

    Raises:
        InputError: settings that do not go together. WeightsError: ImageNet's weights cannot be had.
    """
    if config.side not in SIDES:
        raise InputError(f"side must be from {SIDES[0]} to {SIDES[-1]} pixels, not {config.side}.")
    torch.manual_seed(config.seed)
    if config.network == "lite":
        settings = {name: getattr(config, name) for name in ("channels", "neck", "cell", "masking", "residual")}
        refiner = lite_refiner(**settings).to(memory_format=torch.channels_last).to(device)
        return Trainee(refiner, dict, refiner, settings, config.side // STRIDE, "lite.safetensors")
    net: IMRHSNet | IMRPFENet
    if config.network == "imr-hsnet":
        net = IMRHSNet(config.backbone, cell=config.cell, masking=config.masking, residual=config.residual)
        features: Callable[[Tensor], Any] = net.backbone
        cells = config.side // STRIDE
    else:
        if (config.cell, config.masking, config.residual) != ("group", "correlations", True):
            raise InputError("IMR-PFENet has cell=group, masking=correlations and residual=true.")
        net = IMRPFENet(config.backbone)
        features = net.features
        cells = ZOOM * (config.side // STRIDE + 1)
    if not net.takes(config.side):
        near = sorted(filter(net.takes, SIDES), key=lambda side: abs(side - config.side))[:2]
        raise InputError(
            f"{config.network} takes no pictures of side {config.side}. The nearest: {min(near)}, {max(near)}."
        )
    load_imagenet(net.backbone, config.backbone)
    net.to(device)

    @torch.no_grad()
    def encode(loaded: Loaded) -> Any:
        return features(normalise(loaded["picture"].float(), IMAGENET))

    settings = {"name": config.network, **net.settings}
    return Trainee(net.refiner, encode, net, settings, cells, f"{config.network}-{config.backbone}.safetensors")


def load_imagenet(backbone: BlockBackbone, name: str) -> None:
    """torchvision's weights, as the paper's backbones have.

    Raises:
        WeightsError: they cannot be had; the message says what to put where.
    """
    file = next(known for known in KNOWN if known.startswith(f"{name}-") and known.endswith(".pth"))
    backbone.load_torchvision(weights.read_state_dict(weights.obtain(file)))
