import contextlib
import hashlib
import json
import os
import pickle
import resource
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from imrseg import Segmenter, WeightsError, hub, weights
from imrseg.coarse.lexicon import Lexicon
from imrseg.hub import KNOWN
from imrseg.models import IMRHSNet
from imrseg.models.hsnet import authors_shapes


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
    assert Segmenter.from_preset("lite", "cpu", copy).network.file == copy


def test_a_checkpoint_beside_you_goes_before_the_shipped_one(checkpoint, tmp_path, monkeypatch):
    resaved(checkpoint, tmp_path / "lite.safetensors", lambda tensors, metadata: metadata.update(coarse_threshold=0.2))
    monkeypatch.chdir(tmp_path)
    for name in ("lite.safetensors", "./lite.safetensors"):
        assert Segmenter.from_preset("lite", "cpu", name).masker.threshold == 0.2
    assert Segmenter.from_preset("lite", "cpu").masker.threshold == 0.1  # which was not asked for


@pytest.mark.parametrize("side", ["400", 16, 33, 4000, 320.0, None], ids=str)
def test_a_size_that_no_picture_is_shown_at_is_refused(checkpoint, tmp_path, side):
    path = resaved(
        checkpoint, tmp_path / "x.safetensors", lambda tensors, metadata: metadata["config"].update(side=side)
    )
    with pytest.raises(WeightsError, match="32 to 2048"):
        Segmenter.from_preset("lite", "cpu", path)


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
        lambda t, m: t.pop("everyday.bias"),
        lambda t, m: t.update({"everyday.bias": torch.zeros(3)}),
        lambda t, m: m.update(coarse_threshold=float("nan")),
        lambda t, m: m.update(coarse_threshold=0),
        lambda t, m: m["confidence"].update(slope=float("inf")),
        lambda t, m: t.update({"head.block.0.weight": t["head.block.0.weight"].to(torch.int8)}),
        lambda t, m: t.update({"head.block.0.weight": t["head.block.0.weight"].to(torch.complex64)}),
        lambda t, m: t["head.block.0.weight"].view(-1)[:1].fill_(float("nan")),
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


def test_a_network_that_names_itself_is_known_by_its_name(checkpoint, tmp_path):
    path = resaved(checkpoint, tmp_path / "named.safetensors", lambda t, m: m["network"].update(name="lite"))
    assert weights.check_own(path)
    assert Segmenter.from_preset("lite", "cpu", path).preset.name == "lite"


def test_a_broken_lexicon_is_refused(checkpoint, tmp_path):
    (tmp_path / "text").write_text("cat, dog")
    save_file({"lemmas": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "bf16", {"classes": "1"})  # NumPy has none
    save_file({"lemmas": torch.ones(2, dtype=torch.uint8)}, tmp_path / "part", {"classes": "1"})
    for path in (tmp_path / "none", tmp_path / "text", checkpoint, tmp_path / "bf16", tmp_path / "part"):
        with pytest.raises(WeightsError):
            Lexicon(path)


def by_header(path: Path, header: dict | bytes, data: bytes = b"") -> Path:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F128", "shape": [1], "data_offsets": [0, 4]}},
        {"a": []},
        b"[" * 100_000,
        b"{",
        b"",
    ],
    ids=lambda header: str(header)[:40],
)  # fmt: skip
def test_a_header_that_lies_takes_no_memory(tmp_path, header):
    path = by_header(tmp_path / "x.safetensors", header, bytes(4))
    limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (room(), limit[1]))
    try:
        for read in (weights.outline, weights.read_state_dict, weights.load, weights.header, weights.describe):
            with contextlib.suppress(WeightsError):  # a tensor of no numbers may be read
                read(path)
        with pytest.raises(WeightsError):
            weights.load(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)


