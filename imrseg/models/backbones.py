"""Frozen image backbones of torchvision: pixels -> features by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from imrseg.errors import InputError
from imrseg.models.layers import check_fit


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

    def fuse(self) -> BlockBackbone:
        """Lay weights out as processors and GPUs take them fastest, for inference; returns itself.

        Norms become part of the convolutions before them, so names are no longer torchvision's.
        """
        return self.to(memory_format=torch.channels_last)

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


def fold(owner: nn.Module, conv: str, norm: str) -> None:
    """Make a module's batch norm a part of its convolution, unless it is one already."""
    if not isinstance(getattr(owner, norm), nn.Identity):
        setattr(owner, conv, fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm)))
        setattr(owner, norm, nn.Identity())


class BlockResNet(BlockBackbone):
    """Outputs of the blocks of conv3_x, conv4_x and conv5_x, each before its final ReLU."""

    middle = 1024

    def __init__(self, net: Any) -> None:
        super().__init__()
        for name in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"):
            setattr(self, name, getattr(net, name))
        self.depths = (len(self.layer4), len(self.layer3), len(self.layer2))

    def fuse(self) -> BlockBackbone:
        fold(self, "conv1", "bn1")
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                for i in (1, 2, 3):
                    fold(block, f"conv{i}", f"bn{i}")
                if block.downsample is not None:
                    fold(block.downsample, "0", "1")
        return super().fuse()

    def forward(self, images: Tensor) -> list[Tensor]:
        x = F.max_pool2d(self.bn1(self.conv1(images)).relu_(), 3, 2, 1)
        out = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                y = block.bn1(block.conv1(x)).relu_()
                y = block.bn2(block.conv2(y)).relu_()
                y = block.bn3(block.conv3(y)).add_(x if block.downsample is None else block.downsample(x))
                kept = layer is not self.layer1
                if kept:
                    out.append(y)
                x = y.relu() if kept else y.relu_()
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
