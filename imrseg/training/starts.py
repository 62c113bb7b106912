"""The masks that training begins with: learned with lite, made once by any coarse masker, or the true ones."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from imrseg import distributed, weights
from imrseg.coarse import everyday
from imrseg.coarse.lexicon import EVERYDAY, LEXICON, Lexicon
from imrseg.coarse.lite import LiteCam
from imrseg.coarse.maskers import ClipSettings, LiteMasker, Masker, load_clip_masker
from imrseg.data.features import CachedView
from imrseg.errors import InputError
from imrseg.images import open_picture, to_size
from imrseg.models.efficientnet import EfficientNetLite
from imrseg.networks import lite_encoder
from imrseg.training.data import Loaded, Look, TrainingSet

TOGETHER = 8  # pictures that a coarse masker sees at a time


def load_masker(coarse: str, clip: ClipSettings | None, device: torch.device) -> Masker:
    """The coarse masker called "lite", "clip" or "clip:MODEL"; arguments as for ``Segmenter.from_preset``.

    Raises:
        InputError: there is none of that name. WeightsError: its weights cannot be had.
    """
    kind, _, model = coarse.partition(":")
    if kind == "clip":
        return load_clip_masker(model or "RN50", clip or ClipSettings(), device)
    if coarse != "lite" or clip is not None:
        raise InputError(
            f"There is no coarse masker “{coarse}”, or it has no settings. Accepted: lite, clip, clip:MODEL."
        )
    return LiteMasker(weights.find("lite.safetensors"), weights.find(LEXICON), lite_encoder(device))


class CoarseMasks:
    """Stage 1 of lite for training pictures: class vectors learned on them, and each label's meaning."""

    name = origin = "lite"

    def __init__(self, training: TrainingSet) -> None:
        view = training.views[0]
        assert isinstance(view, CachedView)
        self.pooled = torch.from_numpy(np.stack([view.pooled(r) for r in range(len(training.images))]))
        classifier = EfficientNetLite().classifier
        names = sorted({*EVERYDAY, *(e.name for e in training.entries)})
        present = training.image_labels(names)
        own = [names.index(name) for name in EVERYDAY]
        directions = everyday.learn(view.heads, present, training.groups(), own, training.config.seed)
        self.weight, self.bias = everyday.calibrate(
            self.pooled, present[:, own], directions, classifier.weight, classifier.bias
        )
        self.cam = LiteCam(torch.cat([classifier.weight, self.weight]), torch.cat([classifier.bias, self.bias]))
        lexicon = Lexicon(weights.find(LEXICON))
        labels = {*(e.label for e in training.entries), *EVERYDAY}
        self.mixture = {label: lexicon.meaning(label).mixture for label in labels}

    def __call__(self, head: Tensor, labels: Sequence[str]) -> tuple[Tensor, Tensor]:
        return self.cam(head, torch.stack([self.mixture[label] for label in labels]))

    def masks(self, looks: Sequence[Look], loaded: Loaded) -> Tensor:
        return self(loaded["head"], [look.label for look in looks])[0]


class StoredMasks:
    """Coarse masks of every entry's whole picture, made once by a masker and kept on disk.

    Args:
        cells: side of the masks that the network is given.
        cache: folder; masks are found again by masker and its settings, by names, folders and sizes of the pictures'
            files, and by labels.
    """

    def __init__(self, training: TrainingSet, masker: Masker, cells: int, cache: Path) -> None:
        self.training, self.cells, self.name = training, cells, masker.name
        made_by = [masker.name, repr(masker.settings), *map(weights.sha256, masker.files)]
        self.origin = hashlib.sha256("\n".join(made_by).encode()).hexdigest()
        pairs = {(row, e.label): None for row, e in zip(training.rows, training.entries, strict=True)}
        self._places = {pair: i for i, pair in enumerate(pairs)}
        files = [(training.images[row], label) for row, label in pairs]
        known = [f"{path.parent.name}/{path.name}\t{path.stat().st_size}\t{label}" for path, label in files]
        digest = hashlib.sha256("\n".join([self.origin, *known]).encode(errors="surrogateescape")).hexdigest()
        file = cache / f"coarse-{digest[:12]}.npy"
        if not file.is_file():
            self._make(masker, file)
        self._masks = np.load(file, mmap_mode="r")

    def masks(self, looks: Sequence[Look], loaded: Loaded) -> Tensor:
        out = []
        for look in looks:
            row = self.training.rows[look.position]
            mask = np.asarray(self._masks[self._places[row, look.label]], np.float32)
            if look.view:
                fine = to_size(mask, (self.training.side, self.training.side))
                mask = self.training.views[look.view].crop(fine, row)
            mask = to_size(mask, (self.cells, self.cells))
            out.append(torch.from_numpy(mask[:, ::-1].copy() if look.flip else mask))
        return torch.stack(out).unsqueeze(1)

    def _make(self, masker: Masker, file: Path) -> None:
        labels: dict[int, list[str]] = {}
        for row, label in self._places:
            labels.setdefault(row, []).append(label)
        readings = {label: masker.read(label, [], False) for _, label in self._places}
        found: dict[tuple[int, str], np.ndarray] = {}
        rows = list(labels)
        steps = range(0, len(rows), TOGETHER)
        for start in tqdm(steps, desc="coarse masks", mininterval=1.0, disable=distributed.rank() > 0):
            part = rows[start : start + TOGETHER]
            features = masker.encoder([open_picture(self.training.images[row]) for row in part])
            for i, row in enumerate(part):
                own = {name: tensor[i : i + 1] for name, tensor in features.items()}
                for label in labels[row]:
                    with torch.inference_mode():
                        mask = masker.masks([own], readings[label])[0][0, 0]
                    found[row, label] = mask.half().cpu().numpy()
        file.parent.mkdir(parents=True, exist_ok=True)
        part_file = file.with_name(f"{file.name}.{os.getpid()}.part")
        try:
            with part_file.open("wb") as out:
                np.save(out, np.stack([found[place] for place in self._places]))
            part_file.replace(file)
        finally:
            part_file.unlink(missing_ok=True)


class TrueMasks:
    """The true masks themselves, as HSNet is trained with."""

    name = origin = "true"

    def __init__(self, training: TrainingSet) -> None:
        self.training = training

    def masks(self, looks: Sequence[Look], loaded: Loaded) -> Tensor:
        out = []
        for look in looks:
            target = self.training.target(look.position, look.view)
            if self.training.entries[look.position].label != look.label:
                target = target * torch.tensor([0.0, 1.0]).view(2, 1, 1)  # the picture does not show it
            out.append(target.flip(-1) if look.flip else target)
        both = torch.stack(out)
        share = both[:, :1] / both[:, 1:].clamp_min(1e-3)
        return F.interpolate(share.clamp(0, 1), scale_factor=0.5, mode="area")
