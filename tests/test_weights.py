import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from imrseg import Segmenter, WeightsError, weights
from imrseg.coarse.lexicon import Lexicon


def resaved(checkpoint, out, change=lambda tensors, metadata: None):
    """The checkpoint with its tensors or metadata changed."""
    tensors, metadata = weights.load(checkpoint)
    change(tensors, metadata)
    save_file({name: t.contiguous() for name, t in tensors.items()}, out, {"imrseg": json.dumps(metadata)})
    return out


def test_our_own_checkpoint_loads(checkpoint):
    tensors, metadata = weights.load(checkpoint)
    assert tensors.keys() == load_file(checkpoint).keys()
    assert 0 < metadata["coarse_threshold"] < 1


def test_hashes_are_the_files(segmenter, checkpoint):
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert weights.sha256(checkpoint) == segmenter.hashes["lite.safetensors"] == digest


def test_another_checkpoint_by_path(checkpoint, tmp_path):
    copy = resaved(checkpoint, tmp_path / "mine.safetensors")
    assert Segmenter.from_preset("lite", "cpu", copy).checkpoint == copy


def test_a_missing_file_is_named_with_the_places(tmp_path):
    with pytest.raises(WeightsError, match=r"“none\.safetensors” were not found. Looked for: .*checkpoints"):
        weights.find("none.safetensors")
    with pytest.raises(WeightsError, match="not found"):
        weights.find(tmp_path / "none.safetensors")


def test_files_that_are_no_checkpoints_are_refused(checkpoint, tmp_path):
    whole = checkpoint.read_bytes()
    save_file({"a": torch.zeros(2)}, tmp_path / "bare", None)
    save_file({"a": torch.zeros(2)}, tmp_path / "list", {"imrseg": "[1]"})
    for name, content in {"cut": whole[: len(whole) // 2], "head": whole[:5], "text": b"hello", "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
    torch.save({"a": torch.zeros(2)}, tmp_path / "pickle")
    for name in ("cut", "head", "text", "empty", "pickle"):
        with pytest.raises(WeightsError, match="cannot be read as safetensors"):
            weights.load(tmp_path / name)
    for name in ("bare", "list"):
        with pytest.raises(WeightsError, match="is not a checkpoint of imrseg"):
            weights.load(tmp_path / name)


@pytest.mark.parametrize(
    "change",
    [
        lambda t, m: t.pop("everyday.weight"),
        lambda t, m: t.pop("cell.gates_in.weight"),
        lambda t, m: t.update(extra=torch.zeros(1)),
        lambda t, m: t.update({"everyday.weight": torch.zeros(9, 5)}),
        lambda t, m: t.update({"everyday.weight": torch.zeros(3, 1280), "everyday.bias": torch.zeros(3)}),
        lambda t, m: m.pop("coarse_threshold"),
        lambda t, m: m.update(confidence={}),
        lambda t, m: m.update(network={"channels": 32}),
        lambda t, m: m.update(network={"depth": 3}),
        lambda t, m: m.update(network=None),
    ],
)
def test_another_architecture_is_refused(checkpoint, tmp_path, change):
    path = resaved(checkpoint, tmp_path / "other.safetensors", change)
    with pytest.raises(WeightsError, match=r"other\.safetensors"):
        Segmenter.from_preset("lite", "cpu", path)


def test_a_module_is_filled_or_left_alone(tmp_path):
    module = torch.nn.Linear(2, 3)
    before = {name: t.clone() for name, t in module.state_dict().items()}
    with pytest.raises(WeightsError, match=r"missing bias; weight is \(1, 2\), not \(3, 2\)"):
        weights.fill(module, {"weight": torch.zeros(1, 2)}, tmp_path / "x")
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())
    weights.fill(module, {"weight": torch.ones(3, 2), "bias": torch.ones(3)}, tmp_path / "x")
    assert (module.weight == 1).all()


def test_a_broken_lexicon_is_refused(checkpoint, tmp_path):
    (tmp_path / "text").write_text("cat, dog")
    for path in (tmp_path / "none", tmp_path / "text", checkpoint):
        with pytest.raises(WeightsError):
            Lexicon(path)
