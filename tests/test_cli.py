import errno
import io
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import imrseg
from imrseg import ClipSettings, cli, weights
from imrseg.segmenter import Segmenter

ROOT = Path(__file__).parents[1]


@pytest.fixture
def main(segmenter, monkeypatch, capsys):
    """Runs a command with the models already loaded: (status, stdout, stderr)."""
    monkeypatch.setattr(Segmenter, "from_preset", lambda *_: segmenter)

    def run(*words) -> tuple[int, str, str]:
        try:
            status = cli.main([str(word) for word in words])
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def files(save, cat, cup) -> dict[str, Path]:
    return {
        "query": save(cat, "in/tom.jpg"),
        "other": save(cup, "in/cup.png"),
        "support": save(cat[:, ::-1], "s/s.jpg"),
    }


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_segment(main, files, tmp_path, cat):
    out = tmp_path / "out"
    status, said, err = main("segment", "--query", files["query"], "--support", files["support"], "--label", "cat",
                             "--steps", 2, "--out", out)  # fmt: skip
    assert (status, err) == (0, "")
    assert "“cat” covers" in said
    masks = {f"{who}_step{i}.png" for who in ("query", "support1") for i in range(3)}
    assert names(out) == masks | {"panel.png", "result.json"}
    record = json.loads((out / "result.json").read_text("utf-8"))
    assert record["query"] == "tom.jpg"
    assert record["supports"] == ["s.jpg"]
    assert Image.open(out / "query_step2.png").size == (cat.shape[1], cat.shape[0])
    assert names(tmp_path) == {"in", "s", "out"}


def test_options_reach_the_result(main, files, tmp_path, segmenter):
    status, _, _ = main("segment", "--query", files["query"], "--support", files["support"], files["other"], "--support",
                        files["support"], "--label", "a red cat", "--threshold", 0.3, "--aggregate", "vote", "--out",
                        tmp_path / "out")  # fmt: skip
    record = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))
    assert status == 0
    assert record["supports"] == ["s.jpg", "cup.png", "s.jpg"]
    assert (record["threshold"], record["aggregate"]) == (0.3, "vote")
    assert len(record["steps"]) == segmenter.preset.steps + 1
    assert "read as “cat”" in record["warnings"][0]


def test_two_queries_and_two_labels(main, files, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    status, _, err = main("segment", "--query", tmp_path / "in", "--support", files["support"], "--label", "cat",
                             "--label", "coffee cup", "--steps", 1, "--out", out)  # fmt: skip
    assert status == 0
    assert "4/4" in err  # the progress bar
    folders = ["cup_cat", "cup_coffee-cup", "tom_cat", "tom_coffee-cup"]
    assert names(out) == {*folders, "manifest.json"}
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    assert [r["folder"] for r in manifest["results"]] == folders
    assert [r["label"] for r in manifest["results"]] == ["cat", "coffee cup"] * 2
    for row in manifest["results"]:
        record = json.loads((out / row["folder"] / "result.json").read_text("utf-8"))
        assert {key: record[key] for key in ("query", "label", "confidence", "warnings")} == {
            key: row[key] for key in ("query", "label", "confidence", "warnings")
        }
        assert row["covered"] == record["steps"][-1]["covered"]
    assert manifest["weights"] == record["weights"]


def test_every_format_in_one_zip(main, files, tmp_path):
    status, _, _ = main("segment", "--query", files["query"], "--support", files["support"], "--label", "cat",
                        "--steps", 1, "--out", tmp_path / "out", "--zip", tmp_path / "all.zip")  # fmt: skip
    assert status == 0
    inside = zipfile.ZipFile(tmp_path / "all.zip").namelist()
    assert {"tom/cat/mask.png", "tom/cat/figure.pdf", "coco_rle.json", "settings.json", "README.txt"} <= set(inside)


def test_options_of_the_run_and_of_clip_reach_the_segmenter(segmenter, monkeypatch, files, tmp_path):
    given = []
    monkeypatch.setattr(Segmenter, "from_preset", lambda *args: given.append(args) or segmenter)
    words = "--coarse clip:RN101 --clip-side 448 --clip-method similarity --not grass --not sky --prompts ensemble"
    words += " --edges grabcut --edges-on every --consensus off"
    words += " --steps 1 --preset lite --device cpu --precision bfloat16 --launch compile --lite-side 384"
    where = ["--query", str(files["query"]), "--label", "cat", "--out", str(tmp_path / "out")]
    assert cli.main(["segment", *where, *words.split()]) == 0
    clip = ClipSettings(side=448, method="similarity")
    assert given == [("lite", "cpu", None, "clip:RN101", clip, "bfloat16", "compile", 384)]
    record = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))
    expected = {"distractors": ["grass", "sky"], "prompts": "ensemble", "edges": "grabcut", "edges_on": "every"}
    expected["consensus"] = "off"
    assert {key: record[key] for key in expected} == expected


