"""Episodes for training: drawn, looked at, and made into batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from imrseg import distributed
from imrseg.data.entries import IGNORE, Entry, by_class
from imrseg.data.features import CachedView, View
from imrseg.errors import InputError
from imrseg.training.config import Config

CELL = 4  # pixels to a side of a target's cell
KEPT = 20_000  # targets that are remembered
VALIDATION = 200  # episodes

Loaded = dict[str, Tensor]  # features, or "picture"


@dataclass(frozen=True)
class Episode:
    """Positions of two entries; ``present``: whether the query shows the support's class."""

    query: int
    support: int
    present: bool


@dataclass(frozen=True)
class Look:
    """An entry as one view of it shows it, looked at for ``label``."""

    position: int
    label: str
    view: int = 0
    flip: bool = False


@dataclass(frozen=True)
class Batch:
    """Some episodes.

    Attributes:
        query, support: what was loaded of each picture, batch first.
        query_mask, support_mask: masks (B, 1, h, w) in [0, 1] that the first step is given.
        target: (2B, 2, g, g), queries before supports: the object's and the valid share of each cell.
        names: the class of each episode.
    """

    query: Loaded
    support: Loaded
    query_mask: Tensor
    support_mask: Tensor
    target: Tensor
    names: list[str]


class Starts(Protocol):
    """Where the masks come from that the first step is given.

    Attributes:
        name: for people. origin: tells what makes masks unlike, its settings and weights too.
    """

    name: str
    origin: str

    def masks(self, looks: Sequence[Look], loaded: Loaded) -> Tensor:
        """Masks (B, 1, h, w) in [0, 1] of pictures as they are seen, and what was loaded of them."""
        ...


class TrainingSet:
    """Entries, looks at their pictures, and episodes drawn from them.

    Args:
        sources: one list of entries per data set; the first is the main one.
        pictures: the pictures to keep features of, among them all entries'; folds may share them.
        side: of the square that the backbone sees.
        cache: folder of precomputed features; None: pictures are loaded in place of features (``live``).

    Raises:
        InputError: no class has two pictures.
    """

    def __init__(
        self, sources: Sequence[list[Entry]], pictures: Iterable[Path], config: Config, side: int, cache: Path | None
    ) -> None:
        self.config, self.side, self.live = config, side, cache is None
        self.sources = sources
        self.entries = [entry for source in sources for entry in source]
        self.images = sorted({path.resolve() for path in pictures})
        row = {path: i for i, path in enumerate(self.images)}
        self.rows = [row[entry.image.resolve()] for entry in self.entries]
        self.views: list[View] = [
            View(self.images, v, side) if cache is None else CachedView(self.images, v, side, cache)
            for v in range(config.views)
        ]
        chosen = np.random.default_rng([config.seed, 2]).random(len(self.images)) < config.held_out
        self._back = back = set(np.flatnonzero(chosen).tolist())
        # Classes are drawn by the square root of their size: rare ones are seen, but not too often.
        self._classes: list[tuple[range, list[int], set[int]]] = []
        self._held_out: list[list[int]] = []
        chances, start = [], 0
        for k, source in enumerate(sources):
            span = range(start, start + len(source))
            for members in by_class(source).values():
                whole = [start + i for i in members]
                positions = [i for i in whole if self.rows[i] not in back]
                if len(positions) > 1:
                    self._classes.append((span, positions, {self.rows[i] for i in whole}))
                    chances.append(len(positions) ** 0.5 * (1.0 if k == 0 else config.extra))
                kept = [i for i in whole if self.rows[i] in back]
                if len(kept) > 1 and k == 0:
                    self._held_out.append(kept)
            start += len(source)
        if not sum(chances):
            raise InputError("No class has two pictures to train on; an episode needs a query and a support.")
        if config.held_out and not self._held_out:
            raise InputError(
                f"Of {len(self.images)} pictures a share of {config.held_out} keeps back no two of one class to"
                " choose the checkpoint by. Set held_out higher, or held_out=0 to train to the end."
            )
        self._chances = np.array(chances) / sum(chances)
        self._targets: dict[tuple[int, int], Tensor] = {}

    def draw(self, rng: np.random.Generator) -> Episode:
        """One episode: a class, two of its pictures; sometimes a query that lacks the class, or is its own support."""
        span, members, shown = self._classes[rng.choice(len(self._classes), p=self._chances)]
        query, support = (int(i) for i in rng.choice(members, 2, replace=False))
        if rng.random() >= self.config.negatives:
            alone = rng.random() < self.config.alone
            return Episode(query, query if alone else support, True)
        others = (int(i) for i in rng.choice(span, 20) if self.rows[i] not in shown | self._back)
        value = self.entries[support].value  # lists leave out pictures that show little of a class: masks say more
        lacking = next((i for i in others if value is None or not self.entries[i].shows(value)), None)
        return Episode(query, support, True) if lacking is None else Episode(lacking, support, False)

    def held_out(self) -> list[Episode]:
        """The episodes to choose a checkpoint by: of pictures kept back, classes alike."""
        rng, out = np.random.default_rng([self.config.seed, 3]), []
        for i in range(VALIDATION if self._held_out else 0):
            query, support = rng.choice(self._held_out[i % len(self._held_out)], 2, replace=False)
            out.append(Episode(int(query), int(support), True))
        return out

    def digest(self) -> str:
        """Tells data sets apart by the names of their pictures and classes."""
        names = [[f"{entry.image.name}\t{entry.name}" for entry in source] for source in self.sources]
        return hashlib.sha256(json.dumps(names).encode()).hexdigest()

    def order(self) -> str:
        """Tells orders of the pictures apart: by their place in it they are kept back and cropped."""
        return hashlib.sha256(json.dumps([f"{p.parent.name}/{p.name}" for p in self.images]).encode()).hexdigest()

    def load(self, look: Look) -> Loaded:
        """Features of what a look shows, or {"picture": uint8 (3, side, side)}."""
        view, row = self.views[look.view], self.rows[look.position]
        if isinstance(view, CachedView):
            return view.features(row, look.flip)
        pixels = torch.from_numpy(view.pixels(row)).permute(2, 0, 1)
        return {"picture": pixels.flip(-1) if look.flip else pixels}

    def target(self, position: int, view: int) -> Tensor:
        """(2, g, g), g = side // 4, of an entry as a view shows it: the object's share, and the valid share."""
        known = self._targets.get((position, view))
        if known is None:
            target = self.views[view].crop(self.entries[position].target(), self.rows[position])
            target = cv2.resize(target, (self.side, self.side), interpolation=cv2.INTER_NEAREST)
            both = torch.from_numpy(np.stack([target == 1, target != IGNORE]).astype(np.float32))
            grid = self.side // CELL
            known = (F.adaptive_avg_pool2d(both, (grid, grid)) * 16).round().byte()
            if len(self._targets) < KEPT:
                self._targets[position, view] = known
        return known.float() / 16

    def groups(self) -> list[list[int]]:
        """The rows of each source's pictures."""
        ends = np.cumsum([len(source) for source in self.sources]).tolist()
        return [sorted({*self.rows[end - len(s) : end]}) for s, end in zip(self.sources, ends, strict=True)]

    def image_labels(self, names: Sequence[str]) -> Tensor:
        """(images, names): 1 where a picture shows a class, 0 where not, NaN where its source does not say."""
        labels = torch.full((len(self.images), len(names)), float("nan"))
        start = 0
        for source in self.sources:
            rows = self.rows[start : start + len(source)]
            for k, name in enumerate(names):
                shown = [r for r, entry in zip(rows, source, strict=True) if entry.name == name]
                if shown:
                    labels[rows, k] = 0
                    labels[shown, k] = 1
            start += len(source)
        return labels


