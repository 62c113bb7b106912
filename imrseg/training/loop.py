"""The training loop: the same for every network, on one process or several."""

from __future__ import annotations

import io
import json
import math
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from imrseg import distributed
from imrseg.errors import InputError, install
from imrseg.training.config import Config
from imrseg.training.data import Batch, Look, Starts, TrainingSet, assemble, make_batch
from imrseg.training.losses import segmentation_loss, total_loss
from imrseg.training.trainees import Trainee

SAVE_EVERY = 100  # iterations
LOADERS = 8  # threads that load pictures; features come from memory, for which one will do


class Forward(nn.Module):
    """Batches through a trainee, in the precision of the config; gives the logits of each step."""

    def __init__(self, trainee: Trainee, config: Config, device: torch.device) -> None:
        super().__init__()
        self.refiner, self.trainee, self.config, self.device = trainee.refiner, [trainee], config, device

    def forward(self, batch: Batch, steps: int) -> list[Tensor]:
        def there(loaded: dict[str, Tensor]) -> Any:
            return self.trainee[0].encode({k: t.to(self.device, non_blocking=True) for k, t in loaded.items()})

        masks = batch.query_mask.to(self.device), batch.support_mask.to(self.device)
        low, out = self.config.precision == "bfloat16", []
        # What IMR-HSNet makes once per pair stays in float32, as in ``IMRHSNet.bfloat16``.
        low_from_the_start = low and self.config.network != "imr-hsnet"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low_from_the_start):
            state = self.refiner.start(there(batch.query), there(batch.support), *masks)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            for _ in range(steps):
                state = self.refiner.step(state)
                assert state.logits is not None
                out.append(state.logits)
        return out


def backward(model: nn.Module, batch: Batch, config: Config) -> list[float]:
    """Add the gradients of equation 7; returns each step's loss, of queries and supports of all processes."""
    logits = model(batch, config.steps)
    target = batch.target.to(logits[0].device)
    weight = torch.ones(len(target), device=target.device)
    weight[len(target) // 2 :] = config.support_weight
    losses = [segmentation_loss(each, target, config.dice, weight) for each in logits]
    total_loss(losses, config.schedule).backward()
    return (distributed.total(torch.stack(losses).detach()) / distributed.size()).tolist()


def learning_rate(config: Config, iteration: int) -> float:
    """Of an iteration: warm-up, then the decay."""
    rate = config.learning_rate * min(1.0, (iteration + 1) / max(1, config.warmup))
    if config.decay == "constant":
        return rate
    return rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * iteration / config.iterations)))


def batches(training: TrainingSet, starts: Starts, config: Config, first: int) -> Iterator[Batch]:
    """The batches from iteration ``first`` on, made ahead of their use."""
    threads = min(LOADERS, os.cpu_count() or 1) if training.live else 1
    with ThreadPoolExecutor(threads) as pool:
        upcoming: deque[Future[Batch]] = deque()
        for i in range(first, config.iterations):
            while len(upcoming) <= threads and i + len(upcoming) < config.iterations:
                upcoming.append(pool.submit(make_batch, training, starts, config, i + len(upcoming)))
            yield upcoming.popleft().result()


@torch.no_grad()
def validate(model: nn.Module, training: TrainingSet, starts: Starts, config: Config) -> float:
    """Mean IoU of the last step over the episodes kept back, cut at 0.5 in the cells of the targets."""
    episodes = training.held_out()
    own = episodes[distributed.rank() :: distributed.size()]
    classes = {name: i for i, name in enumerate(sorted({training.entries[e.support].name for e in episodes}))}
    areas = torch.zeros(len(classes), 2)
    model.eval()
    for start in range(0, len(own), config.batch):
        part = own[start : start + config.batch]
        labels = [training.entries[e.support].label for e in part]
        looks = [(Look(e.query, w), Look(e.support, w)) for e, w in zip(part, labels, strict=True)]
        batch = assemble(training, starts, part, looks)
        logits = model(batch, config.steps)[-1][: len(part)]
        soft = torch.nn.functional.interpolate(
            logits.softmax(1)[:, 1:], batch.target.shape[-2:], mode="bilinear", align_corners=False
        )
        found, target = soft[:, 0].cpu() >= 0.5, batch.target[: len(part)]
        truth, valid = target[:, 0] >= 0.5, target[:, 1] >= 0.5
        for i, name in enumerate(batch.names):
            areas[classes[name], 0] += (found[i] & truth[i] & valid[i]).sum()
            areas[classes[name], 1] += ((found[i] | truth[i]) & valid[i]).sum()
    model.train()
    device = next(model.parameters()).device
    areas = distributed.total(areas.to(device)).cpu()
    return float((areas[:, 0] / areas[:, 1].clamp_min(1)).mean())


