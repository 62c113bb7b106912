"""A crowd of clients against one server, for as long as is wanted: python -m tools.soak --minutes 30.

It starts the page in a process of its own, which forgets files after ``KEEP`` seconds, sends it good, bad, cancelled
and broken-off requests, and compares every good answer with what the library gives for the same input. The exit status
is 1 where anything was wrong: a wrong or missing answer, a bad request without a sentence, a traceback, memory that
grew by more than a tenth after the warm-up, a file that is not deleted. What is remembered fills in the first minutes,
so a soak of less than ``JUDGED`` seconds reports memory without judging it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from imrseg import Segmenter, coco
from imrseg.export import encode_mask

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "assets" / "examples"
API = "/gradio_api"
CLIENTS = 16
KEEP, SWEEP = 40, 4  # seconds: when the server forgets files and idle sessions, and how often it looks
JUDGED = 300.0  # seconds from which memory is judged
GROWTH = 0.1  # of memory after the warm-up, at most
WARM_UP = 0.5  # share of the time
WINDOW = 0.2  # share of the time whose median counts: from one request to the next, memory moves by a tenth
PATIENCE = 120.0  # seconds for one answer

# As many threads as here: sums that are rounded otherwise turn a pixel that lies at the cut.
SERVER = f"""
import sys
import torch
from imrseg import cli
from imrseg.app import server
torch.set_num_threads({torch.get_num_threads()})
server.KEEP, server.SWEEP, server.IDLE = {KEEP}, {SWEEP}, {KEEP}
sys.exit(cli.main(sys.argv[1:]))
"""
JSON = {"Content-Type": "application/json"}
KINDS = {"good": 6, "page": 1, "bad": 3, "cancelled": 1, "broken off": 1}  # how often each
TRACES = re.compile(r'Traceback|File "|site-packages|\.py\b')


@dataclass
class Report:
    """What a crowd met.

    Attributes:
        seconds: that it took. counts: requests by kind. wrong: what should not have been.
        memory: megabytes of the server after the warm-up and at the end, medians. threads: of the server, likewise.
        files_left: in the server's folder after its time. slowest: seconds of the slowest good answer.
    """

    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    wrong: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    threads: list[float] = field(default_factory=list)
    files_left: int = 0
    slowest: float = 0.0


@dataclass(frozen=True)
class Question:
    """A good request and its right answer: each step's mask of the query, as PNG and as run lengths."""

    query: Path
    supports: tuple[Path, ...]
    label: str
    steps: int
    masks: tuple[bytes, ...]
    lengths: tuple[Any, ...]


def questions() -> list[Question]:
    """With what the library answers."""
    segmenter = Segmenter.from_preset("lite", "cpu")
    asked = [
        ("cheetah-portrait", ["cheetah-running"], "cheetah", 2), ("chelsea", [], "cat", 1), ("lion", [], "lion", 3),
        ("lion", ["cheetah-running", "cheetah-portrait"], "big cat", 1), ("coffee", [], "cup", 2),
        ("coffee", [], "table", 1), ("cheetah-running", ["lion"], "cheetah", 0), ("chelsea", ["lion"], "nose", 1),
    ]  # fmt: skip
    found = []
    for query, supports, label, steps in asked:
        pictures = EXAMPLES / f"{query}.jpg", tuple(EXAMPLES / f"{name}.jpg" for name in supports)
        result = segmenter.segment(*pictures, label, steps)
        masks = [step.query_mask >= step.cut(0.5) for step in result.steps]
        lengths = tuple(coco.shape(mask, label).rle for mask in masks)
        found.append(Question(*pictures, label, steps, tuple(map(encode_mask, masks)), lengths))
    return found


class Wrong(Exception):
    """An answer that should not have been."""


