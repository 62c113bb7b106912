"""``python -m imrseg train``: the lite refiner on precomputed features (paper equation 7).

    python -m imrseg train --benchmark pascal --data DATA --splits DATA/splits/pascal --fold all \
        --extra folder:msrc/trn --out runs/lite

Each iteration depends on nothing but the seed and its own number, so a resumed run goes on exactly
where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from imrseg import weights
from imrseg.coarse import everyday
from imrseg.coarse.lexicon import EVERYDAY, LEXICON, Lexicon
from imrseg.coarse.lite import LiteCam
from imrseg.data import entries as data_sets
from imrseg.data.entries import IGNORE, PASCAL, PASCAL_FOLDS, Entry, by_class
from imrseg.data.features import View
from imrseg.errors import InputError
from imrseg.models.backbones import EfficientNetLite
from imrseg.models.lite import lite_refiner
from imrseg.models.refiner import Refiner
from imrseg.networks import LITE_SIDE

SAVE_EVERY = 100  # iterations


@dataclass(frozen=True)
class Config:
    """The recipe.

    Attributes:
        iterations, batch: optimisation steps, and episodes in each.
        steps: refinement steps N; all are supervised alike (lambda_t = 1, w_s = 1).
        learning_rate, weight_decay, warmup, clip: AdamW with cosine decay; clip is of the gradient's norm.
        dice: weight of the soft Dice loss beside cross entropy.
        negatives: share of episodes whose query does not show the label and must come out empty.
        jitter: share of coarse masks that are sharpened, blurred or disturbed.
        views: looks at each picture: the whole, and views - 1 random crops.
        extra: weight of an extra data set's classes when an episode's class is drawn.
        seed: of everything that is drawn.
        channels, guide: size of the network.
    """

    iterations: int = 800
    batch: int = 8
    steps: int = 3
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup: int = 50
    clip: float = 1.0
    dice: float = 0.5
    negatives: float = 0.1
    jitter: float = 0.5
    views: int = 2
    extra: float = 0.2
    seed: int = 0
    channels: int = 48
    guide: int = 32


CONFIGS = {"lite": Config()}


@dataclass(frozen=True)
class Episode:
    """Positions of two entries; ``present``: whether the query shows the support's class."""

    query: int
    support: int
    present: bool


class TrainingSet:
    """Entries with their features, and episodes drawn from them.

    Args:
        sources: one list of entries per data set; the first is the main one.
        pictures: the pictures to keep features of, among them all entries'; folds may share them.
        cache: folder of the precomputed features.
    """

    def __init__(
        self, sources: Sequence[list[Entry]], pictures: Iterable[Path], config: Config, side: int, cache: Path
    ) -> None:
        self.config, self.side = config, side
        self.sources = sources
        self.entries = [entry for source in sources for entry in source]
        self.images = sorted({path.resolve() for path in pictures})
        row = {path: i for i, path in enumerate(self.images)}
        self.rows = [row[entry.image.resolve()] for entry in self.entries]
        self.views = [View(self.images, v, side, cache) for v in range(config.views)]
        # Classes are drawn by the square root of their size: rare ones are seen, but not too often.
        self._classes: list[tuple[range, list[int], set[int]]] = []
        chances, start = [], 0
        for k, source in enumerate(sources):
            span = range(start, start + len(source))
            for members in by_class(source).values():
                if len(members) > 1:
                    positions = [start + i for i in members]
                    self._classes.append((span, positions, {self.rows[i] for i in positions}))
                    chances.append(len(members) ** 0.5 * (1.0 if k == 0 else config.extra))
            start += len(source)
        self._chances = np.array(chances) / sum(chances)
        self._targets: dict[tuple[int, int], Tensor] = {}

    def draw(self, rng: np.random.Generator) -> Episode:
        """One episode: a class, two of its pictures; sometimes a query that lacks the class."""
        span, members, shown = self._classes[rng.choice(len(self._classes), p=self._chances)]
        query, support = (int(i) for i in rng.choice(members, 2, replace=False))
        if rng.random() >= self.config.negatives:
            return Episode(query, support, True)
        lacking = [i for i in rng.choice(span, 20) if self.rows[i] not in shown]
        return Episode(int(lacking[0]), support, False) if lacking else Episode(query, support, True)

    def target(self, position: int, view: int) -> Tensor:
        """(2, side/4, side/4) of an entry as a view shows it: the object's share, and the valid share."""
        if (position, view) not in self._targets:
            target = self.views[view].crop(self.entries[position].target(), self.rows[position])
            target = cv2.resize(target, (self.side, self.side), interpolation=cv2.INTER_NEAREST)
            both = torch.from_numpy(np.stack([target == 1, target != IGNORE]).astype(np.float32))
            self._targets[position, view] = (F.avg_pool2d(both, 4) * 16).byte()
        return self._targets[position, view].float() / 16

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