def fit(
    trainee: Trainee,
    training: TrainingSet,
    starts: Starts,
    config: Config,
    out: Path,
    resume: bool = False,
    device: torch.device | None = None,
    tensorboard: bool = False,
) -> None:
    """Train ``trainee.refiner`` in place; the state is kept in ``out/state.pt``, losses in ``out/log.jsonl``.

    Raises:
        InputError: the state in ``out`` belongs to another config or other data, cannot be read, or cannot be
            written; a batch that the processes cannot share; TensorBoard is missing; training diverges.
    """
    if config.batch % distributed.size():
        raise InputError(f"{distributed.size()} processes cannot share a batch of {config.batch} episodes evenly.")
    device = device or torch.device("cpu")
    refiner, first = trainee.refiner, 0
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    decay = config.weight_decay if config.optimizer == "adamw" else 0.0
    optimizer = kind(refiner.parameters(), config.learning_rate, weight_decay=decay)
    state, best = out / "state.pt", None
    data = {
        "digest": training.digest(), "order": training.order(), "coarse": starts.name, "origin": starts.origin
    }  # fmt: skip
    if resume and state.is_file():
        saved = load_state(state, config, data)
        refiner.load_state_dict(saved["refiner"])
        optimizer.load_state_dict(saved["optimizer"])
        first, best = saved["iteration"], saved["best"]
    if len({*distributed.gathered(first)}) > 1:
        raise InputError(f"Not all processes find the state in {out}. Give --out a folder that all machines share.")
    forward = Forward(trainee, config, device)
    model: nn.Module = forward
    if distributed.size() > 1:
        ids = [device] if device.type == "cuda" else None
        model = DistributedDataParallel(forward, device_ids=ids)
    model.train()
    log = Log(out, append=first > 0, tensorboard=tensorboard)
    recent: list[list[float]] = []
    bar = tqdm(range(first, config.iterations), initial=first, total=config.iterations, mininterval=2,
               desc="train", disable=distributed.rank() > 0)  # fmt: skip
    for i, batch in zip(bar, batches(training, starts, config, first), strict=True):
        torch.manual_seed(int(np.random.SeedSequence([config.seed, i, distributed.rank()]).generate_state(1)[0]))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, i)
        optimizer.zero_grad()
        recent.append(backward(model, batch, config))
        norm = nn.utils.clip_grad_norm_(refiner.parameters(), config.clip or math.inf)
        if not norm.isfinite():
            raise InputError(
                f"The gradient of iteration {i} is not finite: the last state is kept. Try a lower learning_rate,"
                " a clip, or precision=float32."
            )
        optimizer.step()
        done, last = i + 1, i + 1 == config.iterations
        row: dict[str, Any] = {}
        if config.held_out and (done % config.validate_every == 0 or last):
            row["validation"] = validate(forward, training, starts, config)
            if best is None or row["validation"] > best["score"]:
                weights = {name: t.detach().cpu().clone() for name, t in refiner.state_dict().items()}
                best = {"score": row["validation"], "iteration": done, "refiner": weights}
        stop = best is not None and done - best["iteration"] >= config.patience * config.validate_every > 0
        if done % SAVE_EVERY == 0 or last or row:
            row["loss"] = np.mean(recent, 0).round(4).tolist()
            recent.clear()
            bar.set_postfix(loss=row["loss"], **({"best": best["score"]} if best else {}))
            log.write(done, row)
            whole = {
                "refiner": refiner.state_dict(), "optimizer": optimizer.state_dict(), "iteration": done,
                "best": best, "config": asdict(config), "data": data,
            }  # fmt: skip
            save_state(state, whole)
        if stop:
            break
    bar.close()
    log.close()
    if best is not None:
        refiner.load_state_dict(best["refiner"])
    refiner.eval()


class Log:
    """What a run reports, by the first of its processes: ``log.jsonl``, and TensorBoard's files where asked for.

    Raises:
        InputError: TensorBoard is missing.
    """

    def __init__(self, out: Path, append: bool, tensorboard: bool) -> None:
        self._file, self._writer = out / "log.jsonl", None
        self._first = distributed.rank() == 0
        if self._first and not append:
            self._file.write_text("")
        if self._first and tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise InputError(f"TensorBoard is missing: {install('train')}, or leave --tensorboard out.") from None
            self._writer = SummaryWriter(out / "tensorboard")

    def write(self, iteration: int, row: dict[str, Any]) -> None:
        if not self._first:
            return
        with self._file.open("a") as file:
            file.write(json.dumps({"iteration": iteration, **row}) + "\n")
        if self._writer is not None:
            for step, loss in enumerate(row["loss"], 1):
                self._writer.add_scalar(f"loss/step{step}", loss, iteration)
            if "validation" in row:
                self._writer.add_scalar("validation/miou", row["validation"], iteration)
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def load_state(path: Path, config: Config, data: dict[str, str]) -> dict[str, Any]:
    """What ``save_state`` has written.

    Raises:
        InputError: it is nothing of that kind, or of another config or other data.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        before, told = saved["config"], saved.get("data", {})  # states of before say less of their data, or nothing
        same_data = all(data.get(name) == value for name, value in told.items())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}).") from None
    except Exception as error:  # a broken file can raise anything
        raise InputError(
            f"{path} is not the state of a training ({error or type(error).__name__}). Remove it to begin anew."
        ) from None
    others = [name for name, value in asdict(config).items() if before.get(name) != value]
    if others:
        was = ", ".join(f"{name}={before.get(name)}" for name in others)
        raise InputError(f"{path} belongs to another config ({was}). Train into another folder, or set it so.")
    if not same_data:
        raise InputError(
            f"{path} belongs to other data: another fold, data set or lists, or other coarse masks."
            " Train into another folder, or give what it was begun with."
        )
    return saved


def save_state(path: Path, state: dict[str, Any]) -> None:
    """``torch.save`` by the first process, whole or not at all.

    Raises:
        InputError: it cannot be written; what was saved before is as it was.
    """
    if distributed.rank() == 0:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_whole(path, buffer.getvalue())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, or leave the one that was there as it was.

    Raises:
        InputError: it cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        kept = " The last good one is as it was; make room, then go on with --resume." if path.is_file() else ""
        raise InputError(f"{path} cannot be written ({error.strerror or error}).{kept}") from error
    finally:
        part.unlink(missing_ok=True)