def room() -> int:
    """The memory that this process has mapped, and half a gigabyte, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + 2**29


def test_a_length_of_header_that_lies(tmp_path):
    for length in (0, 10, 2**32, 2**63, 2**64 - 1):
        (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", length) + b'{"a":1}')
        with pytest.raises(WeightsError):
            weights.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("said", ["[" * 100_000, "[]", "3", '{"network": 3}', '{"network": {"name": "none"}}', "{"])
def test_metadata_that_is_odd_is_refused(tmp_path, said):
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors", {"imrseg": said})
    with pytest.raises(WeightsError):
        Segmenter.from_preset("lite", "cpu", tmp_path / "x.safetensors")


@pytest.mark.parametrize("channels", [20_000, 10**6, 2**40, -1, 1.5, "48", None])
def test_a_network_that_claims_to_be_huge_is_not_built(checkpoint, tmp_path, channels):
    def change(tensors, metadata):
        metadata["network"] = {"channels": channels}

    path = resaved(checkpoint, tmp_path / "x.safetensors", change)
    limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (room(), limit[1]))
    try:
        for use in (weights.describe, lambda p: Segmenter.from_preset("lite", "cpu", p)):
            with pytest.raises(WeightsError, match=r"cannot be built|does not fit"):
                use(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)


def test_a_zip_on_several_disks_is_refused(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pt")
    whole = bytearray((tmp_path / "x.pt").read_bytes())
    end = whole.rindex(b"PK\x05\x06")
    whole[end - 16 : end - 12] = b"\1\0\0\0"  # of the locator of the large directory's end: the disk
    whole[end - 4 : end] = b"\2\0\0\0"
    (tmp_path / "x.pt").write_bytes(whole)
    for read in (weights.outline, weights.read_state_dict, weights.describe):
        with pytest.raises(WeightsError, match="damaged"):
            read(tmp_path / "x.pt")


# Where weights are found


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home without weights."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def put(path: Path, content: bytes = b"weights") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "name", ["RN50.pt", "vgg16-397923af.pth", "imr-hsnet-vgg16-coco-0.safetensors", "x.safetensors"]
)
def test_the_users_cache_comes_before_others(home, name):
    assert not weights.have(name)
    shared = {"RN50.pt": ".cache/clip", "vgg16-397923af.pth": ".cache/torch/hub/checkpoints"}
    if name in shared:
        file = put(home / shared[name] / name)
        assert weights.find(name) == file
    own = put(home / ".cache" / "imrseg" / name)
    assert weights.have(name)
    assert weights.find(name) == own == weights.obtain(name)


def test_links_are_followed_unless_they_lead_nowhere(home):
    link = home / ".cache" / "imrseg" / "RN50.pt"
    file = put(home / "elsewhere")
    link.parent.mkdir(parents=True)
    link.symlink_to(home / "none")
    assert not weights.have("RN50.pt")
    link.unlink()
    link.symlink_to(file)
    assert weights.find("RN50.pt") == link
    link.unlink()
    link.symlink_to(link)
    assert not weights.have("RN50.pt")


def test_a_missing_file_is_told_with_what_to_do(home):
    for find in (weights.find, weights.obtain, weights.fetch):
        with pytest.raises(
            WeightsError, match=r"weights convert best_model\.pt \S+/\.cache/imrseg/imr-hsnet-vgg16-coco-3\."
        ):
            find("imr-hsnet-vgg16-coco-3.safetensors")
    with pytest.raises(WeightsError, match=r"Looked for: .*none\.pt$"):
        weights.obtain(home / "none.pt")
    with pytest.raises(WeightsError, match=r"no weights called “none”. Known: lite\.safetensors"):
        weights.fetch("none")


@pytest.fixture
def hub_of(monkeypatch):
    """A hub that has ``RN50.pt`` with this content; the list of what was downloaded."""

    def make(content: bytes) -> list[str]:
        asked = []
        row = replace(KNOWN["RN50.pt"], size=len(content), sha256=hashlib.sha256(content).hexdigest())
        monkeypatch.setitem(KNOWN, "RN50.pt", row)
        monkeypatch.setattr(
            hub, "download", lambda row, folder: asked.append(row.name) or put(folder / row.name, content)
        )
        return asked

    return make


def test_what_is_missing_comes_from_the_hub(home, hub_of):
    asked = hub_of(b"right")
    assert weights.obtain("RN50.pt") == home / ".cache/imrseg/RN50.pt" == weights.obtain("RN50.pt")
    assert asked == ["RN50.pt"]


def test_fetching_leaves_a_whole_file_and_replaces_a_broken_one(home, hub_of):
    asked = hub_of(b"right")
    shared = put(home / ".cache/clip/RN50.pt", b"right")
    put(home / ".cache/imrseg/RN50.pt", b"wrong")
    assert weights.fetch("RN50.pt") == shared
    shared.write_bytes(b"cut")
    assert weights.fetch("RN50.pt").read_bytes() == b"right"
    assert asked == ["RN50.pt"]


# Files of others


class Evil:
    """Pickled, it makes a folder when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, form):
    mark, path = tmp_path / "mark", tmp_path / "evil.pt"
    content = {"weight": torch.zeros(2), "evil": Evil(mark)}
    if form == "pickle":
        path.write_bytes(pickle.dumps({"evil": Evil(mark)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    for read in (weights.read_state_dict, weights.outline, weights.describe):
        with pytest.raises(
            WeightsError, match=r"evil\.pt is refused: it asks for (posix|nt)\.mkdir\. Nothing in it was run"
        ):
            read(path)
    with pytest.raises(WeightsError, match="refused"):
        weights.convert(path, tmp_path / "out.safetensors")
    assert not mark.exists()
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_state_dict_is_read_as_it_is(tmp_path, form):
    path, state = tmp_path / "file", {"a.weight": torch.rand(2, 3), "a.count": torch.tensor(4)}
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    read, outline = weights.read_state_dict(path), weights.outline(path)
    assert read.keys() == outline.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(read[name], tensor)
        assert outline[name].is_meta
        assert outline[name].shape == tensor.shape


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.5, 0.99])
def test_a_file_that_is_cut_short_is_refused(tmp_path, form, share):
    path, state = tmp_path / "file", {"a": torch.rand(100, 100)}
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(WeightsError, match=r"file (is refused|cannot be read)"):
        weights.read_state_dict(path)


def test_what_is_no_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        for read in (
            weights.read_state_dict,
            weights.describe,
            lambda p: weights.convert(p, tmp_path / "o.safetensors"),
        ):
            with pytest.raises(WeightsError, match="cannot be read"):
                read(path)


def test_the_state_dict_of_a_training_checkpoint_is_taken(tmp_path):
    path, state = tmp_path / "file.pt", {"a": torch.rand(2)}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"state": {0: {"step": 1}}, "param_groups": []}}, path)
    assert torch.equal(weights.read_state_dict(path)["a"], state["a"])
    for other, words in (
        ({"net": state, "ema": state}, "a dictionary of net, ema"),
        ([1], "but list"),
        ({}, "not hold one"),
        ({0: torch.zeros(1)}, "a dictionary of 0"),
    ):
        torch.save(other, path)
        with pytest.raises(WeightsError, match=words):
            weights.read_state_dict(path)