class CoarseMasks:
    """Stage 1 for training pictures: class vectors learned on them, and each label's meaning."""

    def __init__(self, training: TrainingSet) -> None:
        self.pooled = torch.from_numpy(np.stack([training.views[0].pooled(r) for r in range(len(training.images))]))
        classifier = EfficientNetLite().classifier
        self.weight, self.bias = everyday.learn(
            self.pooled, training.image_labels(list(EVERYDAY)), classifier.weight, classifier.bias
        )
        self.cam = LiteCam(torch.cat([classifier.weight, self.weight]), torch.cat([classifier.bias, self.bias]))
        lexicon = Lexicon(weights.find(LEXICON))
        self.mixture = {e.label: lexicon.meaning(e.label).mixture for e in training.entries}

    def __call__(self, head: Tensor, labels: Sequence[str]) -> tuple[Tensor, Tensor]:
        return self.cam(head, torch.stack([self.mixture[label] for label in labels]))


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


def segmentation_loss(logits: Tensor, target: Tensor, dice: float) -> Tensor:
    """Cross entropy (equation 7's L_seg) plus ``dice`` times the soft Dice loss.

    Args:
        logits: (B, 2, h, w). target: (B, 2, h, w), the object's and the valid share of each cell.
    """
    valid = target[:, 1]
    share = (target[:, 0] / valid.clamp_min(1e-3)).clamp(0, 1)
    margin = logits[:, 1] - logits[:, 0]
    entropy = F.binary_cross_entropy_with_logits(margin, share, reduction="none")
    loss = (entropy * valid).sum() / valid.sum()
    found, wanted = margin.sigmoid() * valid, share * valid
    # The constant keeps small objects and empty targets from dominating.
    overlap = (2 * (found * wanted).sum((1, 2)) + 20) / (found.sum((1, 2)) + wanted.sum((1, 2)) + 20)
    return loss + dice * (1 - overlap).mean()


def make_batch(training: TrainingSet, coarse: CoarseMasks, config: Config, iteration: int):
    """Features, coarse masks and targets of one iteration; a function of the seed and its number."""
    rng = np.random.default_rng([config.seed, iteration])
    queries, supports, targets, labels = [], [], ([], []), []
    for _ in range(config.batch):
        episode = training.draw(rng)
        labels.append(training.entries[episode.support].label)
        for position, out, aims in ((episode.query, queries, targets[0]), (episode.support, supports, targets[1])):
            view, flip = int(rng.integers(config.views)), bool(rng.random() < 0.5)
            out.append(training.views[view].features(training.rows[position], flip))
            target = training.target(position, view)
            if position == episode.query and not episode.present:  # all of it is background
                target = torch.stack([torch.zeros_like(target[0]), torch.ones_like(target[1])])
            aims.append(target.flip(-1) if flip else target)
    query, support = ({k: torch.stack([f[k] for f in fs]) for k in fs[0]} for fs in (queries, supports))
    masks = [disturb(coarse(f.pop("head"), labels)[0], rng, config.jitter) for f in (query, support)]
    return query, support, *masks, torch.stack([*targets[0], *targets[1]])


