"""Many visitors at once, and what the server keeps of them."""

import datetime
import errno
import json
import os
import shutil
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

gr = pytest.importorskip("gradio")
StateHolder = pytest.importorskip("gradio.state_holder").StateHolder
httpx = pytest.importorskip("httpx")

from imrseg import InputError  # noqa: E402
from imrseg.app import handlers, models, painting, server  # noqa: E402
from imrseg.app.examples import EXAMPLES_FOLDER  # noqa: E402
from imrseg.app.models import Models  # noqa: E402
from imrseg.app.server import Folder, forget, private_folder  # noqa: E402
from imrseg.app.sessions import Scene, Session  # noqa: E402
from imrseg.images import Picture  # noqa: E402
from tools import soak  # noqa: E402

LION, RUNNING = (EXAMPLES_FOLDER / f"{name}.jpg" for name in ("lion", "cheetah-running"))
API = soak.API


# ---- a minute of what half an hour of soak.py does


@pytest.mark.slow
def test_a_crowd_is_answered_and_leaves_nothing(tmp_path):
    report = soak.soak(60, tmp_path)
    print(report)
    assert report.wrong == []
    assert report.files_left == 0
    assert report.memory[1] < 1.3 * report.memory[0]  # what is remembered still fills in this minute
    assert min(report.counts.values()) > 0


def test_a_wrong_answer_would_be_seen(slow_server):
    """The soak itself: an answer that is not the library's, and a bad request without a sentence, are reported."""
    question = soak.Question(LION, (), "lion", 0, (b"another mask",), ({},))
    config = httpx.get(f"{slow_server}/config", trust_env=False).json()
    visitor = soak.Visitor(slow_server, config, 0)
    with pytest.raises(soak.Wrong, match="step by step"):
        visitor.stepwise(question)
    visitor.random = SimpleNamespace(random=lambda: 1)
    with pytest.raises(soak.Wrong, match="not the library's mask"):
        visitor.good(question)
    visitor.random = SimpleNamespace(choice=lambda of: of[0])
    visitor.something_bad = visitor.data  # a good one
    with pytest.raises(soak.Wrong, match="a bad request: complete"):
        visitor.bad(question)


def test_who_comes_when_the_line_is_full_is_told_so(slow_server):
    """One is served, 64 wait, the next is refused in one sentence; those who leave make room."""
    with httpx.Client(base_url=slow_server, trust_env=False, timeout=60) as http:
        file = http.post(f"{API}/upload", files={"files": ("lion.jpg", LION.read_bytes())}).json()[0]
        query = {"path": file, "meta": {"_type": "gradio.FileData"}}
        config = http.get("/config").json()
        event = next(d["id"] for d in config["dependencies"] if d["api_name"] == "segment")
        data = [query, [], "lion", 20, 0.5, "lite", "", "", "single", "", "last", "on"]

        def join(number):
            body = {"data": data, "fn_index": event, "session_hash": f"one of many {number}"}
            return http.post(f"{API}/queue/join", json=body)

        first = join(0)
        while http.get(f"{API}/queue/status").json()["queue_size"]:
            time.sleep(0.05)
        taken = [join(number) for number in range(1, handlers.QUEUE + 1)]
        refused = join(handlers.QUEUE + 1)
        assert {answer.status_code for answer in (first, *taken)} == {200}
        words = "64 requests wait already, which is the most. Please try again in a minute."
        assert (refused.status_code, refused.json()["detail"]) == (503, words)
        assert http.post(f"{API}/call/segment", json={"data": data}).json()["detail"] == words
        for number, answer in enumerate((first, *taken)):
            gone = {"session_hash": f"one of many {number}", "fn_index": event, **answer.json()}
            assert http.post(f"{API}/cancel", json=gone).json() == {"success": True}
        assert join(99).status_code == 200


# ---- at once


def test_the_same_pictures_at_once_give_the_same(segmenter):
    """Threads that ask at the same time, for the same and for others."""
    jobs = [
        (LION, [RUNNING], "lion"),
        (LION, [RUNNING], "lion"),
        (LION, [], "animal"),
        (RUNNING, [LION], "cheetah"),
    ] * 3
    right = {}
    for query, supports, label in jobs[:4]:
        right[query, label] = segmenter.segment(query, supports, label, 1).mask
    segmenter.forget()
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda job: segmenter.segment(*job, 1).mask, jobs))
    for (query, _, label), mask in zip(jobs, found, strict=True):
        np.testing.assert_array_equal(mask, right[query, label])


