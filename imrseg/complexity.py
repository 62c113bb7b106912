"""What a network costs, counted on tensors without numbers: no weights are needed, and little time."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from imrseg.models.hsnet import SIDE, STRIDE, IMRHSNet


@dataclass(frozen=True)
class Cost:
    """Of IMR-HSNet on pictures of 400 x 400.

    Attributes:
        parameters: of everything but the coarse masker, the frozen backbone included.
        step: multiplications with addition (MACs) of neck, cell and head in one step, for one picture.
        once: those that serve all steps, made once per picture: raw correlations, the cell's share of the features.
    """

    parameters: int
    step: int
    once: int


@functools.cache
def cost(cell: str, backbone: str = "resnet50") -> Cost:
    """The cost of IMR-HSNet with a recurrent cell (supplement table 5)."""
    net = IMRHSNet(backbone, cell=cell).to("meta").eval()
    pictures = torch.empty(1, 3, SIDE, SIDE, device="meta")
    masks = torch.empty(1, 1, SIDE // STRIDE, SIDE // STRIDE, device="meta")
    with torch.no_grad():
        features = net.backbone(pictures), net.backbone(pictures)
        with FlopCounterMode(display=False) as once:
            prepared = net.refiner.prepare(*features)
        state = net.refiner.begin(prepared, masks, masks)
        with FlopCounterMode(display=False) as step:
            net.refiner.step(state)
    # The counter counts two operations for each, and both pictures.
    parameters = sum(p.numel() for p in net.parameters())
    return Cost(parameters, step.get_total_flops() // 4, once.get_total_flops() // 4)