class Visitor:
    """One client, with a session of its own."""

    def __init__(self, address: str, config: dict[str, Any], seed: int) -> None:
        self.http = httpx.Client(base_url=address, timeout=PATIENCE, trust_env=False)
        self.config, self.random = config, random.Random(seed)  # noqa: S311
        self.session = f"visitor{seed}x{self.random.getrandbits(64):x}"

    # ---- the server's words

    def upload(self, path: Path) -> dict[str, Any]:
        answer = self.http.post(f"{API}/upload", files={"files": (path.name, path.read_bytes())})
        if answer.status_code != 200:
            raise Wrong(f"upload: {answer.status_code} {answer.text[:200]}")
        return {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}, "orig_name": path.name}

    def data(self, question: Question, **other: Any) -> list[Any]:
        given = {
            "query": self.upload(question.query), "supports": [self.upload(path) for path in question.supports],
            "label": question.label, "steps": question.steps, "threshold": 0.5,
        } | other  # fmt: skip
        return [*given.values(), "lite", "", "", "single", "", "last", "on"]

    def call(self, name: str, data: list[Any]) -> Iterator[tuple[str, Any]]:
        """(event, data) of a call to a public function."""
        asked = self.http.post(f"{API}/call/{name}", content=json.dumps({"data": data}), headers=JSON)
        if asked.status_code != 200:
            yield "refused", asked.text
            return
        event = asked.json()["event_id"]
        with self.http.stream("GET", f"{API}/call/{name}/{event}") as answer:
            kind = ""
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    kind = line[7:]
                elif line.startswith("data: ") and kind != "heartbeat":
                    yield kind, json.loads(line[6:])

    def press(self, name: str, **values: Any) -> Any:
        """What one of the page's own events gives; ``values`` by the components' ids, else as the page opens."""
        event = next(d for d in self.config["dependencies"] if d["api_name"] == name)
        blocks = {c["id"]: c["props"] for c in self.config["components"]}
        inputs = [blocks[i] for i in event["inputs"]]
        data = [values.get(props.get("elem_id"), props.get("value")) for props in inputs]
        body = {"data": data, "fn_index": event["id"], "session_hash": self.session}
        asked = self.http.post(f"{API}/queue/join", json=body)
        if asked.status_code != 200:
            raise Wrong(f"{name}: {asked.status_code} {asked.text[:200]}")
        with self.http.stream("GET", f"{API}/queue/data", params={"session_hash": self.session}) as answer:
            for line in answer.iter_lines():
                said = json.loads(line[6:]) if line.startswith("data: ") else {}
                if said.get("msg") == "process_completed":
                    if not said["success"]:
                        raise Wrong(f"{name}: {said['output']}")
                    return said["output"]["data"]
        raise Wrong(f"{name}: no answer")

    # ---- what visitors do

    def good(self, question: Question) -> None:
        """A right answer, by either function."""
        if self.random.random() < 0.3:
            self.stepwise(question)
            return
        *_, (kind, said) = self.call("segment", self.data(question))
        if kind != "complete":
            raise Wrong(f"a good request: {kind} {said}")
        result, files = said
        if result["label"] != question.label or result["query"] != question.query.name:
            raise Wrong(f"another's answer: {result['label']} for {question.label}")
        for mask, file in zip(question.masks, files, strict=False):
            if self.http.get(f"{API}/file={file['path']}").content != mask:
                raise Wrong(f"{question.label}: {Path(file['path']).name} is not the library's mask")

    def stepwise(self, question: Question) -> None:
        said = list(self.call("segment_steps", self.data(question)))
        lengths = [data[0]["mask"] for kind, data in said if kind == "generating"]
        if said[-1][0] != "complete" or lengths != list(question.lengths):
            raise Wrong(f"{question.label}, step by step: {len(lengths)} steps, {said[-1][0]}")

    def page(self, question: Question) -> None:
        """A run on the page, and its mask taken away."""
        queries = [{"image": self.upload(question.query), "caption": None}]
        supports = [{"image": self.upload(path), "caption": None} for path in question.supports]
        self.press("run", queries=queries, supports=supports, label=question.label, steps=question.steps)
        looked = {"which-query": None, "which-label": question.label, "step": question.steps}
        (file,) = self.press("download", **looked)
        if self.http.get(f"{API}/file={file['path']}").content != question.masks[-1]:
            raise Wrong(f"{question.label}: what was taken away from the page is not the library's mask")

    def bad(self, question: Question) -> None:
        """A sentence, and nothing of the server's inside."""
        *_, (kind, said) = self.call(self.random.choice(["segment", "segment_steps"]), self.something_bad(question))
        words = said if isinstance(said, str) else (said or {}).get("error") if isinstance(said, dict) else None
        if kind not in ("error", "refused") or not words:
            raise Wrong(f"a bad request: {kind} {said}")
        if TRACES.search(words):
            raise Wrong(f"a traceback: {words}")

    def something_bad(self, question: Question) -> list[Any]:
        picture = io.BytesIO()
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(picture, "png")
        broken = {"half.png": picture.getvalue()[:60], "text.jpg": b"hello", "empty.png": b"", "page.png": b"<svg/>"}
        kinds: list[Callable[[], list[Any]]] = [
            *(partial(self.data, question, **one) for one in (
                {"label": " "}, {"label": "x" * 10_000}, {"label": "a\x00b"}, {"label": ["cat"]}, {"query": None},
                {"steps": -1}, {"steps": float("nan")}, {"steps": "three"}, {"steps": 1e300}, {"threshold": float("inf")},
                {"threshold": "half"}, {"threshold": -0.1}, {"query": {"path": "/etc/passwd"}}, {"supports": "cat"},
                {"query": {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}}, {"supports": [None]},
            )),
            list,
            lambda: [*self.data(question)[:-7], "huge", "", "", "single", "", "last", "on"],
            lambda: self.data(question, supports=[self.upload(question.query)] * 11),
        ]  # fmt: skip
        for name, content in broken.items():
            kinds.append(partial(self.with_file, question, name, content))
        return self.random.choice(kinds)()

    def with_file(self, question: Question, name: str, content: bytes) -> list[Any]:
        answer = self.http.post(f"{API}/upload", files={"files": (name, content)})
        file = {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}
        return self.data(question, **self.random.choice([{"query": file}, {"supports": [file]}]))

    def cancelled(self, question: Question) -> None:
        """A long run that is given up as soon as it has begun."""
        event = next(d for d in self.config["dependencies"] if d["api_name"] == "segment_steps")
        session = f"given up {self.random.getrandbits(64):x}"
        body = {"data": self.data(question, steps=20), "fn_index": event["id"], "session_hash": session}
        asked = self.http.post(f"{API}/queue/join", json=body).json()
        with self.http.stream("GET", f"{API}/queue/data", params={"session_hash": session}) as answer:
            for line in answer.iter_lines():
                if "process_generating" in line:
                    break
            self.http.post(f"{API}/cancel", json={"session_hash": session, "fn_index": event["id"], **asked})

    def broken_off(self, question: Question) -> None:
        """A client that is gone in the middle of an upload, or before its answer."""
        if self.random.random() < 0.5:
            port = self.http.base_url.port
            with socket.create_connection((self.http.base_url.host, port), timeout=10) as line:
                head = f"POST {API}/upload HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 100000\r\n"
                part = '--b\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
                line.sendall(
                    f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n{part}".encode() + b"x" * 5000
                )
            return
        for _ in self.call("segment_steps", self.data(question, steps=20)):
            return