def disturb(mask: Tensor, rng: np.random.Generator, share: float) -> Tensor:
    """Coarse masks (B, 1, h, w) of other quality, so that the refiner learns to judge them."""
    out = mask.clone()
    for i in range(len(mask)):
        if rng.random() >= share:
            continue
        m = mask[i : i + 1] ** float(np.exp(rng.normal(0, 0.5)))
        if rng.random() < 0.4:
            noise = torch.from_numpy(rng.normal(0, 0.25, (1, 1, 5, 5)).astype(np.float32))
            m = m + F.interpolate(noise, m.shape[-2:], mode="bilinear", align_corners=False)
        if rng.random() < 0.3:
            m = F.avg_pool2d(m, 3, 1, 1)
        out[i : i + 1] = m.clamp(0, 1)
    return out


def make_batch(training: TrainingSet, starts: Starts, config: Config, iteration: int, whole: bool = False) -> Batch:
    """This process's episodes of one iteration: each a function of the seed, the iteration and its number.

    Args:
        whole: all episodes, those of the other processes too.
    """
    own = range(config.batch) if whole else range(distributed.rank(), config.batch, distributed.size())
    rngs = [np.random.default_rng([config.seed, iteration, i]) for i in own]
    looks: list[tuple[Look, Look]] = []
    episodes = [training.draw(rng) for rng in rngs]
    for episode, rng in zip(episodes, rngs, strict=True):
        label = training.entries[episode.support].label
        query, support = (
            Look(position, label, int(rng.integers(config.views)), bool(rng.random() < config.flip))
            for position in (episode.query, episode.support)
        )
        looks.append((query, query if episode.query == episode.support else support))
    batch = assemble(training, starts, episodes, looks)
    for masks in (batch.query_mask, batch.support_mask):
        for i, rng in enumerate(rngs):
            masks[i : i + 1] = disturb(masks[i : i + 1], rng, config.jitter)
    return batch


def assemble(
    training: TrainingSet, starts: Starts, episodes: Sequence[Episode], looks: Sequence[tuple[Look, Look]]
) -> Batch:
    """The batch of episodes whose query and support are seen by ``looks``."""
    loaded, masks, targets = [], [], []
    for side in (0, 1):
        seen = [pair[side] for pair in looks]
        each = [training.load(look) for look in seen]
        loaded.append({name: torch.stack([one[name] for one in each]) for name in each[0]})
        masks.append(starts.masks(seen, loaded[-1]))
        for episode, look in zip(episodes, seen, strict=True):
            target = training.target(look.position, look.view)
            if side == 0 and not episode.present:  # all of it is background
                target = torch.stack([torch.zeros_like(target[0]), torch.ones_like(target[1])])
            targets.append(target.flip(-1) if look.flip else target)
    names = [training.entries[episode.support].name for episode in episodes]
    return Batch(loaded[0], loaded[1], masks[0], masks[1], torch.stack(targets), names)
