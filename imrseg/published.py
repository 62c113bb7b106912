"""The paper's tables (Wang et al., IJCAI 2022, sections 5.3 to 5.5, and its supplement): mIoU in percent.

Every number is the paper's, those of other methods as it cites them. ``ours`` says by which evaluation
of ours a row is repeated; rows of other methods have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Value = float | None


@dataclass(frozen=True)
class Row:
    """A row.

    Attributes:
        name: the first columns, as in the paper.
        values: four folds and their mean; None where the paper has no number. () for a row that it has not.
        ours: what an evaluation must be to repeat it (``tables.facts``); None: of another method.
        step: whose masks count: 0 is the coarse mask; None: of the step that training ended with.
    """

    name: tuple[str, ...]
    values: tuple[Value, ...]
    ours: Mapping[str, Any] | None = None
    step: int | None = None


@dataclass(frozen=True)
class Table:
    """A table; ``benchmark`` names the folds' columns, ``heads`` those before them."""

    number: str
    title: str
    benchmark: str
    heads: tuple[str, ...]
    rows: tuple[Row, ...] = field(repr=False)


def imr(benchmark: str, shots: int = 1, backbone: str = "resnet50", **other: Any) -> dict[str, Any]:
    """The paper's own network as it stands, but for ``other``."""
    steps = {"pascal": 2, "coco": 3}[benchmark]
    own = {"neck": "hsnet", "cell": "group", "residual": True, "schedule": "same", "start": "coarse", "trained": steps}
    return own | {"benchmark": benchmark, "shots": shots, "backbone": backbone, "coarse": "gradcam"} | other


# HSNet itself, without memory or a mask of its own picture. The same network serves "mutual": its third step is
# the paper's chain support 0 -> query 1 -> support 2 -> query 3.
PLAIN: dict[str, Any] = {"cell": "none", "residual": False, "trained": 1}


def hsnet(start: str, **other: Any) -> dict[str, Any]:
    return imr("pascal") | PLAIN | {"start": start} | other


def lite(benchmark: str, shots: int = 1) -> dict[str, Any]:
    return {"benchmark": benchmark, "shots": shots, "backbone": "efficientnet-lite2", "neck": "lite", "cell": "group",
            "schedule": "linear", "start": "coarse", "trained": 3, "coarse": "lite"}  # fmt: skip


LITE = ("EfficientNet-Lite2", "lite (ours)", "Image")
VGG, RESNET = "VGG16", "ResNet50"
COMPARED = ("Backbone", "Method", "A. type")
ZERO = ("Method", "Shot", "Backbone")