def fit(refiner: Refiner, training: TrainingSet, coarse: CoarseMasks, config: Config, out: Path, resume: bool) -> None:
    """Train ``refiner`` in place; the state is kept in ``out/state.pt``, losses in ``out/log.jsonl``."""
    optimizer = torch.optim.AdamW(refiner.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    state, first = out / "state.pt", 0
    if resume and state.is_file():
        saved = torch.load(state, weights_only=True)
        refiner.load_state_dict(saved["refiner"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["iteration"]
    refiner.train()
    recent: list[list[float]] = []
    with (out / "log.jsonl").open("a") as log, ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(make_batch, training, coarse, config, first)
        for i in (bar := tqdm(range(first, config.iterations), initial=first, total=config.iterations, mininterval=2)):
            query, support, query_mask, support_mask, target = upcoming.result()
            upcoming = pool.submit(make_batch, training, coarse, config, i + 1)
            decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * i / config.iterations))
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * min(1.0, (i + 1) / config.warmup) * decay
            with torch.autocast("cpu", torch.bfloat16):
                states = refiner(query, support, query_mask, support_mask, config.steps)
            losses = [segmentation_loss(s.logits, target, config.dice) for s in states if s.logits is not None]
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            torch.nn.utils.clip_grad_norm_(refiner.parameters(), config.clip)
            optimizer.step()
            recent.append([float(x.detach()) for x in losses])
            if (i + 1) % SAVE_EVERY == 0 or i + 1 == config.iterations:
                mean = np.mean(recent, 0).round(4).tolist()
                recent.clear()
                bar.set_postfix(loss=mean)
                log.write(json.dumps({"iteration": i + 1, "loss": mean}) + "\n")
                log.flush()
                torch.save(
                    {"refiner": refiner.state_dict(), "optimizer": optimizer.state_dict(), "iteration": i + 1},
                    state.with_suffix(".part"),
                )
                state.with_suffix(".part").replace(state)
    refiner.eval()


def calibrate(training: TrainingSet, coarse: CoarseMasks, config: Config, count: int = 400) -> dict:
    """What the coarse stage needs to know of itself, measured on training pictures.

    Returns:
        ``coarse_threshold``: the level with the best mean IoU over classes; ``confidence``: slope and
        offset of a logistic fit of "the label is there" on its log-probability.
    """
    rng = np.random.default_rng([config.seed, 1])
    levels = np.arange(0.05, 0.65, 0.05)
    areas: dict[str, np.ndarray] = {}
    evidence, present = [], []
    main = range(len(training.sources[0]))
    labels = sorted({training.entries[i].label for i in main})
    shows = {(training.rows[i], training.entries[i].label) for i in main}
    for position in rng.choice(main, min(count, len(main)), replace=False):
        entry, row = training.entries[position], training.rows[position]
        head = training.views[0].features(row, False)["head"].unsqueeze(0)
        cam, score = coarse(head, [entry.label])
        target = training.target(position, 0)
        soft = F.interpolate(cam, target.shape[-2:], mode="bilinear", align_corners=False)[0, 0].numpy()
        truth, valid = target[0].numpy() >= 0.5, target[1].numpy() >= 0.5
        pooled = areas.setdefault(entry.label, np.zeros((len(levels), 2)))
        for k, level in enumerate(levels):
            pooled[k] += np.sum((soft >= level) & truth & valid), np.sum(((soft >= level) | truth) & valid)
        evidence.append(float(score))
        present.append(1.0)
        others = [label for label in labels if (row, label) not in shows]
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


def gather(
    benchmark: str, data: Path, splits: Path | None, fold: str, extra: Sequence[str]
) -> tuple[list[list[Entry]], set[Path]]:
    """The training entries: of PASCAL the other folds' ``trn`` lists, then each extra data set.

    Classes of an extra data set that equal a held-out one are left out. Also returns the pictures
    of all folds, so that features made for one fold serve the others.

    Raises:
        InputError: unknown benchmark, fold or extra; missing files.
    """
    held: set[str] = set()
    if benchmark == "folder":
        whole = main = data_sets.folder(data)
    elif benchmark == "pascal" and splits is not None:
        if fold != "all" and fold not in map(str, range(PASCAL_FOLDS)):
            raise InputError(f"There is no fold “{fold}”. Accepted: 0 to {PASCAL_FOLDS - 1}, or all.")
        whole = main = data_sets.pascal(data, splits, "trn", range(PASCAL_FOLDS))
        if fold != "all":
            size = len(PASCAL) // PASCAL_FOLDS
            held = set(PASCAL[size * int(fold) : size * (int(fold) + 1)])
            main = data_sets.pascal(data, splits, "trn", [f for f in range(PASCAL_FOLDS) if f != int(fold)])
    else:
        raise InputError("Accepted benchmarks: folder, and pascal with --splits.")
    if "person" in held:
        held.add("face")  # part of a person
    sources, pictures = [main], {entry.image for entry in whole}
    for item in extra:
        kind, _, path = item.partition(":")
        if kind != "folder" or not path:
            raise InputError(f"An extra data set is given as folder:DIR, not “{item}”.")
        entries = data_sets.folder(Path(path))
        pictures |= {entry.image for entry in entries}
        sources.append([entry for entry in entries if entry.name not in held])
    return sources, pictures


def train(
    sources: Sequence[list[Entry]],
    pictures: Iterable[Path],
    config: Config,
    out: Path,
    cache: Path,
    resume: bool = False,
) -> Path:
    """Train ``lite`` and write ``out/lite.safetensors``, ready for ``--checkpoint``; returns its path."""
    out.mkdir(parents=True, exist_ok=True)
    training = TrainingSet(sources, pictures, config, LITE_SIDE, cache)
    coarse = CoarseMasks(training)
    torch.manual_seed(config.seed)
    network = {"channels": config.channels, "guide": config.guide}
    refiner = lite_refiner(**network).to(memory_format=torch.channels_last)
    measured = range(config.iterations, config.iterations + 20)
    refiner.neck.measure(make_batch(training, coarse, config, i)[0] for i in measured)
    fit(refiner, training, coarse, config, out, resume)
    tensors = {name: t.contiguous() for name, t in refiner.state_dict().items()}
    tensors |= {"everyday.weight": coarse.weight, "everyday.bias": coarse.bias}
    metadata = {
        "network": network,
        **calibrate(training, coarse, config),
        "config": asdict(config),
        "classes": sorted({e.name for s in sources for e in s}),
        "pictures": len(set(training.rows)),
    }
    path, part = out / "lite.safetensors", out / "lite.safetensors.part"
    save_file(tensors, part, metadata={"imrseg": json.dumps(metadata)})
    part.replace(path)
    return path


def run(args: argparse.Namespace) -> Path:
    """The command ``train``: see ``cli.py`` for its options.

    Raises:
        InputError: settings or data that cannot be used.
    """
    if args.config not in CONFIGS:
        raise InputError(f"There is no config “{args.config}”. Configs: {', '.join(CONFIGS)}.")
    config = replace(CONFIGS[args.config], seed=args.seed)
    if args.iterations is not None:
        config = replace(config, iterations=args.iterations)
    sources, pictures = gather(args.benchmark, args.data, args.splits, args.fold, args.extra)
    return train(sources, pictures, config, args.out, args.cache or args.out / "features", args.resume)
