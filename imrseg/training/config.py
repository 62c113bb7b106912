"""Recipes: everything that a training run depends on beside its data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_type_hints

from imrseg.errors import InputError
from imrseg.networks import LITE_STRIDE

CHOICES = {
    "network": ("lite", "imr-hsnet", "imr-pfenet"),
    "neck": ("lite", "hsnet", "pfenet"),
    "cell": ("group", "conv", "none"),
    "masking": ("correlations", "features"),
    "start": ("coarse", "true"),
    "schedule": ("same", "linear", "none"),
    "optimizer": ("adamw", "adam"),
    "decay": ("cosine", "constant"),
    "precision": ("bfloat16", "float32"),
}


@dataclass(frozen=True)
class Config:
    """The recipe; the defaults are those of ``lite``.

    Attributes:
        network: "lite" (features of EfficientNet-Lite, made once and kept on disk), "imr-hsnet" or
            "imr-pfenet" (features made on the fly).
        backbone: of the latter two.
        neck, channels: of "lite" (``models.lite.lite_refiner``).
        cell, masking, residual: as for ``models.IMRHSNet`` and ``lite_refiner``.
        side: of the pictures, in pixels.
        start: masks that the first step is given in training: "coarse", or the "true" ones (HSNet's own training).
        iterations, batch: optimisation steps, and episodes in each, those of all processes together.
        steps: refinement steps N of equation 7.
        schedule: its lambda_t: 1 for all ("same"), t / N ("linear"), or 0 but for the last step ("none").
        support_weight: its w_s.
        dice: weight of the soft Dice loss beside cross entropy.
        optimizer, learning_rate, weight_decay: "adam" takes no weight decay.
        decay, warmup: of the learning rate; iterations until it is reached.
        clip: of the gradient's norm; 0: none.
        precision: of products and convolutions in training; float32 on a processor without bfloat16.
        negatives: share of episodes whose query does not show the label and must come out empty.
        alone: share of the others whose query is its own support, as without any.
        jitter: share of coarse masks that are sharpened, blurred or disturbed.
        views: looks at each picture: the whole, and views - 1 random crops with changed colours.
        flip: share of pictures that are mirrored.
        extra: weight of an extra data set's classes when an episode's class is drawn.
        held_out: share of the training pictures that is kept back to choose the checkpoint by, all of seen classes.
        validate_every, patience: iterations between looks at these, and looks without gain after which
            training ends.
        seed: of everything that is drawn.

    Raises:
        InputError: a value that is none of these.
    """

    network: str = "lite"
    backbone: str = "efficientnet-lite2"
    neck: str = "lite"
    cell: str = "group"
    masking: str = "correlations"
    residual: bool = True
    channels: int = 48
    side: int = 320
    start: str = "coarse"
    iterations: int = 1200
    batch: int = 8
    steps: int = 3
    schedule: str = "linear"
    support_weight: float = 1.0
    dice: float = 0.5
    optimizer: str = "adamw"
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    decay: str = "cosine"
    warmup: int = 50
    clip: float = 1.0
    precision: str = "bfloat16"
    negatives: float = 0.1
    alone: float = 0.15
    jitter: float = 0.5
    views: int = 2
    flip: float = 0.5
    extra: float = 0.5
    held_out: float = 0.0
    validate_every: int = 500
    patience: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for name, accepted in CHOICES.items():
            if getattr(self, name) not in accepted:
                raise InputError(f"{name} must be one of {', '.join(accepted)}, not {getattr(self, name)!r}.")
        for name, kind in get_type_hints(Config).items():
            value = getattr(self, name)
            least = 1 if name in ("channels", "side", "iterations", "batch", "steps", "views", "validate_every") else 0
            if kind is not str and not least <= value < float("inf"):
                raise InputError(f"{name} must be {least} or more, not {value}.")
        if self.network == "lite":
            if self.backbone != "efficientnet-lite2":
                raise InputError(f"lite runs on efficientnet-lite2, not on {self.backbone}.")
            for name, divisor in (("side", LITE_STRIDE), ("channels", 16)):  # 16: the cell's groups
                if getattr(self, name) % divisor:
                    raise InputError(f"{name} of lite must be divisible by {divisor}; {getattr(self, name)} is not.")
        if self.network != "lite" and self.negatives:
            raise InputError(
                "negatives are for lite, whose coarse masks of absent labels cost nothing. Set negatives=0."
            )


def _paper(**settings: Any) -> Config:
    """Section 5.2: Adam at 2e-4, lambda and w_s at one, no augmentation; chosen on pictures kept back."""
    plain: dict[str, Any] = {
        "masking": "features", "dice": 0.0, "optimizer": "adam", "learning_rate": 2e-4, "weight_decay": 0.0,
        "decay": "constant", "warmup": 0, "clip": 0.0, "precision": "float32", "negatives": 0.0, "alone": 0.0,
        "jitter": 0.0, "views": 1, "flip": 0.0, "held_out": 0.05, "iterations": 40_000, "batch": 20, "steps": 2,
        "schedule": "same",
    }  # fmt: skip
    return Config(**plain | settings)


_TWIN: dict[str, Any] = {"network": "imr-hsnet", "side": 400}
# HSNet itself: no memory, no mask of its own picture, one step.
_HSNET: dict[str, Any] = {"schedule": "same", "cell": "none", "masking": "features", "residual": False, "steps": 1}

CONFIGS = {
    "lite": Config(),
    "lite-hsnet": Config(neck="hsnet", schedule="same"),
    "lite-pfenet": Config(neck="pfenet", schedule="same"),
    "lite-hsnet-pretrained": Config(neck="hsnet", start="true", jitter=0.0, **_HSNET),
    "lite-hsnet-retrained": Config(neck="hsnet", **_HSNET),
    "imr-hsnet-resnet50": _paper(backbone="resnet50", **_TWIN),
    "imr-hsnet-resnet101": _paper(backbone="resnet101", **_TWIN),
    "imr-hsnet-vgg16": _paper(backbone="vgg16", **_TWIN),
    "hsnet-resnet50-pretrained": _paper(backbone="resnet50", start="true", **_TWIN | _HSNET),
    "hsnet-resnet50-retrained": _paper(backbone="resnet50", **_TWIN | _HSNET),
    "imr-pfenet-resnet50": _paper(
        network="imr-pfenet", backbone="resnet50", side=473, learning_rate=2e-4, masking="correlations"
    ),
}  # fmt: skip


def get_config(name: str, settings: Sequence[str] = (), **fixed: Any) -> Config:
    """The config called ``name``, changed by ``KEY=VALUE`` settings and then by ``fixed``.

    Raises:
        InputError: no such config or setting, or a value of another kind.
    """
    if name not in CONFIGS:
        raise InputError(f"There is no config “{name}”. Configs: {', '.join(CONFIGS)}.")
    hints = get_type_hints(Config)
    changes: dict[str, Any] = {}
    for setting in settings:
        key, given, value = setting.partition("=")
        if key not in hints or not given:
            raise InputError(f"A setting is given as KEY=VALUE, not “{setting}”. Keys: {', '.join(hints)}.")
        changes[key] = _parse(key, value, hints[key])
    return replace(CONFIGS[name], **changes | fixed)


def _parse(key: str, value: str, kind: type) -> Any:
    if kind is bool:
        if value not in ("true", "false"):
            raise InputError(f"{key} must be true or false, not “{value}”.")
        return value == "true"
    try:
        return kind(value)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise InputError(f"{key} must be {what}, not “{value}”.") from None
