"""What lite's coarse stage needs to know of itself, measured on training pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from imrseg.coarse.lexicon import EVERYDAY
from imrseg.training.config import Config
from imrseg.training.data import Look, TrainingSet
from imrseg.training.starts import CoarseMasks


def calibrate(training: TrainingSet, coarse: CoarseMasks, config: Config, count: int = 400) -> dict[str, Any]:
    """What the coarse stage needs to know of itself, measured on training pictures.

    Returns:
        ``coarse_threshold``: the level with the best mean IoU over classes; ``confidence``: slope and
        offset of a logistic fit of "the label is there" on how much speaks for it (``LiteCam``).
    """
    rng = np.random.default_rng([config.seed, 1])
    levels = np.arange(0.05, 0.65, 0.05)
    areas: dict[str, np.ndarray] = {}
    evidence, present = [], []
    main = range(len(training.sources[0]))
    labels = sorted({training.entries[i].label for i in main})
    absent = labels if len(labels) > 1 else sorted({*EVERYDAY} - {*labels})
    shows = {(training.rows[i], training.entries[i].label) for i in main}
    for position in rng.choice(main, min(count, len(main)), replace=False):
        entry, row = training.entries[position], training.rows[position]
        head = training.load(Look(position, entry.label))["head"].unsqueeze(0)
        cam, score = coarse(head, [entry.label])
        target = training.target(position, 0)
        soft = F.interpolate(cam, target.shape[-2:], mode="bilinear", align_corners=False)[0, 0].numpy()
        truth, valid = target[0].numpy() >= 0.5, target[1].numpy() >= 0.5
        pooled = areas.setdefault(entry.label, np.zeros((len(levels), 2)))
        for k, level in enumerate(levels):
            pooled[k] += np.sum((soft >= level) & truth & valid), np.sum(((soft >= level) | truth) & valid)
        evidence.append(float(score))
        present.append(1.0)
        others = [label for label in absent if (row, label) not in shows]
        if others:
            evidence.append(float(coarse(head, [str(rng.choice(others))])[1]))
            present.append(0.0)
    iou = np.mean([a[:, 0] / np.maximum(a[:, 1], 1) for a in areas.values()], 0)
    x, y = torch.tensor(evidence), torch.tensor(present)
    fit_ = torch.tensor([1.0, 0.0], requires_grad=True)
    optimizer = torch.optim.LBFGS([fit_], max_iter=100)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(fit_[0] * x + fit_[1], y)
        loss.backward()
        return loss

    optimizer.step(closure)
    slope, offset = fit_.detach().tolist()
    return {
        "coarse_threshold": round(float(levels[iou.argmax()]), 2),
        "confidence": {"slope": round(slope, 4), "offset": round(offset, 4)},
    }