def test_compressed_files_are_not_unpacked(tmp_path):
    torch.save({"a": torch.zeros(10)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    with pytest.raises(WeightsError, match="is compressed"):
        weights.read_state_dict(tmp_path / "bomb.pt")


def script(path: Path) -> Path:
    """A TorchScript archive with CLIP's three settings beside a weight."""
    module = torch.nn.Linear(2, 3)
    for name in weights.CLIP_SETTINGS:
        module.register_buffer(name, torch.tensor(224))
    torch.jit.save(torch.jit.trace(module, torch.zeros(1, 2)), path)
    return path


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_a_torchscript_archive_is_opened_only_where_it_is_the_published_one(tmp_path, monkeypatch):
    path, opened = script(tmp_path / "RN50.pt"), []
    load = torch.jit.load
    monkeypatch.setattr(torch.jit, "load", lambda *args, **options: opened.append(args) or load(*args, **options))
    for read in (weights.read_state_dict, weights.outline, weights.describe):
        with pytest.raises(WeightsError, match=r"TorchScript archive.*not opened.*weights fetch RN50"):
            read(path)
    assert not opened
    monkeypatch.setitem(KNOWN, "RN50.pt", replace(KNOWN["RN50.pt"], sha256=weights.sha256(path)))
    assert weights.read_state_dict(path).keys() == weights.outline(path).keys() == {"weight", "bias"}

    weights.convert(path, tmp_path / "out" / "RN50.safetensors")
    tensors, metadata = weights.load(tmp_path / "out" / "RN50.safetensors")
    assert metadata["network"] == {"name": "clip", "architecture": "RN50-quickgelu"}
    assert (metadata["source"], metadata["source_sha256"]) == ("RN50.pt", weights.sha256(path))
    assert torch.equal(tensors["weight"], weights.read_state_dict(path)["weight"])
    assert "It is RN50.pt as published" in "\n".join(weights.describe(path))
    assert "a checkpoint of imrseg for CLIP RN50-quickgelu" in "\n".join(
        weights.describe(tmp_path / "out" / "RN50.safetensors")
    )


# The authors' checkpoints


def authors(backbone: str, device: str = "meta") -> dict[str, Tensor]:
    """Random weights under the released code's names, classifier included."""
    shapes = authors_shapes(weights._bare_hsnet(backbone))
    shapes["backbone.fc.bias" if "resnet" in backbone else "backbone.classifier.0.bias"] = torch.Size([9])
    counters = {name for name, shape in shapes.items() if not shape}
    return {
        name: torch.tensor(7, device=device) if name in counters else torch.rand(shape, device=device)
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def vgg16(tmp_path_factory) -> Path:
    """As the authors saved theirs: before zip files, from a DataParallel."""
    path = tmp_path_factory.mktemp("authors") / "best_model.pt"
    state = {f"module.{name}": tensor for name, tensor in authors("vgg16", "cpu").items()}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


@pytest.mark.parametrize("value", [torch.full((), torch.nan), torch.zeros((), dtype=torch.int64)])
def test_an_authors_checkpoint_without_finite_fractions_is_refused(vgg16, tmp_path, value):
    state = weights.read_state_dict(vgg16)
    name = next(iter(state))
    torch.save({**state, name: value.expand(state[name].shape).clone()}, tmp_path / "odd.pt")
    with pytest.raises(WeightsError, match=f"something else than finite fractions in {name}"):
        weights.convert(tmp_path / "odd.pt", tmp_path / "odd.safetensors")
    with pytest.raises(WeightsError, match="finite fractions"):
        Segmenter.from_preset("imr-hsnet-vgg16", "cpu", tmp_path / "odd.pt", "lite")


def test_an_authors_checkpoint_becomes_safetensors(vgg16, tmp_path):
    target = tmp_path / "imr-hsnet-vgg16-coco-0.safetensors"
    weights.check_authors(vgg16, "vgg16")
    weights.convert(vgg16, target)
    tensors, metadata = weights.load(target)
    assert metadata == {
        "network": {"name": "imr-hsnet", "backbone": "vgg16", "authors_compatible": True},
        "source": "best_model.pt",
        "source_sha256": weights.sha256(vgg16),
    }
    direct, ours = (IMRHSNet("vgg16", authors_compatible=True) for _ in range(2))
    direct.load_authors_state_dict(weights.read_state_dict(vgg16))
    weights.fill(ours, tensors, target)
    expected = direct.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == [target.name]

    assert "the authors' IMR-HSNet on vgg16" in "\n".join(weights.describe(vgg16))
    lines = weights.describe(target)
    assert str(target) in lines[0]
    assert lines[1] == f"SHA-256 {weights.sha256(target)}"
    assert "fits its network, imr-hsnet" in lines[2]
    assert "  source: best_model.pt" in lines


@pytest.mark.parametrize("backbone", ["resnet50", "resnet101", "vgg16"])
def test_the_backbone_is_told_by_the_names(backbone, monkeypatch, tmp_path):
    state = authors(backbone)
    for names in (state, {f"module.{name}": t for name, t in state.items()}):
        assert weights._backbone_of(names) == backbone
        monkeypatch.setattr(weights, "outline", lambda path, names=names: names)
        weights.check_authors(tmp_path, backbone)
        for other in {"resnet50", "resnet101", "vgg16"} - {backbone}:
            with pytest.raises(
                WeightsError, match=rf"not the weights of IMR-HSNet on {other}: .*(missing|unexpected) "
            ):
                weights.check_authors(tmp_path, other)


def test_another_backbone_is_refused_before_its_numbers_are_read(vgg16, monkeypatch):
    monkeypatch.setattr(weights, "read_state_dict", lambda path: pytest.fail("numbers were read"))
    with pytest.raises(WeightsError, match=r"best_model\.pt: .*IMR-HSNet on resnet50: missing backbone\.conv1\.weight"):
        weights.check_authors(vgg16, "resnet50")


def test_tensors_that_claim_to_be_huge_take_no_memory(tmp_path):
    """A petabyte in names and shapes, by strides of 0, by a false length and by a sparse file's header."""
    shape, path = (2**24, 2**24), tmp_path / "file.pt"
    torch.save({"backbone.features.0.weight": torch.zeros(1).expand(shape)}, path)
    assert weights.outline(path)["backbone.features.0.weight"].shape == shape
    with pytest.raises(WeightsError, match="IMR-HSNet on vgg16"):
        weights.convert(path, tmp_path / "out.safetensors")
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * 2**48]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    for read in (weights.read_state_dict, weights.outline):
        with pytest.raises(WeightsError, match="cannot be read as safetensors"):
            read(path)
    torch.save({"a": torch.zeros(3, 5)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"K\x0f", b"\x8a\x06" + (2**46).to_bytes(6, "little"), 1))
    with pytest.raises(WeightsError, match="refused"):
        weights.read_state_dict(path)


def test_an_unknown_layout_is_not_converted(tmp_path):
    torch.save({"conv.weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"other\.pt: .*missing .*unexpected conv\.weight|other\.pt: .*missing "):
        weights.convert(tmp_path / "other.pt", tmp_path / "out.safetensors")
    assert "no checkpoint of imrseg. Its first tensors: conv.weight (2,)" in weights.describe(tmp_path / "other.pt")[-1]


def test_a_target_that_cannot_be_written_is_named(vgg16, tmp_path):
    with pytest.raises(WeightsError, match=r"must end in \.safetensors"):
        weights.convert(vgg16, tmp_path / "out.pt")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WeightsError, match=r"file/out\.safetensors cannot be written"):
        weights.convert(vgg16, tmp_path / "file" / "out.safetensors")


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no full device")
def test_a_full_disk_leaves_the_target_as_it_was(tmp_path, monkeypatch):
    target = put(tmp_path / "out.safetensors", b"before")
    monkeypatch.setattr(weights.os, "getpid", lambda: 1)
    (tmp_path / "out.safetensors.1.part").symlink_to("/dev/full")
    with pytest.raises(WeightsError, match=r"out\.safetensors cannot be written \(No space left on device\)"):
        weights._write(target, b"x" * 100)
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]


def test_our_own_checkpoint_is_described(checkpoint, tmp_path):
    text = "\n".join(weights.describe(checkpoint))
    assert "It is lite.safetensors as published" in text
    assert "fits its network, lite" in text
    other = resaved(checkpoint, tmp_path / "lite.safetensors", lambda t, m: m.update(note="mine"))
    assert "It is not the lite.safetensors that was published" in "\n".join(weights.describe(other))
    resaved(checkpoint, other, lambda t, m: t.pop("cell.gates_in.weight"))
    with pytest.raises(WeightsError, match=r"does not fit lite: missing cell\.gates_in\.weight"):
        weights.describe(other)
    resaved(checkpoint, other, lambda t, m: m.update(network={"name": "imr-hsnet", "backbone": "vgg"}))
    with pytest.raises(WeightsError, match="describes a network that cannot be built"):
        weights.describe(other)