TABLES = (
    Table("1", "PASCAL-5i, one shot", "pascal", COMPARED, (
        Row((VGG, "RPMM", "Pixel"), (47.1, 65.8, 50.6, 48.5, 53.0)),
        Row((VGG, "ASR", "Pixel"), (49.2, 65.4, 52.6, 51.3, 54.6)),
        Row((VGG, "SS-PANet", "Pixel"), (49.3, 60.8, 53.9, 45.2, 52.3)),
        Row((VGG, "SS-PFENet", "Pixel"), (54.5, 67.4, 63.4, 54.0, 59.8)),
        Row((VGG, "HSNet", "Pixel"), (59.6, 65.7, 59.6, 54.0, 59.7)),
        Row((VGG, "PANet", "Box"), (None, None, None, None, 45.1)),
        Row((VGG, "Lee et al.", "Image"), (36.5, 51.7, 45.9, 35.6, 42.4)),
        Row((VGG, "IMR-HSNet", "Image"), (58.2, 63.9, 52.9, 51.2, 56.5), imr("pascal", backbone="vgg16")),
        Row((RESNET, "PFENet", "Pixel"), (61.7, 69.5, 55.4, 56.3, 60.8)),
        Row((RESNET, "ASR", "Pixel"), (53.8, 69.6, 51.6, 52.8, 56.9)),
        Row((RESNET, "ASGNet", "Pixel"), (58.8, 67.9, 56.8, 53.7, 59.3)),
        Row((RESNET, "SCL", "Pixel"), (63.0, 70.0, 56.5, 57.7, 61.8)),
        Row((RESNET, "HSNet", "Pixel"), (64.3, 70.7, 60.3, 60.5, 64.0)),
        Row((RESNET, "CANet", "Box"), (None, None, None, None, 52.0)),
        Row((RESNET, "Siam et al. + CANet", "Image"), (49.5, 65.5, 50.0, 49.2, 53.5)),
        Row((RESNET, "Siam et al. + PANet", "Image"), (42.5, 64.8, 48.1, 46.5, 50.5)),
        Row((RESNET, "IMR-HSNet", "Image"), (62.6, 69.1, 56.1, 56.7, 61.1), imr("pascal")),
        Row(LITE, (), lite("pascal")),
    )),
    Table("2", "COCO-20i, one shot", "coco", COMPARED, (
        Row((VGG, "PFENet", "Pixel"), (35.4, 38.1, 36.8, 34.7, 36.3)),
        Row((VGG, "SAGNN", "Pixel"), (35.0, 40.5, 37.6, 36.0, 37.3)),
        Row((VGG, "SS-PANet", "Pixel"), (29.8, 21.2, 26.5, 28.5, 26.2)),
        Row((VGG, "SS-PFENet", "Pixel"), (35.6, 39.2, 37.6, 37.3, 37.5)),
        Row((VGG, "PANet", "Box"), (12.7, 8.7, 5.9, 4.8, 8.0)),
        Row((VGG, "Lee et al.", "Image"), (24.2, 12.9, 17.0, 14.0, 17.0)),
        Row((VGG, "IMR-HSNet", "Image"), (34.9, 38.8, 37.0, 40.1, 37.7), imr("coco", backbone="vgg16")),
        Row((RESNET, "ASR", "Pixel"), (29.9, 35.0, 31.9, 33.5, 32.6)),
        Row((RESNET, "RePRI", "Pixel"), (31.2, 38.1, 33.3, 33.0, 34.0)),
        Row((RESNET, "ASGNet", "Pixel"), (None, None, None, None, 34.6)),
        Row((RESNET, "Yang et al.", "Pixel"), (46.8, 35.3, 26.2, 27.1, 33.9)),
        Row((RESNET, "Wu et al.", "Pixel"), (34.9, 41.0, 37.2, 37.0, 37.5)),
        Row((RESNET, "CWT", "Pixel"), (32.2, 36.0, 31.6, 31.6, 32.9)),
        Row((RESNET, "HSNet", "Pixel"), (36.3, 43.1, 38.7, 38.7, 39.2)),
        Row((RESNET, "Siam et al.", "Image"), (None, None, None, None, 15.0)),
        Row((RESNET, "IMR-HSNet", "Image"), (39.5, 43.8, 42.4, 44.1, 42.4), imr("coco")),
        Row(LITE, (), lite("coco")),
    )),
    Table("3", "COCO-20i, beside zero-shot methods", "coco", ZERO, (
        Row(("ZS3Net", "Zero", "ResNet101"), (18.8, 20.1, 24.8, 20.5, 21.1)),
        Row(("L-Seg", "Zero", "ResNet101"), (22.1, 25.1, 24.9, 21.5, 23.4)),
        Row(("L-Seg", "Zero", "ViT-L/16"), (28.1, 27.5, 30.0, 23.2, 27.2)),
        Row(("IMR-HSNet", "Zero", RESNET), (37.9, 41.8, 41.3, 43.3, 41.1), imr("coco", shots=0)),
        Row(("IMR-HSNet", "One", RESNET), (39.5, 43.8, 42.4, 44.1, 42.4), imr("coco")),
        Row(("IMR-HSNet", "Five", RESNET), (40.7, 46.0, 45.0, 46.0, 44.4), imr("coco", shots=5)),
    )),
    Table("4", "Initial masks, PASCAL-5i, ResNet50", "pascal", ("Method", "Shot"), (
        Row(("Cosine similarity", "Zero"), (21.4, 39.9, 27.9, 32.1, 30.3),
            {"benchmark": "pascal", "coarse": "similarity"}, 0),
        Row(("CLIP-CAM", "Zero"), (24.3, 27.6, 29.7, 29.0, 27.6), {"benchmark": "pascal", "coarse": "gradcam"}, 0),
        Row(("Cosine similarity", "One"), (38.9, 56.2, 39.1, 39.5, 43.4), hsnet("true", coarse="similarity"), 1),
        Row(("CLIP-CAM", "One"), (50.2, 58.6, 49.0, 47.5, 51.3), hsnet("true"), 1),
        Row(("lite's mask (ours)", "Zero"), (), {"benchmark": "pascal", "coarse": "lite"}, 0),
    )),
    Table("5", "Refinement, PASCAL-5i, ResNet50", "pascal", ("Method",), (
        Row(("+ HSNet (pretrained)",), (50.2, 58.6, 49.0, 47.5, 51.3), hsnet("true"), 1),
        Row(("+ HSNet (mutual)",), (59.5, 67.5, 54.1, 53.8, 58.7), hsnet("true"), 3),
        Row(("+ HSNet (retrained)",), (60.9, 65.8, 53.1, 54.7, 58.6), hsnet("coarse"), 1),
        Row(("+ HSNet (retrained + mutual)",), (56.2, 63.8, 47.0, 49.6, 54.2), hsnet("coarse"), 3),
        Row(("IMR-HSNet",), (62.6, 69.1, 56.1, 56.7, 61.1), imr("pascal")),
    )),
    Table("6", "Other networks, PASCAL-5i, ResNet50", "pascal", ("Method",), (
        Row(("CLIP-CAM",), (24.3, 27.6, 29.7, 29.0, 27.6), {"benchmark": "pascal", "coarse": "gradcam"}, 0),
        Row(("CLIP-CAM / PFENet",), (44.2, 51.1, 49.0, 47.9, 48.0)),
        Row(("CLIP-CAM / HSNet",), (50.2, 58.6, 49.0, 47.5, 51.3), hsnet("true"), 1),
        Row(("IMR-PFENet",), (53.4, 53.7, 54.2, 53.3, 53.7), imr("pascal", neck="pfenet")),
        Row(("IMR-HSNet",), (62.6, 69.1, 56.1, 56.7, 61.1), imr("pascal")),
    )),
    Table("S2", "PASCAL-5i, five shots", "pascal", COMPARED, (
        Row((VGG, "RPMM", "Pixel"), (50.0, 66.5, 51.9, 47.6, 54.0)),
        Row((VGG, "ASR", "Pixel"), (52.5, 66.5, 55.0, 53.9, 57.0)),
        Row((VGG, "SS-PANet", "Pixel"), (54.5, 64.5, 62.3, 52.0, 58.3)),
        Row((VGG, "SS-PFENet", "Pixel"), (56.9, 70.0, 68.3, 62.1, 64.3)),
        Row((VGG, "HSNet", "Pixel"), (64.9, 69.0, 64.1, 58.6, 64.1)),
        Row((VGG, "PANet", "Box"), (None, None, None, None, 52.8)),
        Row((VGG, "Lee et al.", "Image"), (None, None, None, None, 45.5)),
        Row((VGG, "IMR-HSNet", "Image"), (60.5, 65.3, 55.0, 51.7, 58.1), imr("pascal", 5, "vgg16")),
        Row((RESNET, "PFENet", "Pixel"), (63.1, 70.7, 55.8, 57.9, 61.9)),
        Row((RESNET, "ASR", "Pixel"), (56.2, 70.6, 53.9, 53.4, 58.5)),
        Row((RESNET, "ASGNet", "Pixel"), (63.7, 70.6, 64.2, 57.4, 63.9)),
        Row((RESNET, "SCL", "Pixel"), (64.5, 70.9, 57.3, 58.7, 62.9)),
        Row((RESNET, "CWT", "Pixel"), (61.3, 68.5, 68.5, 56.6, 63.7)),
        Row((RESNET, "HSNet", "Pixel"), (70.3, 73.2, 67.4, 67.1, 69.5)),
        Row((RESNET, "Siam et al.", "Image"), (45.9, 65.7, 48.6, 46.6, 51.7)),
        Row((RESNET, "IMR-HSNet", "Image"), (63.6, 69.6, 56.3, 57.4, 61.8), imr("pascal", 5)),
        Row(LITE, (), lite("pascal", 5)),
    )),
    Table("S3", "COCO-20i, five shots", "coco", COMPARED, (
        Row((VGG, "PFENet", "Pixel"), (38.2, 42.5, 41.8, 38.9, 40.4)),
        Row((VGG, "SAGNN", "Pixel"), (37.2, 45.2, 40.4, 40.0, 40.7)),
        Row((VGG, "SS-PANet", "Pixel"), (36.7, 41.0, 37.6, 35.6, 37.7)),
        Row((VGG, "SS-PFENet", "Pixel"), (40.4, 45.8, 40.3, 40.7, 41.8)),
        Row((VGG, "PANet", "Box"), (None, None, None, None, 13.9)),
        Row((VGG, "Lee et al.", "Image"), (None, None, None, None, 17.5)),
        Row((VGG, "IMR-HSNet", "Image"), (34.8, 41.0, 37.2, 39.7, 38.2), imr("coco", 5, "vgg16")),
        Row((RESNET, "ASR", "Pixel"), (31.3, 37.9, 33.5, 35.2, 34.4)),
        Row((RESNET, "RePRI", "Pixel"), (38.5, 46.2, 40.0, 43.6, 42.1)),
        Row((RESNET, "ASGNet", "Pixel"), (None, None, None, None, 42.5)),
        Row((RESNET, "Yang et al.", "Pixel"), (54.1, 41.2, 34.1, 33.1, 40.6)),
        Row((RESNET, "Wu et al.", "Pixel"), (37.0, 40.3, 39.3, 36.0, 38.2)),
        Row((RESNET, "CWT", "Pixel"), (40.1, 43.8, 39.0, 42.4, 41.3)),
        Row((RESNET, "HSNet", "Pixel"), (43.3, 51.3, 48.2, 45.0, 46.9)),
        Row((RESNET, "Siam et al.", "Image"), (None, None, None, None, 15.6)),
        Row((RESNET, "IMR-HSNet", "Image"), (40.7, 46.0, 45.0, 46.0, 44.4), imr("coco", 5)),
        Row(LITE, (), lite("coco", 5)),
    )),
    Table("S4", "PASCAL-5i, beside zero-shot methods", "pascal", ZERO, (
        Row(("SPNet", "Zero", "ResNet101"), (23.8, 17.0, 14.1, 18.3, 18.3)),
        Row(("ZS3Net", "Zero", "ResNet101"), (40.8, 39.4, 39.3, 33.6, 38.3)),
        Row(("L-Seg", "Zero", "ResNet101"), (52.8, 53.8, 44.4, 38.5, 47.4)),
        Row(("L-Seg", "Zero", "ViT-L/16"), (61.3, 63.6, 43.1, 41.0, 52.3)),
        Row(("IMR-HSNet", "Zero", RESNET), (60.3, 68.5, 55.5, 55.5, 59.9), imr("pascal", shots=0)),
        Row(("IMR-HSNet", "One", RESNET), (62.6, 69.1, 56.1, 56.7, 61.1), imr("pascal")),
        Row(("IMR-HSNet", "Five", RESNET), (63.6, 69.6, 56.3, 57.4, 61.8), imr("pascal", shots=5)),
        Row(("lite (ours)", "Zero", LITE[0]), (), lite("pascal", 0)),
        Row(("lite (ours)", "One", LITE[0]), (), lite("pascal")),
        Row(("lite (ours)", "Five", LITE[0]), (), lite("pascal", 5)),
    )),
    Table("S5", "Recurrent cell, PASCAL-5i, ResNet50", "pascal", ("Cell", "Params", "MACs"), (
        # The paper's "None" is HSNet (mutual) of table 5. Of fold 0 its copy for "Conv" has no number.
        Row(("None", "26.1M", "7.1G"), (59.5, 67.5, 54.1, 53.8, 58.7), hsnet("true"), 3),
        Row(("Conv", "29.9M", "22.4G"), (None, 59.4, 56.3, 56.4, 60.4), imr("pascal", cell="conv")),
        Row(("Group conv", "28.5M", "19.0G"), (62.6, 69.1, 56.1, 56.7, 61.1), imr("pascal")),
        Row(("None, with equation 6 (ours)", "", ""), (), imr("pascal", cell="none")),
    )),
    Table("S6", "lambda_t, PASCAL-5i, ResNet50", "pascal", ("lambda",), (
        Row(("None",), (61.3, 68.9, 56.0, 55.6, 60.5), imr("pascal", schedule="none")),
        Row(("Linear",), (60.4, 68.6, 56.4, 56.5, 60.5), imr("pascal", schedule="linear")),
        Row(("Same",), (62.6, 69.1, 56.1, 56.7, 61.1), imr("pascal")),
    )),
    Table("S7", "Steps, COCO-20i, ResNet50", "coco", ("Prediction",), (
        Row(("M_q^0",), (17.5, 18.8, 21.0, 19.5, 19.2), imr("coco"), 0),
        Row(("M_q^1",), (36.3, 41.7, 41.4, 41.3, 40.2), imr("coco"), 1),
        Row(("M_q^2",), (38.6, 43.2, 42.1, 42.9, 41.7), imr("coco"), 2),
        Row(("M_q^3",), (39.5, 43.8, 42.4, 44.1, 42.4), imr("coco"), 3),
    )),
)  # fmt: skip