def test_authors_preprocessing(segmenter, monkeypatch, tmp_path, save, cat, cup):
    given = []
    monkeypatch.setattr(Segmenter, "from_preset", lambda *args: given.append(args) or segmenter)
    for name, pixels in (("cat/images/1.png", cat), ("cat/images/2.png", cup)):
        save(pixels, f"data/{name}")
        save((pixels.mean(-1) > 99).astype(np.uint8), f"data/{name.replace('images', 'masks')}")
    words = ["--benchmark", "folder", "--data", str(tmp_path / "data"), "--json", str(tmp_path / "r.json")]
    options = ["--episodes", "1", "--coarse", "clip", "--authors-preprocessing"]
    assert cli.main(["evaluate", *words, *options]) == 0
    assert given[0][4] == ClipSettings(centre=True, vocabulary=("cat",))


@pytest.mark.parametrize(
    "change",
    [
        {"--query": "none.jpg"},
        {"--query": "text.jpg"},
        {"--query": "empty"},
        {"--support": "none.jpg"},
        {"--support": "text.jpg"},
        {"--label": " "},
        {"--label": "?!"},
        {"--steps": "-1"},
        {"--steps": "many"},
        {"--steps": "21"},
        {"--threshold": "2"},
        {"--threshold": "nan"},
        {"--aggregate": "best"},
        {"--out": "text.jpg"},
        {"--unknown": "x"},
        {"--unknown\x1b[31m": "x"},
        {"--label": "x" * 10_000},
        {"--label": "cat\x1b[31m"},
        {"--label": "cat\udcff"},
        {"--not": "\u202etac"},
        {"--steps": "9" * 5000},
        {"--threshold": "-inf"},
        {"--query": "a\nb\x1b[31m.jpg"},
        {"--query": "/dev/zero"},
        {"--query": "x" * 5000},
        {"--out": "/dev/null/out"},
        {"--out": "/proc/out"},
    ],
    ids=lambda change: ascii(" ".join(*change.items()))[:40],
)
def test_bad_input_is_status_2_one_line_and_no_file(main, files, tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    Path("text.jpg").write_text("not a picture")
    Path("empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    options = {"--query": "in/tom.jpg", "--support": "s/s.jpg", "--label": "cat", "--out": "out"} | change
    status, out, err = main("segment", *(word for item in options.items() for word in item))
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("imrseg")
    assert err.rstrip("\n").isprintable()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "name", ["a\x1b[31m\n.png", os.fsdecode(b"caf\xe9.png"), "$x^2$ <b>&.png", "-x.png", "猫 🐈‍⬛.png"]
)
@pytest.mark.parametrize("label", ["<script>alert(1)</script>", "$\\frac{1}{0}$ %s {0}", "../../cat", "قطة"])
def test_names_and_labels_are_never_more_than_text(main, tmp_path, cat, label, name):
    (tmp_path / "in").mkdir()
    Image.fromarray(cat).save(tmp_path / "in" / name)
    Image.fromarray(cat).save(tmp_path / "in" / "other.png")
    out = tmp_path / "deep" / "out"
    status, said, _ = main("segment", "--query", tmp_path / "in", "--label", label, "--steps", 0, "--out", out)
    assert status == 0
    assert all(line.replace("\u200d", "").isprintable() for line in said.splitlines())
    assert names(tmp_path) == {"in", "deep"}
    assert names(tmp_path / "deep") == {"out"}
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    assert {r["query"] for r in manifest["results"]} == {name, "other.png"}
    assert {r["label"] for r in manifest["results"]} == {label}
    assert {r["folder"] for r in manifest["results"]} | {"manifest.json"} == names(out)
    for found in manifest["results"]:
        assert {"query_step0.png", "panel.png", "result.json"} == names(out / found["folder"])


def test_a_terminal_that_lacks_letters(main, files, tmp_path, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii", write_through=True))
    assert main("segment", "--query", files["query"], "--label", "猫", "--out", tmp_path / "out")[0] == 0
    assert rb"\u201c\u732b\u201d covers" in raw.getvalue()


def test_a_full_disk_is_one_line(main, files, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(Path, "write_bytes", full)
    status, _, err = main("segment", "--query", files["query"], "--label", "cat", "--out", tmp_path / "out")
    assert status == 2
    assert re.fullmatch(r"imrseg: “.*/out” cannot be written \(No space left on device\)\. Make room .*\n", err)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seed", "-1"], "--seed: must be a whole number from 0 to 18446744073709551615, not '-1'"),
        (["--seed", "1.5"], "--seed: must be a whole number"),
        (["--shots", "0"], "--shots: must be a whole number from 1 to 10, not '0'"),
        (["--episodes", "nan"], "--episodes: must be a whole number from 1 to"),
        (["--steps", "many"], "--steps: must be a whole number from 0 to 20, not 'many'"),
    ],
)
def test_numbers_of_evaluate(main, words, said):
    status, _, err = main("evaluate", "--benchmark", "folder", "--data", "x", "--json", "y", *words)
    assert status == 2
    assert said in err
    assert err.count("\n") == 1


def test_a_port_of_the_environment_that_is_none_is_told_where_it_matters(main, monkeypatch):
    monkeypatch.setenv("GRADIO_SERVER_PORT", "many")
    status, _, err = main("demo")
    assert status == 2
    assert "--port: must be a whole number from 0 to 65535, not 'many'" in err
    assert main("weights", "list")[0] == 0


def test_one_broken_picture_among_several_writes_nothing(main, files, tmp_path):
    (tmp_path / "in" / "zzz.jpg").write_text("not a picture")
    status, _, err = main("segment", "--query", tmp_path / "in", "--label", "cat", "--out", tmp_path / "out")
    assert status == 2
    assert "zzz.jpg" in err
    assert not (tmp_path / "out").exists()


def test_a_failure_halfway_writes_nothing(main, files, tmp_path, segmenter, monkeypatch):
    whole = segmenter.segment
    monkeypatch.setattr(segmenter, "segment", lambda q, *a, **k: 1 / 0 if q.name == "tom.jpg" else whole(q, *a, **k))
    with pytest.raises(ZeroDivisionError):
        main("segment", "--query", tmp_path / "in", "--label", "cat", "--out", tmp_path / "out")
    assert names(tmp_path) == {"in", "s"}


def test_evaluate_writes_scores_and_prints_them(main, things, tmp_path):
    out = tmp_path / "results" / "scores.json"
    status, said, _ = main("evaluate", "--benchmark", "folder", "--data", things, "--episodes", 2, "--steps", 1,
                           "--json", out)  # fmt: skip
    scores = json.loads(out.read_text())
    assert status == 0
    assert (scores["episodes"], len(scores["miou"]), list(scores["per_class"])) == (2, 2, ["cat"])
    assert "step 1" in said
    assert f"{100 * scores['miou'][1]:.1f}" in said
    status, _, err = main(
        "evaluate", "--benchmark", "folder", "--data", tmp_path / "none", "--json", tmp_path / "x.json"
    )
    assert (status, err.count("\n")) == (2, 1)
    assert not (tmp_path / "x.json").exists()


def test_evaluate_is_told_before_its_work_where_it_cannot_write(main, things, tmp_path, monkeypatch):
    monkeypatch.setattr("imrseg.segmenter.Segmenter.from_preset", lambda *args: pytest.fail("loaded"))
    (tmp_path / "file").write_text("")
    for out, why in ((tmp_path, "Is a directory"), (tmp_path / "file/x.json", "")):
        status, said, err = main("evaluate", "--benchmark", "folder", "--data", things, "--json", out)
        assert (status, said, err.count("\n")) == (2, "", 1)
        assert f"“{out}” cannot be written ({why}" in err
    main("evaluate", "--benchmark", "folder", "--data", tmp_path / "none", "--json", tmp_path / "new/x.json")
    assert not (tmp_path / "new").exists()


def test_a_zip_that_cannot_be_written_is_told_before_the_work(main, files, tmp_path):
    status, _, err = main("segment", "--query", tmp_path / "in", "--label", "cat", "--out", tmp_path / "out", "--zip",
                          tmp_path)  # fmt: skip
    assert (status, err.count("\n")) == (2, 1)
    assert "Is a directory" in err
    assert not (tmp_path / "out").exists()


def test_tables_print_where_the_terminal_lacks_letters(tmp_path):
    command = [sys.executable, "-m", "imrseg", "tables", "--table", "S6"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "not run" in done.stdout


@pytest.fixture
def things(save, tmp_path, cat) -> Path:
    """Three shifted pictures of a cat, with a mask each."""
    mask = np.zeros(cat.shape[:2], np.uint8)
    mask[50:250, 100:350] = 255
    for i in range(3):
        save(np.roll(cat, 20 * i, 1), f"data/cat/images/{i}.jpg")
        save(np.roll(mask, 20 * i, 1), f"data/cat/masks/{i}.png")
    return tmp_path / "data"


def test_train_evaluate_and_tables_in_a_row(main, things, tmp_path):
    out = tmp_path / "run"
    status, said, err = main("train", "--benchmark", "folder", "--data", things, "--config", "lite", "--set", "batch=1",
                             "cell=none", "--set", "views=1", "negatives=0", "seed=7", "--iterations", 1, "--out", out,
                             "--device", "cpu")  # fmt: skip
    assert (status, said.strip()) == (0, str(out / "lite.safetensors"))
    assert "1/1" in err  # the progress bar
    header = weights.header(out / "lite.safetensors")
    assert [header["config"][name] for name in ("cell", "iterations", "seed")] == ["none", 1, 7]
    scores = tmp_path / "results" / "scores.json"
    status, _, _ = main("evaluate", "--benchmark", "folder", "--data", things, "--episodes", 2, "--steps", 1, "--eval-side",
                        64, "--json", scores)  # fmt: skip
    record = json.loads(scores.read_text())
    assert status == 0
    assert (record["benchmark"], record["fold"], record["side"]) == ("folder", None, 64)
    status, said, _ = main("tables", scores.parent, "--table", "5", "S6")
    assert status == 0
    assert "Table 5" in said
    assert "Table S6" in said
    assert "Table 1" not in said
    assert "not run" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--set", "steps=zero"], "a whole number"),
        (["--config", "none"], "Configs"),
        (["--fold", "9", "--benchmark", "pascal"], "0 to 3, or all"),
        (["--extra", "coco"], "folder:DIR"),
        (["--device", "cuda:7"], "cpu"),
        (["--coarse", "grabcut"], "lite, clip"),
        (["--data", "none"], "class/images"),
    ],
)
def test_train_refuses_in_one_line_what_it_cannot_do(main, things, tmp_path, options, said):
    words = ["--benchmark", "folder", "--data", things, "--device", "cpu", "--out", tmp_path / "run", *options]
    status, out, err = main("train", *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert not (tmp_path / "run").exists()


def test_bad_data_stops_evaluation_and_training_before_they_begin(main, things, tmp_path):
    Image.new("L", (10, 10)).save(things / "cat/masks/0.png")
    (things / "cat/masks/1.png").unlink()
    for command, end in (("evaluate", ["--json", tmp_path / "x.json"]), ("train", ["--out", tmp_path / "run"])):
        status, _, err = main(command, "--benchmark", "folder", "--data", things, *end)
        assert (status, err.count("\n")) == (2, 1)
        assert "Files are missing (1)" in err
        assert "another size than their picture (1)" in err
    assert not (tmp_path / "x.json").exists()
    assert not (tmp_path / "run").exists()


def test_weights(main, tmp_path, checkpoint, segmenter):
    status, said, _ = main("weights", "list")
    assert status == 0
    assert all(digest in said for digest in segmenter.hashes.values())
    status, said, _ = main("weights", "check", checkpoint)
    assert status == 0
    assert "lite" in said
    assert weights.sha256(checkpoint) in said
    status, said, _ = main("weights", "fetch", "lite.safetensors")
    assert (status, said.strip()) == (0, str(checkpoint))
    status, _, err = main("weights", "fetch", "imr-hsnet-vgg16-coco-1.safetensors")
    assert (status, err.count("\n")) == (2, 1)
    assert "weights convert" in err
    status, _, err = main("weights", "convert", checkpoint, tmp_path / "out.safetensors")
    assert (status, err.count("\n")) == (2, 1)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_wrong_checkpoint_is_status_2(tmp_path, capsys):
    (tmp_path / "w.safetensors").write_text("hello")
    assert cli.main(["weights", "check", str(tmp_path / "w.safetensors")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_and_version(capsys):
    assert cli.main([]) == 0
    assert "segment" in capsys.readouterr().out
    for words in (
        ["--version"],
        ["--help"],
        *([c, "--help"] for c in ("segment", "evaluate", "train", "tables", "bench", "weights", "demo")),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code == 0
    assert imrseg.__version__ in capsys.readouterr().out


def test_as_a_program(files, tmp_path):
    command = [sys.executable, "-m", "imrseg"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage" in done.stdout
    words = ["segment", "--query", files["query"], "--label", "cat", "--steps", "1", "--device", "cpu", "--out"]
    done = subprocess.run([*command, *words, tmp_path / "out"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert {"query_step0.png", "query_step1.png", "panel.png", "result.json"} == names(tmp_path / "out")


@pytest.mark.parametrize("name", ["panel.png", "query_step0.png", "support12_step3.png"])
def test_no_result_replaces_a_picture_that_it_is_of(main, save, cat, tmp_path, name):
    path = save(cat, f"here/{name}")
    before = path.read_bytes()
    for extra in ((), ("--support", path)):
        status, _, err = main("segment", "--query", save(cat, "q.png") if extra else path, *extra, "--label", "cat",
                              "--steps", 0, "--out", path.parent)  # fmt: skip
        assert status == 2
        assert "a result would replace it" in err
    status, _, err = main("segment", "--query", path, "--label", "cat", "--out", tmp_path / "o", "--zip", path)
    assert (status, "would be replaced" in err) == (2, True)
    assert path.read_bytes() == before
    assert names(path.parent) == {name}


def test_one_folder_holds_the_results_of_one_run(main, files, tmp_path):
    out = tmp_path / "out"
    one = ("segment", "--query", files["query"], "--steps", 0, "--out", out, "--label", "cat")
    (tmp_path / "out").mkdir()
    (out / "mine.png").write_bytes(b"")
    assert main(*one)[0] == 0
    assert main(*one, "--label", "cup")[0] == 0
    assert names(out) == {"tom_cat", "tom_cup", "manifest.json", "mine.png"}
    assert main(*one)[0] == 0
    assert names(out) == {"tom_cat", "tom_cup", "query_step0.png", "panel.png", "result.json", "mine.png"}
    status, _, err = main(*one, "--label", "cup", "--query", out / "panel.png")
    assert (status, "one of the pictures" in err) == (2, True)


def test_of_a_folder_the_pictures_are_taken_and_no_results(main, files, tmp_path):
    home = files["query"].parent
    for name in ("notes.txt", "a", "b", "c", ".hidden"):
        (home / name).write_text("")
    (home / "holiday.jpg").mkdir()
    files["other"].unlink()
    for _ in range(2):
        status, _, err = main("segment", "--query", home, "--label", "cat", "--steps", 0, "--out", home)
        assert (status, err.strip()) == (
            0, f"{home}: left out, for they are not called as pictures are: a, b, c, ... (4)"
        )  # fmt: skip
        assert json.loads((home / "result.json").read_text("utf-8"))["query"] == "tom.jpg"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps", "three"], "a whole number from 0 to 20, not 'three'"),
        (["--threshold", "50%"], "a number from 0 to 1, not '50%'"),
        (["--threshold", "nan"], "a number from 0 to 1, not 'nan'"),
        (["--aggregate", "max"], "must be one of vote, mean, or left out, not 'max'"),
        (["--edges-on", "every"], "--edges is not given"),
        (["tree"], "unrecognized arguments: tree. A label of several words stands in quotes"),
        (["--query", "https://example.com/a.jpg"], "Web addresses are read by the page alone"),
    ],
)
def test_what_is_accepted_is_said(main, files, tmp_path, words, said):
    given = ("--query", files["query"], "--out", tmp_path / "out", "--label", "lion", *words)
    status, out, err = main("segment", *given)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_a_comma_separates_no_labels(main, files, tmp_path):
    _, said, _ = main(
        "segment", "--query", files["query"], "--label", "cat, cup", "--steps", 0, "--out", tmp_path / "o"
    )
    assert "“cat, cup” is one label: a comma separates none here." in said


def test_a_port_that_is_taken(main, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, err = main("demo", "--port", port)
    assert status == 2
    assert re.search(f"cannot be served at 127.0.0.1:{port} .*Give another --port", err)


FENCES = [
    (page, line)
    for page in (
        "README.md",
        "CONTRIBUTING.md",
        *(f"docs/{p.name}" for p in sorted(ROOT.glob("docs/*.md"))),
        "checkpoints/README.md",
    )
    for fence in re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)
    for line in fence.replace("\\\n", " ").splitlines()
    if "python -m imrseg" in line
]


@pytest.mark.parametrize(("page", "line"), FENCES)
def test_commands_of_the_documents_are_complete(page, line):
    words = shlex.split(re.sub(r"\$\w+", "0", line.split("python -m imrseg", 1)[1]), comments=True)
    cli.parser().parse_args(["cell=conv" if word == "..." else word for word in words])


def test_queries_may_be_given_one_by_one_and_count_once(main, files, tmp_path):
    status, _, _ = main("segment", "--query", files["query"], "--query", files["other"], files["query"], "--label",
                        "cat", "--steps", 0, "--out", tmp_path / "out")  # fmt: skip
    assert status == 0
    assert names(tmp_path / "out") == {"tom_cat", "cup_cat", "manifest.json"}
    manifest = json.loads((tmp_path / "out/manifest.json").read_text("utf-8"))
    assert [result["folder"] for result in manifest["results"]] == ["tom_cat", "cup_cat"]  # as they were given
    (tmp_path / "in/link.jpg").symlink_to(files["query"])  # another name, another result
    status, _, _ = main("segment", "--query", files["query"], tmp_path / "in/link.jpg", "--label", "cat", "--steps", 0,
                        "--out", tmp_path / "two")  # fmt: skip
    assert names(tmp_path / "two") == {"tom_cat", "link_cat", "manifest.json"}
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    status, _, err = main("segment", "--query", tmp_path / "loop.jpg", "--label", "cat", "--out", tmp_path / "o")
    assert (status, err.count("\n")) == (2, 1)


def test_where_no_folder_can_be_nothing_is_computed(main, files, tmp_path, segmenter, monkeypatch):
    monkeypatch.setattr(Segmenter, "segment", lambda *_, **__: pytest.fail("computed"))
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    for out, said in (("link", "leads nowhere"), ("file", "is a file"), ("file/deep", "is a file")):
        status, _, err = main("segment", "--query", files["query"], "--label", "cat", "--out", tmp_path / out)
        assert (status, said in err) == (2, True)
    os.mkfifo(tmp_path / "pipe")
    status, _, err = main("segment", "--query", files["query"], "--label", "cat", "--out", tmp_path / "o", "--zip",
                          tmp_path / "pipe")  # fmt: skip
    assert (status, "is a device or a pipe" in err) == (2, True)


@pytest.mark.parametrize(
    ("shell", "status"), [('"$@" >&-', 0), ('("$@"; echo $? >status) | true', 1)], ids=["no output", "reader has gone"]
)
def test_without_anybody_who_reads_what_is_printed(tmp_path, shell, status):
    run = ["sh", "-c", f"{shell}; echo $? >>status", "sh", sys.executable, "-m", "imrseg", "weights", "list"]
    where = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(run, cwd=tmp_path, env=where, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert (tmp_path / "status").read_text().split()[0] == str(status)


def test_who_is_asked_to_end_leaves_nothing_half_written(files, tmp_path):
    """SIGTERM, as a service sends it, in the middle of the work."""
    words = ["--query", str(files["query"]), str(files["other"]), "--label", "cat", "--out", str(tmp_path / "out")]
    program = (
        "import os, signal, sys; from imrseg import cli; from imrseg.segmenter import Segmenter\n"
        "Segmenter.segment = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)\n"
        f"sys.exit(cli.main(['segment', *{words!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + 15, done.stderr
    assert names(tmp_path) == {"in", "s"}


def test_a_file_that_is_no_text_is_no_result(main, files):
    status, _, err = main("tables", files["query"])
    assert status == 2
    assert len(err) < 500


@pytest.mark.parametrize("place", ["out", ".", "out/result.json", "out/panel.png", "out/query_step1.png"])
def test_a_zip_and_the_results_stand_apart(main, files, tmp_path, place):
    status, _, err = main("segment", "--query", files["query"], "--label", "cat", "--out", tmp_path / "out", "--zip",
                          tmp_path / place)  # fmt: skip
    assert status == 2
    assert "Give the ZIP another name" in err or "Is a directory" in err
    assert not (tmp_path / "out").exists()


def test_a_zip_may_lie_among_the_results(main, files, tmp_path):
    out = tmp_path / "out"
    assert main("segment", "--query", files["query"], "--label", "cat", "--steps", 0, "--out", out, "--zip",
                out / "all.zip")[0] == 0  # fmt: skip
    assert zipfile.is_zipfile(out / "all.zip")
    assert json.loads((out / "result.json").read_text("utf-8"))["label"] == "cat"


def test_queries_of_one_name_are_told_apart_in_the_manifest(main, save, cat, cup, tmp_path):
    queries = save(cat, "a/01.png"), save(cup, "b/01.png")
    assert main("segment", "--query", *queries, "--label", "cat", "--steps", 0, "--out", tmp_path / "out")[0] == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text("utf-8"))
    assert [result["query"] for result in manifest["results"]] == [q.as_posix() for q in queries]


def test_the_side_that_lite_sees_pictures_at(files, tmp_path, capsys):
    words = [
        "segment",
        "--query",
        files["query"],
        "--label",
        "cat",
        "--steps",
        0,
        "--device",
        "cpu",
        "--out",
        tmp_path / "o",
    ]
    assert cli.main([*map(str, words), "--lite-side", "384"]) == 0
    assert json.loads((tmp_path / "o/result.json").read_text("utf-8"))["lite_side"] == 384
    with pytest.raises(SystemExit):
        cli.main([*map(str, words), "--lite-side", "many"])
    assert cli.main([*map(str, words), "--lite-side", "300"]) == 2
    assert "a multiple of 32 from 128 to 1024 pixels, not at 300" in capsys.readouterr().err
