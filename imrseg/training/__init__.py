"""``python -m imrseg train``: any network of ours, by one loop (``docs/training.md``).

Each iteration depends on nothing but the seed and its own number, so a resumed run goes on exactly
where it stopped, and several processes see together what one would.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save

from imrseg import distributed, weights
from imrseg.coarse.maskers import Masker
from imrseg.data.benchmarks import gather
from imrseg.data.entries import Entry
from imrseg.errors import InputError
from imrseg.precision import lacks_bfloat16
from imrseg.training.calibrate import calibrate
from imrseg.training.config import CONFIGS, Config, get_config
from imrseg.training.data import Starts, TrainingSet, disturb, make_batch
from imrseg.training.loop import fit, write_whole
from imrseg.training.losses import segmentation_loss
from imrseg.training.starts import CoarseMasks, StoredMasks, TrueMasks, load_masker
from imrseg.training.trainees import new_trainee

__all__ = ["CONFIGS", "Config", "disturb", "gather", "get_config", "load_masker", "segmentation_loss", "train"]

log = logging.getLogger(__name__)

MEASURED = 20  # batches that the norms of a lite network are measured on


def train(
    sources: Sequence[list[Entry]],
    pictures: Iterable[Path],
    config: Config,
    out: Path,
    cache: Path,
    resume: bool = False,
    masker: Masker | None = None,
    device: torch.device | None = None,
    tensorboard: bool = False,
) -> Path:
    """Train a network and write its checkpoint into ``out``, ready for ``--checkpoint``; returns its path.

    Args:
        sources, pictures: from ``gather``.
        cache: where features, or coarse masks, are kept.
        masker: whose coarse masks are trained with; lite needs none, it learns its own.

    Raises:
        InputError: settings that do not go together, or a disk that is full.
        WeightsError: the backbone's weights cannot be had.
    """
    device = device or torch.device("cpu")
    if config.precision == "bfloat16" and lacks_bfloat16(device):
        log.warning("This processor is slow in bfloat16: training computes in float32.")
        config = replace(config, precision="float32")
    lite = config.network == "lite"
    if masker is None and not lite and config.start == "coarse":
        raise InputError(f"{config.network} needs a coarse masker to train with.")
    if masker is not None and config.negatives:
        raise InputError("Masks of absent labels are made by lite's own coarse stage alone. Set negatives=0.")
    if masker is not None and config.start == "true":
        raise InputError("With start=true training begins with the true masks. Leave the coarse masker out.")
    out.mkdir(parents=True, exist_ok=True)
    trainee = new_trainee(config, device)
    with distributed.first_alone():
        training = TrainingSet(sources, pictures, config, config.side, cache if lite else None)
        coarse = CoarseMasks(training) if lite else None
        starts: Starts
        if config.start == "true":
            starts = TrueMasks(training)
        elif masker is not None:
            starts = StoredMasks(training, masker, trainee.cells, cache)
        else:
            assert coarse is not None
            starts = coarse
    if coarse is not None:
        measured = range(config.iterations, config.iterations + MEASURED)
        batches = (make_batch(training, starts, config, i, whole=True).query for i in measured)
        trainee.refiner.neck.measure({name: t.to(device) for name, t in batch.items()} for batch in batches)
    fit(trainee, training, starts, config, out, resume, device, tensorboard)
    tensors = {name: t.cpu().contiguous() for name, t in trainee.whole.state_dict().items()}
    metadata = {
        "network": trainee.settings,
        "config": asdict(config),
        "coarse": starts.name,
        "classes": sorted({e.name for s in sources for e in s}),
        "pictures": len(set(training.rows)),
    }
    if coarse is not None:
        tensors |= {f"{weights.EVERYDAY}weight": coarse.weight, f"{weights.EVERYDAY}bias": coarse.bias}
        metadata |= calibrate(training, coarse, config)
    if distributed.rank() == 0:
        write_whole(out / trainee.file, save(tensors, {"imrseg": json.dumps(metadata)}))
    return out / trainee.file
