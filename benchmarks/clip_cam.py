"""CLIP's Grad-CAM against the package ``grad-cam``: one model, the same maps, in turns.

    python benchmarks/clip_cam.py --json benchmarks/results/clip-cam-cpu.json

CLIP RN50 with drawn weights explains one prompt of 21 in a picture of 224 x 224. Text features are made
beforehand for both. The package keeps the whole network's activations and goes back through all that lies behind
the explained layer; ours has one product behind that layer alone, and another label on a picture already seen
needs nothing else.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from measure import in_turns, machine, write
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from imrseg.coarse.clip import TEMPERATURE, ClipCam
from imrseg.data.benchmarks import PASCAL
from imrseg.segmenter import pick_device

PROMPTS = ["a photo of a background", *(f"a photo of a {name}" for name in PASCAL)]
TARGET = 8


class Classifier(nn.Module):
    """Pictures -> probabilities of the prompts, as the package wants a network."""

    def __init__(self, model: Any, text: Tensor) -> None:
        super().__init__()
        self.model, self.text = model, text

    def forward(self, images: Tensor) -> Tensor:
        return (TEMPERATURE * F.normalize(self.model.encode_image(images), dim=-1) @ self.text.T).softmax(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    torch.manual_seed(0)
    model = open_clip.create_model("RN50-quickgelu").to(device)
    nn.init.normal_(model.visual.layer4[-1].bn3.weight)  # open_clip begins each block as the identity
    cam = ClipCam(model)
    text = cam.text_features(PROMPTS)
    picture = torch.randn(1, 3, cam.side, cam.side).to(device)
    features = cam.features(picture)

    classifier = Classifier(model, text).requires_grad_()  # the package cannot explain a frozen network
    package = GradCAM(classifier, [model.visual.layer4[-1]])

    def theirs() -> Any:
        return package(picture, [ClassifierOutputTarget(TARGET)])

    def ours() -> Tensor:
        return cam.explain(cam.features(picture), text, [TARGET])[0]

    def again() -> Tensor:
        return cam.explain(features, text, [TARGET])[0]

    expected = torch.as_tensor(theirs()).to(device)
    found = F.interpolate(ours().unsqueeze(1), (cam.side, cam.side), mode="bilinear", align_corners=False)[:, 0]
    found = found - found.amin()
    times = in_turns([theirs, ours, again], args.rounds)
    result = {
        **machine(device),
        "rounds": args.rounds,
        "deviation": float((found / found.amax() - expected).abs().max()),
        "theirs_seconds": median(times[0]),
        "ours_seconds": median(times[1]),
        "ratio": median(a / b for a, b in zip(times[0], times[1], strict=True)),
        "another_label_seconds": median(times[2]),
        "another_label_ratio": median(a / b for a, b in zip(times[0], times[2], strict=True)),
    }
    write(result, args.json)


if __name__ == "__main__":
    main()
