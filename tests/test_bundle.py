import io
import json
import shlex
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from imrseg import ClipSettings, InputError, __version__, bundle, cli, figures
from imrseg.bundle import Found
from imrseg.presets import get_preset
from imrseg.run import Options, Step
from imrseg.segmenter import Segmenter

PER_LABEL = {
    "mask.png", "cutout.png", "overlay.png", "figure.png", "figure.pdf", "figure.svg", "animation.gif", "animation.webp",
    "soft_masks.npz",
}  # fmt: skip
WHOLE = {"coco_rle.json", "coco_polygons.json", "settings.json", "README.txt"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, cat, cup) -> Path:
    """Two queries and a support; the first query's sides are swapped by EXIF."""
    folder = tmp_path_factory.mktemp("pictures")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(cat).transpose(Image.Transpose.ROTATE_90).save(folder / "tom & $x.png", exif=exif)
    Image.fromarray(cup).save(folder / "cup.jpg")
    Image.fromarray(cat[:, ::-1]).save(folder / "-s.jpg")
    return folder


@pytest.fixture(scope="module")
def founds(folder, segmenter) -> list[Found]:
    query, supports = folder / "tom & $x.png", [folder / "-s.jpg"]
    options = {"distractors": ("wall", "-x"), "prompts": "ensemble"}
    results = [segmenter.segment(query, supports, label, 2, 0.4, **options) for label in ("cat", "coffee cup")]
    return [Found.of(result, query, supports) for result in results]


@pytest.fixture(scope="module")
def archive(founds, segmenter, tmp_path_factory) -> zipfile.ZipFile:
    path = tmp_path_factory.mktemp("zip") / "new" / "run.zip"
    bundle.write_zip(path, founds, segmenter)
    assert list(path.parent.iterdir()) == [path]
    return zipfile.ZipFile(path)


@pytest.fixture
def quick(monkeypatch):
    """Without the figures, which take most of the time."""
    monkeypatch.setattr(figures, "figure", lambda *_: {"png": b"figure"})
    monkeypatch.setattr(figures, "animation", lambda *_: {"gif": b"animation"})


def made(label: str, soft: np.ndarray, query: Path = Path("q.png"), supports=(), level=0.5, **rest) -> Found:
    """A result of one step whose mask is ``soft``."""
    step = Step(0, soft[None].astype(np.float32), (), soft.shape, (), level, "mean", 0.1)
    found = Found(label, [step], 0.5, [], 0.75, Options(), query, supports)
    return replace(found, **rest)


def image(archive: zipfile.ZipFile, name: str) -> Image.Image:
    return Image.open(io.BytesIO(archive.read(name)))