def test_an_example_goes_on_for_each_visitor_by_itself(segmenter, monkeypatch):
    page = handlers.build_app(segmenter).handlers
    monkeypatch.setattr(handlers, "list_examples", lambda: handlers.__dict__["Example"] and examples[:1])
    examples = [handlers.Example("cheetah", EXAMPLES_FOLDER / "cheetah-portrait.jpg", (RUNNING,), "")]
    page.prepare_examples()

    def visit(_):
        shown = page.pick_example(SimpleNamespace(example=0), *page.usual_settings(), "Overlay", 0.5)
        session = shown[page.page.session]
        for _ in range(2):
            name = session.names()[0]
            (update,) = page.one_more(session, name, "cheetah", 3, "Overlay", 0.5, 0)
            session = update[page.page.session]
        return [step.query_soft for step in session.scenes[0].findings[0].steps]

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(visit, range(8)))
    expected = segmenter.segment(EXAMPLES_FOLDER / "cheetah-portrait.jpg", [RUNNING], "cheetah", 5)
    for steps in found:
        for mine, right in zip(steps, expected.steps, strict=True):
            np.testing.assert_array_equal(mine, right.query_soft)
    assert len(page.ready[0].scenes[0].findings[0].run.steps) == 4


# ---- what is kept


def session_of(name, side=1000):
    picture = Picture(np.zeros((side, side, 3), np.uint8), (side, side), name)
    return Session((Scene.of([picture], [name]),), "lite", "")


def test_those_who_came_longest_ago_are_forgotten_first(segmenter, monkeypatch):
    held = sum(session_of("a").arrays().values())
    monkeypatch.setattr(models, "KEPT", 2.5 * held)
    kept = Models(segmenter)
    first, second, third = (session_of(name) for name in "abc")
    for session in (first, second, first, third):  # the first has come again
        kept.remember(session)
    assert (bool(first), bool(second), bool(third)) == (True, False, True)
    shared = replace(third)  # another step of the same run: its pictures count once
    kept.remember(shared)
    assert first
    del first
    fourth = session_of("d")
    kept.remember(fourth)  # who is gone does not count
    assert third
    assert fourth
    fifth = session_of("e")
    kept.remember(fifth)
    assert (bool(third), bool(shared), bool(fourth), bool(fifth)) == (False, False, True, True)


def test_who_is_forgotten_is_told_so(segmenter, tmp_path):
    page = handlers.build_app(segmenter).handlers
    query = tmp_path / "mine.jpg"
    shutil.copy(LION, query)
    given = [[(str(query), None)], [], "lion", 0, "lite", "", "", "single", "", "last", "on", "cpu"]
    *_, updates = page.run(*given, "Overlay", 0.5, None)
    session = updates[page.page.session]
    choices = (session.names()[0], "lion", 0, "Overlay", 0.5, None)
    assert Path(page.download(session, *choices, "Mask (PNG)")).is_file()
    query.unlink()
    with pytest.raises(gr.Error, match="no longer kept here"):
        page.download(session, *choices, "Cut-out (PNG)")
    session.forget()
    with pytest.raises(gr.Error, match="no longer kept here"):
        page.download(session, *choices, "Mask (PNG)")
    assert page.look(session, *choices) == gr.skip()
    assert list(page.one_more(session, *choices)) == [gr.skip()]


