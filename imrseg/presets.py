"""The presets: which coarse masker, network and weights go together."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from imrseg.errors import InputError


@dataclass(frozen=True)
class Preset:
    """One row of the table.

    Attributes:
        name: what the user types.
        title: one line for a menu.
        coarse: stage 1, "lite" or "clip" (``imrseg.coarse.maskers``); another may be chosen beside it.
        network: stage 2, "lite", "imr-hsnet" or "imr-pfenet" (``imrseg.networks``).
        backbone: of the network.
        checkpoint: file name of the network's weights, looked for by ``imrseg.weights.find``.
        steps: refinement steps by default.
        aggregate: how K query masks become one, "vote" (supplement 2.1) or "mean".
        licence: of the weights.
    """

    name: str
    title: str
    coarse: str
    network: str
    backbone: str
    checkpoint: str
    steps: int
    aggregate: str
    licence: str


def _imr_hsnet(backbone: str, shown: str) -> Preset:
    name = f"imr-hsnet-{backbone}"
    return Preset(
        name=name,
        title=f"IMR-HSNet on {shown}: the paper's own network, with the authors' weights",
        coarse="clip",
        network="imr-hsnet",
        backbone=backbone,
        checkpoint=f"{name}-coco-0.safetensors",
        steps=3,
        aggregate="vote",
        licence="the authors published their weights without a licence",
    )


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="lite",
            title="lite: small and embedded, nothing to download",
            coarse="lite",
            network="lite",
            backbone="efficientnet-lite2",
            checkpoint="lite.safetensors",
            steps=3,
            aggregate="mean",
            licence="Apache-2.0; trained on PASCAL VOC 2012 and MSRC v2, see checkpoints/README.md",
        ),
        _imr_hsnet("resnet50", "ResNet50"),
        _imr_hsnet("vgg16", "VGG16"),
        Preset(
            name="imr-pfenet-resnet50",
            title="IMR-PFENet on ResNet50: the paper's loop around PFENet, with weights of your own",
            coarse="clip",
            network="imr-pfenet",
            backbone="resnet50",
            checkpoint="imr-pfenet-resnet50.safetensors",
            steps=2,  # the paper shows it on PASCAL-5i alone
            aggregate="vote",
            licence="nobody has published weights of it",
        ),
    )
}
STEPS = {"pascal": 2, "coco": 3}  # of the authors' checkpoints (paper section 5.1)


def list_presets() -> list[str]:
    """Names that ``Segmenter.from_preset`` takes.

    IMR-HSNet's may go on with a data set and a fold, ``imr-hsnet-resnet50@pascal-2``; the bare name
    means ``@coco-0``.
    """
    return list(PRESETS)


def get_preset(name: str) -> Preset:
    """The preset called ``name``.

    Raises:
        InputError: there is none of that name; the message lists those there are.
    """
    bare, _, weights = str(name).partition("@")
    if bare not in PRESETS or (weights and PRESETS[bare].network != "imr-hsnet"):
        raise InputError(f"There is no preset “{name}”. Presets: {', '.join(PRESETS)}.")
    preset = PRESETS[bare]
    if not weights:
        return preset
    trained = re.fullmatch(r"(pascal|coco)-[0-3]", weights)
    if trained is None:
        raise InputError(f"There is no preset “{name}”. After @ comes pascal-0 to pascal-3 or coco-0 to coco-3.")
    return replace(preset, name=name, checkpoint=f"{bare}-{weights}.safetensors", steps=STEPS[trained[1]])