def pixels(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    return np.asarray(image(archive, name))


def test_the_tree(archive):
    places = ("tom-x/cat", "tom-x/coffee-cup")
    names = {f"{place}/{name}" for place in places for name in PER_LABEL}
    assert set(archive.namelist()) == names | {"tom-x/labels.png", "tom-x/labels_overlay.png"} | WHOLE
    assert archive.testzip() is None
    assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    readme = archive.read("README.txt").decode()
    for name in (*places, *WHOLE, "mask.png", "figure.png, .pdf, .svg"):
        assert name in readme
    assert bundle.command([], None) == ""


def test_masks_and_cutouts_have_the_pictures_own_size(archive, founds, cat):
    for found, name in zip(founds, ("cat", "coffee-cup"), strict=True):
        mask = found.soft >= found.cut
        assert mask.shape == cat.shape[:2]
        assert np.array_equal(pixels(archive, f"tom-x/{name}/mask.png"), mask * np.uint8(255))
        cutout = pixels(archive, f"tom-x/{name}/cutout.png")
        assert np.array_equal(cutout[..., 3] >= 128, mask)
        assert np.array_equal(cutout[mask][:, :3], cat[mask])
        assert pixels(archive, f"tom-x/{name}/overlay.png").shape == cat.shape
    assert image(archive, "tom-x/cat/figure.png").size[0] == figures.LEFT + 4 * (figures.CELL + figures.GAP)
    assert archive.read("tom-x/cat/figure.pdf").startswith(b"%PDF")
    ElementTree.fromstring(archive.read("tom-x/cat/figure.svg"))
    assert [image(archive, f"tom-x/cat/animation.{kind}").n_frames for kind in ("gif", "webp")] == [3, 3]


def test_one_picture_of_all_labels(archive, founds, cat):
    picture = image(archive, "tom-x/labels.png")
    assert picture.mode == "P"
    index = np.asarray(picture)
    assert np.array_equal(index, bundle.label_map(founds))
    masks = [found.soft >= found.cut for found in founds]
    assert np.array_equal(index > 0, masks[0] | masks[1])
    assert all(masks[k - 1][index == k].all() for k in (1, 2))
    assert set(np.unique(index)) >= {0, 1}
    colours = np.reshape(picture.getpalette()[:9], (3, 3))
    assert np.array_equal(colours, figures.palette(2))
    overlay = pixels(archive, "tom-x/labels_overlay.png")
    assert np.array_equal(overlay, figures.labelled(cat, index, ["cat", "coffee cup"]))


def test_coco_agrees_with_the_masks(archive, founds, cat):
    exact, rough = (json.loads(archive.read(f"coco_{kind}.json")) for kind in ("rle", "polygons"))
    height, width = cat.shape[:2]
    assert exact["images"] == [{"id": 1, "file_name": "tom & $x.png", "width": width, "height": height}]
    assert [c["name"] for c in exact["categories"]] == ["cat", "coffee cup"]
    shown = [found for found in founds if (found.soft >= found.cut).any()]
    assert shown
    for found, one, other in zip(shown, exact["annotations"], rough["annotations"], strict=True):
        mask = found.soft >= found.cut
        assert np.array_equal(rle.decode(one["segmentation"]), mask)
        polygons = rle.decode(rle.merge(rle.frPyObjects(other["segmentation"], height, width))).astype(bool)
        assert (polygons & mask).sum() / (polygons | mask).sum() > 0.9
        assert one["score"] == other["score"] == found.confidence
        assert one["area"] == other["area"] == mask.sum()


def test_soft_masks(archive, founds, segmenter):
    found = founds[0]
    with np.load(io.BytesIO(archive.read("tom-x/cat/soft_masks.npz")), allow_pickle=False) as arrays:
        for step in found.steps:
            assert np.array_equal(arrays[f"query_step{step.index}"], step.query_soft[0])
            assert np.array_equal(arrays[f"support1_step{step.index}"], step.support_soft[0])
            assert arrays[f"query_step{step.index}"].dtype == np.float32
        assert arrays["query_size"].tolist() == list(found.steps[0].query_size)
        assert arrays["support1_size"].tolist() == list(found.steps[0].support_sizes[0])
        assert arrays["levels"].tolist() == [step.level for step in found.steps]
        assert arrays["cuts"].tolist() == [step.cut(0.4) for step in found.steps]
        told = json.loads(str(arrays["settings"]))
    assert told == json.loads(json.dumps({**bundle.model_settings(segmenter), **bundle.run_settings(found)}))


def test_soft_masks_of_each_support(segmenter, cat, cup):
    result = segmenter.segment(cat, [cup, cat], "cat", steps=1)
    content = bundle.encode_soft_masks(Found.of(result, Path("q.png"), [Path("a.png"), Path("b.png")]), segmenter)
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        assert np.array_equal(arrays["query_step1_each"], result.steps[1].query_soft)
        assert arrays["query_step1"] == pytest.approx(arrays["query_step1_each"].mean(0), abs=1e-6)
        assert "query_step0_each" not in arrays


def test_settings(archive, founds, segmenter):
    told = json.loads(archive.read("settings.json"))
    assert (told["imrseg"], told["preset"], told["coarse"], told["device"]) == (__version__, "lite", "lite", "cpu")
    assert told["weights"] == segmenter.hashes
    assert told["command"] == bundle.command(founds, segmenter)
    assert told["command"] in archive.read("README.txt").decode()
    for value, (row, found) in enumerate(zip(told["results"], founds, strict=True), 1):
        assert (row["label"], row["value"]) == (found.label, value)
        assert archive.read(f"{row['folder']}/mask.png")
        assert (row["query"], row["supports"]) == ("tom & $x.png", ["-s.jpg"])
        assert (row["steps"], row["threshold"], row["distractors"]) == (2, 0.4, ["wall", "-x"])
        assert (row["aggregate"], row["prompts"], row["edges"]) == ("mean", "ensemble", None)
        assert (row["confidence"], row["warnings"]) == (found.confidence, found.warnings)
        assert row["covered"] == (found.soft >= found.cut).mean()
        assert row.items() >= json.loads(json.dumps(bundle.run_settings(found))).items()


def test_the_command_repeats_the_run(founds, segmenter, folder, monkeypatch):
    words = shlex.split(bundle.command(founds, segmenter))
    assert words[:4] == ["python", "-m", "imrseg", "segment"]
    monkeypatch.chdir(folder)
    args = cli.parser().parse_args(words[3:])
    assert (args.preset, args.coarse, args.checkpoint, args.label) == ("lite", None, None, ["cat", "coffee cup"])
    for label, found in zip(args.label, founds, strict=True):
        options = cli.options_of(args)
        result = segmenter.segment(args.query[0], args.support, label, args.steps, args.threshold, **options)
        assert np.array_equal(result.mask, found.soft >= found.cut)
        assert result.warnings == found.warnings


def test_only_what_is_not_usual_is_said(founds, segmenter):
    plain = made("cat", np.zeros((4, 4)), steps=founds[0].steps[:1] * 4)
    assert bundle.command([plain], segmenter) == "python -m imrseg segment --query q.png --label cat --out results"


@pytest.mark.parametrize("name", ["it's $(rm).png", "-x.png", "--label", "猫 \n.png"])
def test_odd_names_in_the_command(name, segmenter):
    found = made(name, np.zeros((4, 4)), Path("/home/me") / name, [Path("/home/me") / name])
    args = cli.parser().parse_args(shlex.split(bundle.command([found], segmenter))[3:])
    assert [path.name for path in (*args.query, *args.support)] == [name, name]
    assert args.label == [name]
    assert args.steps == 0


def test_every_option_in_the_command():
    clip = ClipSettings("similarity", "cosine", side=448)
    segmenter = SimpleNamespace(
        preset=get_preset("imr-hsnet-resnet50@pascal-2"),
        masker=SimpleNamespace(name="clip:ViT-B-16/openai", settings=clip),
        network=SimpleNamespace(file=Path("/home/me/mine.safetensors"), traits=("s8",), side=448),
        precision="bfloat16",
    )
    options = Options("mean", ["dog", "-rug"], "ensemble", "guided", "every", "off")
    found = made("cat", np.zeros((4, 4)), supports=[Path("s.png"), Path("t.png")], options=options, threshold=0.3)
    args = cli.parser().parse_args(shlex.split(bundle.command([found], segmenter))[3:])
    assert cli.options_of(args) == {
        "aggregate": "mean", "distractors": ["dog", "-rug"], "prompts": "ensemble", "edges": "guided",
        "edges_on": "every", "consensus": "off",
    }  # fmt: skip
    assert (args.preset, args.coarse, args.threshold) == (segmenter.preset.name, "clip:ViT-B-16/openai", 0.3)
    assert (args.checkpoint, args.precision, args.lite_side) == (Path("mine.safetensors"), "bfloat16", 448)
    assert (args.clip_method, args.clip_contrast, args.clip_side) == ("similarity", "cosine", 448)
    assert args.support == [Path("s.png"), Path("t.png")]
    usual = SimpleNamespace(
        preset=segmenter.preset,
        masker=SimpleNamespace(name="clip:RN50", settings=ClipSettings()),
        network=SimpleNamespace(file=Path(segmenter.preset.checkpoint), traits=(), side=None),
        precision="float32",
    )
    step = replace(found.steps[0], how="vote")
    options = Options(consensus="off")  # as everywhere where there is none
    line = bundle.command([made("cat", np.zeros((4, 4)), steps=[step] * 3, options=options)], usual)
    assert line.split("--label cat ")[1] == "--preset imr-hsnet-resnet50@pascal-2 --out results"


def test_what_was_done_in_one_way_is_one_command(segmenter):
    blank = np.zeros((4, 4))
    all_in_all = [made(label, blank, Path(query)) for query in ("a.png", "b.png") for label in ("cat", "dog")]
    assert bundle.command(all_in_all, segmenter) == (
        "python -m imrseg segment --query a.png b.png --label cat --label dog --steps 0 --out results"
    )
    mixed = [*all_in_all[:3], replace(all_in_all[3], threshold=0.6)]
    lines = bundle.command(mixed, segmenter).split("\n")
    assert [line.split("--steps")[0].split("--query ")[1] for line in lines] == [
        "a.png --label cat --label dog ", "b.png --label cat ", "b.png --label dog ",
    ]  # fmt: skip
    assert "--threshold 0.6" in lines[2]
    assert [line.split("--out ")[1] for line in lines] == ["results-1", "results-2", "results-3"]


def test_a_checkpoint_of_the_shipped_ones_name_is_said(checkpoint, tmp_path):
    own = Path(shutil.copy(checkpoint, tmp_path / "lite.safetensors"))
    found = made("cat", np.zeros((4, 4)))
    for segmenter, said in (
        (Segmenter.from_preset("lite", "cpu"), False), (Segmenter.from_preset("lite", "cpu", own), True),
    ):  # fmt: skip
        assert ("--checkpoint lite.safetensors" in bundle.command([found], segmenter)) == said


def test_a_name_of_long_letters_leaves_room_for_an_ending():
    name = bundle.safe_name("𝐜𝐚𝐭" * 30, ())
    assert 60 < len(name.encode()) <= bundle.MAX_NAME
    assert name == "𝐜𝐚𝐭" * 10


def test_many_queries(quick, folder, cup, cat, segmenter, tmp_path):
    h, w = cup.shape[:2]
    left = (np.arange(w) < w / 2) * np.ones((h, 1))
    there = made("a/b", left, folder / "cup.jpg")
    found = [there, replace(there, label="a?b"), made("a/b", np.zeros(cat.shape[:2]), folder / "tom & $x.png")]
    bundle.write_zip(tmp_path / "a.zip", found, segmenter)
    bundle.write_zip(tmp_path / "b.zip", found, segmenter)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        folders = {name.rpartition("/")[0] for name in archive.namelist()}
        assert folders == {"", "cup", "cup/a-b", "cup/a-b-2", "tom-x/a-b"}
        data = json.loads(archive.read("coco_rle.json"))
        assert [(i["file_name"], i["height"]) for i in data["images"]] == [("cup.jpg", h), ("tom & $x.png", 300)]
        assert [(a["image_id"], a["category_id"], a["area"]) for a in data["annotations"]] == [
            (1, 1, left.sum()), (1, 2, left.sum()),
        ]  # fmt: skip


def test_nothing_is_half_written(quick, folder, cup, segmenter, tmp_path, monkeypatch):
    path = tmp_path / "a.zip"
    path.write_text("old")
    found = made("x", np.ones(cup.shape[:2]), folder / "cup.jpg")
    monkeypatch.setattr(figures, "animation", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bundle.write_zip(path, [found], segmenter)
    for wrong, said in (
        ([], "run first"),
        ([replace(found, query=folder / "gone.jpg")], "no picture file"),
        ([found] * 256, "up to 255"),
    ):
        with pytest.raises(InputError, match=said):
            bundle.write_zip(path, wrong, segmenter)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "old"


def test_overlapping_labels():
    row = np.linspace(0, 1, 101)[None]
    # Cut at 0.5 and at 0.25: 0.6 and 0.4 are 1.2 and 1.6 times their cuts.
    strong, weak = made("a", np.tile(row, (3, 1))), made("b", np.full((3, 101), 0.4), level=0.25)
    index = bundle.label_map([strong, weak])
    assert (index[:, :80] == 2).all()
    assert (index[:, 81:] == 1).all()
    nothing = made("c", np.zeros((3, 101)))
    assert set(np.unique(bundle.label_map([nothing, strong]))) == {0, 2}
    assert (bundle.label_map([replace(nothing, threshold=0.0), strong])[:, :50] == 1).all()


def test_a_label_map_keeps_its_numbers():
    index = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.open(io.BytesIO(bundle.encode_label_map(index, figures.palette(255))))
    assert image.mode == "P"
    assert np.array_equal(np.asarray(image), index)
    assert np.array_equal(np.asarray(image.convert("RGB")), figures.palette(255)[index])


def test_a_cutout_is_hard_but_for_its_edge():
    mask = np.zeros((20, 30), bool)
    mask[5:15, 8:] = True
    mask[1, 1] = True
    photo = np.random.default_rng(0).integers(1, 255, (20, 30, 3)).astype(np.uint8)
    cutout = bundle.cutout(photo, mask)
    opacity = cutout[..., 3]
    assert opacity[10, 5:11].tolist() == [0, 0, 85, 170, 255, 255]
    assert opacity[10, -3:].tolist() == [255, 255, 255]  # no edge along the frame
    assert opacity[1, 1] == 128
    assert np.array_equal(opacity >= 128, mask)
    assert (cutout[opacity == 0] == 0).all()
    assert np.array_equal(cutout[opacity > 0][:, :3], photo[opacity > 0])
    read = np.asarray(Image.open(io.BytesIO(bundle.encode_cutout(cutout))))
    assert np.array_equal(read, cutout)
    assert (bundle.cutout(photo, np.ones((20, 30), bool))[..., 3] == 255).all()


def test_only_overlays_of_large_pictures_are_reduced(quick, folder, cat, segmenter, monkeypatch):
    monkeypatch.setattr(bundle, "OVERLAY_PIXELS", 30_000)
    soft = (np.arange(cat.shape[1]) < 200) * np.ones((cat.shape[0], 1))
    found = made("a", soft, folder / "tom & $x.png")
    files = dict(bundle.contents([found, replace(found, label="b")], segmenter))
    size = {name: Image.open(io.BytesIO(files[f"tom-x/{name}"])).size for name in
            ("a/mask.png", "a/cutout.png", "labels.png", "a/overlay.png", "labels_overlay.png")}  # fmt: skip
    assert list(size.values())[:3] == [(451, 300)] * 3
    assert size["a/overlay.png"] == (212, 141)
    assert size["labels_overlay.png"][0] == 212


def test_names_that_every_system_takes():
    name = bundle.safe_name
    assert name("a/b\\c: *?.png", []) == "a-b-c-.png"
    assert name("../..", []) == name("", []) == name("...", []) == name("\0", []) == "unnamed"
    assert [name(n, []) for n in ("CON", "nul.txt", "com1", "conan")] == ["_CON", "_nul.txt", "_com1", "conan"]
    assert name("Cat", ["cat", "cat-2"]) == "Cat-3"
    assert name("猫", []) == "猫"
    assert name("e\u0301te\u0301", ["\u00e9t\u00e9"]) == "\u00e9t\u00e9-2"
    assert len(name("😀é" * 300, []).encode()) < 250
    assert name("w" * 59 + ".x", []) == "w" * 59


def test_files_of_one_name_are_told_apart_in_the_command(segmenter, save, cat, cup):
    """The folder that the command is for cannot hold both under that name."""
    a, b = save(cat, "a/01.jpg"), save(cup, "b/01.jpg")
    result = segmenter.segment(a, [b, a], "cat", steps=1)
    note, line = bundle.command([Found.of(result, a, [b, a])], segmenter).splitlines()
    assert note == "# 01-2.jpg is another 01.jpg: save it so."
    assert "--query 01.jpg --label cat --support 01-2.jpg 01.jpg" in line
    again = a.parent / ".." / "a" / a.name  # the same file by another path
    assert "#" not in bundle.command([Found.of(result, a, [again])], segmenter)


def test_a_name_of_several_lines_writes_no_command(segmenter, founds):
    """It stands in the note, too."""
    name = "a\nrm -r here #.png"
    found = made("cat", np.zeros((4, 4)), Path("/b") / name, [Path("/c") / name])
    note = bundle.command([found], segmenter).split("\n")[0]
    assert note == "# a rm -r here #-2.png is another a rm -r here #.png: save it so."


def test_a_zip_replaces_no_picture_that_it_is_of(segmenter, save, cat):
    path = save(cat, "a.jpg")
    before = path.read_bytes()
    with pytest.raises(InputError, match="would be replaced"):
        bundle.write_zip(path, [Found.of(segmenter.segment(path, [], "cat", steps=0), path, [])], segmenter)
    assert path.read_bytes() == before


def test_paths_may_be_words(segmenter, save, cat, tmp_path):
    query, support = (str(save(cat, f"{name}.png")) for name in ("q", "s"))
    found = Found.of(segmenter.segment(query, [support], "cat", steps=1), query, [support])
    assert (found.query, found.supports) == (Path(query), [Path(support)])


def test_queries_of_one_name_are_told_apart_for_coco_and_in_the_settings(quick, segmenter, save, cat, cup):
    queries = save(cat, "a/01.png"), save(cup, "b/01.png")
    files = dict(
        bundle.contents([Found.of(segmenter.segment(q, [], "cat", steps=0), q, []) for q in queries], segmenter)
    )
    for name in ("coco_rle.json", "coco_polygons.json"):
        assert [i["file_name"] for i in json.loads(files[name])["images"]] == ["01.png", "01-2.png"]
    assert [r["query"] for r in json.loads(files["settings.json"])["results"]] == ["01.png", "01-2.png"]
    assert "% of 01-2.png" in files["README.txt"].decode()
    arrays = np.load(io.BytesIO(next(content for name, content in files.items() if name == "01-2/cat/soft_masks.npz")))
    assert json.loads(str(arrays["settings"]))["query"] == "01-2.png"


def test_links_and_supports_take_no_query_its_name(quick, segmenter, save, cat):
    query, other, support = save(cat, "q/1.png"), save(cat, "q/2.png"), save(cat, "s/2.png")
    link = query.with_name("link.png")
    link.symlink_to(query)
    result = segmenter.segment(query, [support], "cat", steps=0)
    files = dict(bundle.contents([Found.of(result, q, [support]) for q in (query, link, other)], segmenter))
    assert [i["file_name"] for i in json.loads(files["coco_rle.json"])["images"]] == ["1.png", "link.png", "2.png"]
    results = json.loads(files["settings.json"])["results"]
    assert [(r["query"], r["supports"]) for r in results] == [(n, ["2.png"]) for n in ("1.png", "link.png", "2.png")]


@pytest.mark.parametrize("name", ["matplotlib", "pycocotools"])
def test_what_a_zip_needs_is_seen_first(founds, segmenter, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"pip install -e '.\[app\]'"):
        next(bundle.contents(founds, segmenter))