def test_files_go_after_their_time_by_no_clock_that_jumps(tmp_path, monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(server, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    folder = Folder(tmp_path)
    (tmp_path / "a").mkdir()
    old, new = tmp_path / "a" / "old.jpg", tmp_path / "a" / "new.jpg"
    old.write_bytes(b"x")
    os.utime(old, (0, 0))  # the clock was wrong then
    assert folder.sweep(100) == set()
    now.seconds = 99.0
    new.write_bytes(b"y")
    os.utime(new, (2**31, 2**31))
    assert folder.sweep(100) == set()
    now.seconds = 100.0
    assert folder.sweep(100) == {str(old)}
    now.seconds = 190.0
    time.sleep(0.02)
    os.utime(new)  # handed out again
    assert folder.sweep(100) == set()
    now.seconds = 289.0
    assert folder.sweep(100) == set()
    now.seconds = 291.0
    assert folder.sweep(100) == {str(new)}
    assert list(tmp_path.iterdir()) == []


def test_what_gradio_knows_of_files_is_forgotten_with_them(tmp_path):
    with gr.Blocks() as app:
        editor = gr.ImageEditor()
    (tmp_path / "a.jpg").write_bytes(b"x")
    app.upload_file_set.update([str(tmp_path / "a.jpg"), "kept"])
    editor.blob_storage = dict.fromkeys(map(str, range(300)))
    forget(app, Folder(tmp_path), 0)
    assert app.upload_file_set == {"kept"}
    assert list(editor.blob_storage) == [str(i) for i in range(200, 300)]


def test_sessions_that_hold_nothing_go_when_idle():
    with gr.Blocks() as app:
        kept, wanted, stopped = gr.State(), gr.State(), gr.State(False)
    holder = StateHolder()
    holder.set_blocks(app)
    for name in ("a caller", "a visitor", "with a run"):
        holder[name][kept._id] = Session((), "lite", "own", "cpu") if name == "with a run" else None
    holder["a visitor"][wanted._id], holder["a visitor"][stopped._id] = "an example", False  # what a click leaves
    holder["just come"]
    for name in ("a caller", "a visitor", "with a run"):
        holder.time_last_used[name] -= datetime.timedelta(seconds=61)
    server.forget_sessions(holder, 60)
    assert list(holder.session_data) == list(holder.time_last_used) == ["with a run", "just come"]


def test_a_folder_of_its_own_that_goes_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    with private_folder() as folder:
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder.path)
        assert folder.path.parent == tmp_path
        assert folder.path.stat().st_mode & 0o077 == 0
        (folder.path / "a").write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []
    assert os.environ["GRADIO_TEMP_DIR"] == str(tmp_path)


def test_cleaning_goes_on_after_an_error(caplog):
    done, twice = [], threading.Event()

    def work():
        done.append(1)
        if len(done) == 2:
            twice.set()
        raise OSError("a broken disk")

    with server.every(0.01, work):
        assert twice.wait(10)
    assert "a broken disk" in caplog.text


def test_a_full_disk_is_told_and_leaves_nothing(segmenter, tmp_path, monkeypatch):
    page = handlers.build_app(segmenter).handlers
    given = [[(str(LION), None)], [], "lion", 0, "lite", "", "", "single", "", "last", "on", "cpu"]
    *_, updates = page.run(*given, "Overlay", 0.5, None)
    session = updates[page.page.session]
    choices = (session.names()[0], "lion", 0, "Overlay", 0.5, None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(gr.Error, match="The server's disk is full"):
        page.download(session, *choices, "Mask (PNG)")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    assert Path(page.download(session, *choices, "Mask (PNG)")).is_file()


def test_every_error_has_words(segmenter):
    """Whatever a page's event raises; the form of a request is checked before."""
    import asyncio

    app = handlers.build_app(segmenter)
    by_name = {fn.api_name: fn for fn in app.fns.values()}
    for name, inputs in (("look", [None] * 7), ("redraw", [None, 5, [], {}, "x", "y", "z"]), ("segment", [])):
        with pytest.raises(gr.Error) as error:
            asyncio.run(app.process_api(by_name[name], inputs, session_hash="x"))
        assert error.value.message
        assert "Traceback" not in error.value.message
        assert json.dumps(error.value.message)


def test_parts_of_painted_pictures_that_wait_are_bounded(monkeypatch):
    def sent(name, index="null", kind="background", part=b"12345678"):
        return SimpleNamespace(data={"type": kind, "index": index, "id": name}, files=[("file", part)])

    with gr.Blocks():
        editor = painting.bounded(gr.ImageEditor())
    monkeypatch.setattr(painting, "MAX_KEPT", 20)
    monkeypatch.setattr(painting, "MAX_PART", 10)
    for name in "abc":
        editor.accept_blobs(sent(name))
    assert list(editor.blob_storage) == ["b", "c"]
    editor.accept_blobs(sent("c", "0", "layer", b"1"))
    assert editor.blob_storage["c"].layers == [b"1"]
    for odd in (
        sent("c", "50000000", "layer"), sent("c", "-1", "layer"), sent("c", "9" * 5000, "layer"), sent("c", "x", "layer"),
        sent("c" * 101), sent("c", part=b"x" * 11),
    ):  # fmt: skip
        with pytest.raises(InputError, match="part of a picture"):
            editor.accept_blobs(odd)
    assert list(editor.blob_storage) == ["b", "c"]
    assert editor.accept_blobs._is_server_fn
