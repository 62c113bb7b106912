"""Two processes give what one does: gradients in training, scores in evaluation."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from imrseg import Segmenter
from imrseg.data.benchmarks import held_out
from imrseg.errors import InputError
from imrseg.evaluation import evaluate
from imrseg.training import CONFIGS, gather, loop
from imrseg.training.data import TrainingSet, make_batch
from imrseg.training.loop import Forward, backward
from imrseg.training.starts import TrueMasks
from imrseg.training.trainees import new_trainee

CONFIG = replace(CONFIGS["lite"], batch=4, steps=2, precision="float32", start="true", support_weight=0.5)
KEYS = ("miou", "fb_iou", "per_class", "skipped", "episodes")


def job(pictures: Path, cache: Path) -> dict:
    """Gradients of one iteration, and scores of seven episodes, with as many processes as there are."""
    training = TrainingSet(*gather("folder", pictures, None, "all", []), CONFIG, CONFIG.side, cache)
    trainee = new_trainee(CONFIG, torch.device("cpu"))
    for module in trainee.refiner.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.p = 0.0  # which each process draws for itself
    model = Forward(trainee, CONFIG, torch.device("cpu"))
    model.train()
    wrapped = DistributedDataParallel(model) if dist.is_initialized() else model
    losses = backward(wrapped, make_batch(training, TrueMasks(training), CONFIG, 0), CONFIG)
    gradients = {name: p.grad for name, p in trainee.refiner.named_parameters()}
    result = evaluate(
        Segmenter.from_preset("lite", "cpu"), held_out("folder", pictures, None, None), episodes=7, steps=1
    )
    return {"gradients": gradients, "losses": losses, "scores": {key: result[key] for key in KEYS}}


def process(rank: int, pictures: Path, cache: Path, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/meeting", rank=rank, world_size=2)
    torch.save(job(pictures, cache), out / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone(pictures, cache) -> dict:
    return job(pictures, cache)


@pytest.fixture(scope="module")
def together(pictures, cache, alone, tmp_path_factory) -> list[dict]:
    out = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(process, (pictures, cache, out), nprocs=2)
    return [torch.load(out / f"{rank}.pt") for rank in (0, 1)]


def test_two_processes_give_the_gradients_of_one(alone, together):
    largest = max(g.abs().max() for g in alone["gradients"].values())
    assert largest > 1e-3
    for each in together:
        assert each["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        for name, gradient in alone["gradients"].items():
            torch.testing.assert_close(each["gradients"][name], gradient, rtol=1e-4, atol=1e-5 * float(largest))


def test_two_processes_give_the_scores_of_one(alone, together):
    assert alone["scores"]["episodes"] == 7
    for each in together:
        assert each["scores"] == alone["scores"]


def test_each_process_has_its_own_share_of_the_episodes(pictures, cache, monkeypatch):
    training = TrainingSet(*gather("folder", pictures, None, "all", []), CONFIG, CONFIG.side, cache)
    starts = TrueMasks(training)
    whole = make_batch(training, starts, CONFIG, 5)
    monkeypatch.setattr("imrseg.distributed.size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr("imrseg.distributed.rank", lambda rank=rank: rank)
        share = make_batch(training, starts, CONFIG, 5)
        assert torch.equal(share.query["s8"], whole.query["s8"][rank::2])
        assert torch.equal(share.target[:2], whole.target[:4][rank::2])
        assert torch.equal(make_batch(training, starts, CONFIG, 5, whole=True).target, whole.target)


def test_a_batch_must_divide(pictures, cache, tmp_path, monkeypatch):
    monkeypatch.setattr("imrseg.distributed.size", lambda: 3)
    trainee = new_trainee(CONFIG, torch.device("cpu"))
    with pytest.raises(InputError, match="3 processes cannot share a batch of 4"):
        loop.fit(trainee, None, None, CONFIG, tmp_path)
