import errno
import json
import os
import resource
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imrseg import InputError, export, visualize
from imrseg.images import open_picture
from imrseg.postprocess import iou

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(segmenter, cat, cup):
    result = segmenter.segment(cat, [cup], "cat", steps=2)
    return result, {"query": cat, "supports": [cup], "segmenter": segmenter}


def read(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_all_files_of_a_result(run, tmp_path, cat, cup):
    result, rest = run
    record = export.write_result(result, tmp_path / "deep" / "out", **rest)
    out = tmp_path / "deep" / "out"
    masks = {f"{who}_step{i}.png" for who in ("query", "support1") for i in range(3)}
    assert {p.name for p in out.iterdir()} == masks | {"panel.png", "result.json"}
    assert list(tmp_path.iterdir()) == [tmp_path / "deep"]
    for name in masks:
        picture = Image.open(out / name)
        assert picture.mode == "L"
        assert set(np.unique(picture)) <= {0, 255}
        assert read(out / name).shape == (cat if name.startswith("query") else cup).shape[:2]
    for step in result.steps:
        cut = step.cut(result.threshold)
        assert np.array_equal(read(out / f"query_step{step.index}.png") == 255, step.query_mask >= cut)
        assert np.array_equal(read(out / f"support1_step{step.index}.png") == 255, step.support_masks[0] >= cut)
    assert np.array_equal(read(out / "query_step2.png") == 255, result.mask)
    panel = read(out / "panel.png")
    assert np.array_equal(panel, visualize.panel(cat, [cup], result.steps, result.threshold, "cat"))
    assert json.loads((out / "result.json").read_text("utf-8")) == record


def test_the_record(run, tmp_path, segmenter, cat):
    result, rest = run
    record = export.write_result(result, tmp_path / "out", **rest)
    assert record["label"] == "cat"
    assert record["preset"] == "lite"
    assert record["weights"] == segmenter.hashes
    assert all(len(digest) == 64 for digest in record["weights"].values())
    assert record["size"] == {"width": cat.shape[1], "height": cat.shape[0]}
    assert (record["threshold"], record["confidence"]) == (0.5, result.confidence)
    masks = [s.query_mask >= s.cut(0.5) for s in result.steps]
    assert [s["covered"] for s in record["steps"]] == pytest.approx([m.mean() for m in masks])
    agreement = [s["iou_with_previous"] for s in record["steps"]]
    assert agreement == [None, *(iou(a, b) for a, b in pairwise(masks))]
    assert set(record["seconds"]) == {"decode", "features", "coarse", "step1", "step2"}


def test_two_runs_differ_in_seconds_alone(run, tmp_path, segmenter, cat, cup):
    result, rest = run
    first = export.write_result(result, tmp_path / "a", **rest)
    again = segmenter.segment(cat, [cup], "cat", steps=2)
    second = export.write_result(again, tmp_path / "b", **rest)
    for record in (first, second):
        del record["seconds"]
        assert all(step.pop("seconds") >= 0 for step in record["steps"])
    assert first == second
    for path in (tmp_path / "a").glob("*.png"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_opened_pictures_and_zero_shot(segmenter, cat, save, tmp_path):
    picture = open_picture(save(cat, "Tom & Jerry.png"))
    result = segmenter.segment(picture, [], "cat", steps=1)
    record = export.write_result(result, tmp_path / "out", query=picture, supports=[], segmenter=segmenter)
    assert (record["query"], record["supports"]) == ("Tom & Jerry.png", [])
    assert not list((tmp_path / "out").glob("support*"))


def test_a_users_files_stay_and_old_masks_go(run, tmp_path, segmenter, cat):
    result, rest = run
    out = tmp_path / "out"
    export.write_result(result, out, **rest)
    (out / "notes.txt").write_text("mine")
    (out / "my_step1.png").write_text("mine")
    shorter = segmenter.segment(cat, [], "cat", steps=1)
    export.write_result(shorter, out, query=cat, supports=[], segmenter=segmenter)
    kept = {"notes.txt", "my_step1.png", "query_step0.png", "query_step1.png", "panel.png", "result.json"}
    assert {p.name for p in out.iterdir()} == kept
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("there", [False, True])
def test_nothing_is_half_written(run, tmp_path, monkeypatch, there):
    result, rest = run
    out = tmp_path / "out"
    if there:
        out.mkdir()
        (out / "result.json").write_text("old")
    monkeypatch.setattr(visualize, "panel", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export.write_result(result, out, **rest)
    assert out.exists() == there
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == (["result.json"] if there else [])
    assert not there or (out / "result.json").read_text() == "old"


def test_a_file_is_not_a_folder(run, tmp_path):
    result, rest = run
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="is a file"):
            export.write_result(result, out, **rest)


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "new" / "x.json"
    export.write_json(path, {"label": "猫", "broken file name": "\udcff"})
    assert json.loads(path.read_text("utf-8")) == {"label": "猫", "broken file name": "\udcff"}
    with pytest.raises(TypeError):
        export.write_json(path, {"label": object()})
    assert json.loads(path.read_text("utf-8"))["label"] == "猫"
    assert list(path.parent.iterdir()) == [path]


# A disk that fails, and a process that is killed


def test_a_full_disk_is_said_in_a_sentence_and_leaves_nothing(run, tmp_path, monkeypatch):
    result, rest = run

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match=r"out” cannot be written \(No space left on device\)\. Make room there"):
        export.write_result(result, tmp_path / "out", **rest)
    with pytest.raises(InputError, match=r"x\.json” cannot be written \(No space left"):
        export.write_json(tmp_path / "x.json", {})
    assert list(tmp_path.iterdir()) == []


SCRIPT = """
import os, pathlib, signal, sys
import cv2, numpy as np
from imrseg import Segmenter, export, figures, visualize

folder = pathlib.Path(sys.argv[1])
segmenter = Segmenter.from_preset("lite", "cpu")
picture = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
result = segmenter.segment(picture, [], "cat", steps=1)
assert all(figures.figure([picture], result.steps, 0.5, "cat $x^2$").values())
cv2.setNumThreads(0)
replace, calls = pathlib.Path.replace, []

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def kill_at_the_third(a, b):
    calls.append(kill() if len(calls) > 1 else replace(a, b))

for name, where, what in (("new", visualize, "panel"), ("old", visualize, "panel"), ("moving", pathlib.Path, "replace")):
    if not os.fork():
        setattr(where, what, kill if what == "panel" else kill_at_the_third)
        export.write_result(result, folder / name, query=picture, supports=[], segmenter=segmenter)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """A folder of three results, each written by a process that was killed; there is no display, and no home."""
    folder = tmp_path_factory.mktemp("killed")
    for name in ("old", "moving"):
        (folder / name).mkdir()
        (folder / name / "result.json").write_text("old")
    nowhere = {"MPLBACKEND": "tkagg", "DISPLAY": "", "HOME": "/dev/null", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-W", "ignore", "-c", SCRIPT, folder]
    done = subprocess.run(words, cwd=ROOT, env=os.environ | nowhere, capture_output=True, text=True)
    assert done.stdout.split() == [str(-signal.SIGKILL)] * 3, done.stderr
    return folder


def seen(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if not p.name.startswith(".")}


def test_a_killed_process_leaves_nothing_half_written(killed):
    assert seen(killed) == {"old", "moving"}
    assert seen(killed / "old") == {"result.json"}
    assert (killed / "old" / "result.json").read_text() == "old"


def test_no_record_speaks_of_masks_that_a_killed_process_replaced(killed):
    assert len(seen(killed / "moving")) == 1
    assert seen(killed / "moving") < {"query_step0.png", "query_step1.png", "panel.png"}


def test_a_limit_of_the_system_is_said_in_a_sentence(run, tmp_path):
    result, rest = run
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(InputError, match=r"out” cannot be written \(File too large\)"):
            export.write_result(result, tmp_path / "out", **rest)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_taken_costs_nothing_of_an_earlier_result(run, tmp_path):
    result, rest = run
    out = tmp_path / "out"
    export.write_result(result, out, **rest)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    (out / "panel.png").unlink()
    (out / "panel.png").mkdir()
    with pytest.raises(InputError, match=r"panel\.png” is a folder"):
        export.write_result(result, out, **rest)
    (out / "panel.png").rmdir()
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {n: b for n, b in before.items() if n != "panel.png"}
    (out / "b").touch()

    def many() -> None:
        with export.staged(out) as folder:
            (folder / "b").mkdir()
            (folder / "b/result.json").touch()
            (folder / "manifest.json").touch()

    with pytest.raises(InputError, match="b” is a file"):
        many()
    assert (out / "result.json").read_bytes() == before["result.json"]


def test_a_picture_is_not_replaced_by_a_result_of_it(run, tmp_path, cat):
    result, rest = run
    Image.fromarray(cat).save(tmp_path / "panel.png")
    for pictures in ({"query": tmp_path / "panel.png"}, {"supports": [str(tmp_path / "panel.png")]}):
        for out in (tmp_path, str(tmp_path)):
            with pytest.raises(InputError, match=r"panel\.png” is one of the pictures"):
                export.write_result(result, out, **(rest | pictures))


def test_whoever_comes_second_waits_and_writes_all_of_it(tmp_path, monkeypatch):
    """Another process makes the folder in the moment before it is made here, and writes into it."""
    out, rename = tmp_path / "out", Path.rename

    def late(folder: Path, target: Path) -> Path:
        out.mkdir()
        (out / "a").write_text("theirs")
        (out / "c").write_text("theirs")
        return rename(folder, target)

    monkeypatch.setattr(Path, "rename", late)
    with export.staged(out) as folder:
        for name in ("a", "b"):
            (folder / name).write_text("ours")
    assert {p.name: p.read_text() for p in out.iterdir()} == {"a": "ours", "b": "ours", "c": "theirs"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_is_held_against_another_process(tmp_path):
    from imrseg import locks

    fcntl = pytest.importorskip("fcntl")
    with locks.holding(tmp_path):
        handle = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(handle)