def crowd(
    address: str,
    asked: list[Question],
    seconds: float = float("inf"),
    requests: int = sys.maxsize,
    clients: int = CLIENTS,
    process: int | None = None,
) -> Report:
    """Let ``clients`` ask for ``seconds`` or until ``requests`` were sent; the process's memory is watched."""
    config = httpx.get(f"{address}/config", trust_env=False, timeout=PATIENCE).json()
    report, lock, start = Report(), threading.Lock(), time.monotonic()
    left = iter(range(requests))

    def visit(seed: int) -> None:
        visitor = Visitor(address, config, seed)
        while time.monotonic() - start < seconds:
            with lock:
                if next(left, None) is None:
                    return
            (kind,) = visitor.random.choices(list(KINDS), list(KINDS.values()))
            question, since, wrong = visitor.random.choice(asked), time.monotonic(), ""
            try:
                getattr(visitor, kind.replace(" ", "_"))(question)
            except Wrong as error:
                wrong = str(error)
            except Exception as error:
                wrong = f"{kind}: {type(error).__name__} {error}"
            with lock:
                report.counts[kind] += 1
                report.wrong += [wrong[:500]] if wrong else []
                if kind == "good":
                    report.slowest = max(report.slowest, time.monotonic() - since)

    threads = [threading.Thread(target=visit, args=(seed,), daemon=True) for seed in range(clients)]
    for thread in threads:
        thread.start()
    samples = []
    while any(thread.is_alive() for thread in threads):
        if process is not None:
            samples.append(measure(process))
        time.sleep(0.2)
    report.seconds = time.monotonic() - start
    if samples:
        window = max(1, int(WINDOW * len(samples)))
        warm = int(WARM_UP * len(samples))
        for part in (samples[warm : warm + window], samples[-window:]):
            memory, count = np.median(part, 0).tolist()
            report.memory.append(memory)
            report.threads.append(count)
    return report


def measure(process: int) -> tuple[float, int]:
    """Megabytes and threads of a process."""
    said = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return int(said["VmRSS"].split()[0]) / 1024, int(said["Threads"])


@contextmanager
def server(temp: Path) -> Iterator[tuple[str, int]]:
    """(address, process id) of a page that keeps its files under ``temp``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"GRADIO_TEMP_DIR": str(temp), "GRADIO_ANALYTICS_ENABLED": "False"}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, "demo", "--device", "cpu", "--port", str(port)],
        cwd=ROOT, env=os.environ | environment,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            with suppress(httpx.HTTPError):
                if httpx.get(address, trust_env=False, timeout=5).status_code == 200:
                    break
            time.sleep(0.2)
        yield address, process.pid
    finally:
        process.terminate()
        process.wait(30)


def soak(seconds: float, temp: Path) -> Report:
    """A crowd for ``seconds``; afterwards the server must be as it was."""
    asked = questions()
    with server(temp) as (address, process):
        report = crowd(address, asked, seconds, process=process)
        time.sleep(KEEP + 2 * SWEEP + 1)
        report.files_left = sum(path.is_file() for path in temp.rglob("*"))
        after = crowd(address, asked, requests=20, clients=4)
        report.wrong += [f"afterwards: {wrong}" for wrong in after.wrong]
        waiting = httpx.get(f"{address}{API}/queue/status", trust_env=False).json()["queue_size"]
        report.wrong += [f"{waiting} requests are still in line"] * (waiting > 0)
    before, end = report.memory
    if seconds >= JUDGED and end > (1 + GROWTH) * before:
        report.wrong.append(f"memory grew from {before:.0f} to {end:.0f} MB")
    report.wrong += [f"{report.files_left} files were not deleted"] * (report.files_left > 0)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--json", type=Path, metavar="OUT.json")
    args = parser.parse_args()
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as temp:
        report = soak(60 * args.minutes, Path(temp))
    words = json.dumps(asdict(report), indent=2, ensure_ascii=False)
    print(words)
    if args.json:
        args.json.write_text(words + "\n", "utf-8")
    return int(bool(report.wrong))


if __name__ == "__main__":
    sys.exit(main())
