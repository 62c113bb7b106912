"""What the server lets in and gives out, over plain HTTP; and how it ends."""

import base64
import json
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx")

from starlette.datastructures import Headers  # noqa: E402

from imrseg import InputError  # noqa: E402
from imrseg.app import doors  # noqa: E402
from imrseg.app.doors import knows_password, own, users_of  # noqa: E402
from imrseg.app.examples import EXAMPLES_FOLDER  # noqa: E402
from tests.app import pages  # noqa: E402

API = "/gradio_api"
LION = EXAMPLES_FOLDER / "lion.jpg"
ROOT = Path(__file__).resolve().parents[2]
META = {"_type": "gradio.FileData"}


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server, trust_env=False, timeout=60) as client:
        yield client


def upload(http, *files):
    return http.post(f"{API}/upload", files=[("files", file) for file in files])


@pytest.fixture(scope="module")
def lion(http):
    return {"path": upload(http, (LION.name, LION.read_bytes())).json()[0], "meta": META}


def ask(http, name="segment", **other):
    """(event, data) that a call ends with."""
    given = {
        "query": None, "supports": [], "label": "lion", "steps": 1, "threshold": 0.5, "preset": "lite", "coarse": "",
        "distractors": "", "prompts": "single", "edges": "", "edges_on": "last", "consensus": "on",
    } | other  # fmt: skip
    return send(http, name, list(given.values()))


def send(http, name, data):
    body = json.dumps({"data": data})  # NaN and infinity, too
    asked = http.post(f"{API}/call/{name}", content=body, headers={"Content-Type": "application/json"})
    if asked.status_code != 200:
        return "refused", asked.json()
    return listen(http, f"{API}/call/{name}/{asked.json()['event_id']}")


def listen(http, path):
    with http.stream("GET", path) as answer:
        lines = [line for line in answer.iter_lines() if line and "heartbeat" not in line]
    return lines[-2].removeprefix("event: "), json.loads(lines[-1].removeprefix("data: "))


# ---- files


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "%2Fetc%2Fpasswd", "../../../../etc/passwd", "/proc/self/environ", "demo.py", "imrseg/cli.py",
        "checkpoints/lite.safetensors", f"{ROOT}/checkpoints/lite.safetensors", f"{ROOT}/pyproject.toml", "~/.bashrc",
        f"{LION}", "file:///etc/passwd", "/dev/zero", "..%2f..%2f..%2f..%2fetc%2fpasswd", "\\\\host\\share", "C:/Windows/win.ini", "/etc/passwd%00.jpg",
    ],
)  # fmt: skip
def test_no_file_of_the_server_can_be_read(http, path):
    for route in (f"{API}/file=", f"{API}/file/", "/file=", "/static/", "/assets/", "/svelte/"):
        answer = http.get(route + path)
        assert answer.status_code in (400, 403, 404, 405), (route, answer.text[:200])
        assert b"root:" not in answer.content
        assert len(answer.content) < 1000


def test_nothing_around_an_upload_can_be_read(http, lion):
    path = Path(lion["path"])
    assert http.get(f"{API}/file={path}").content == LION.read_bytes()
    for other in (
        path.parent,
        path.parent.parent,
        f"{path}/..%2f..%2f..%2f..%2fetc%2fpasswd",
        path.with_name("other.jpg"),
    ):
        assert http.get(f"{API}/file={other}").status_code == 403
    assert Path(path.parents[1]).stat().st_mode & 0o077 == 0  # nobody else on the machine


def test_who_does_not_have_a_file_cannot_name_it(http):
    """The name of an upload has a secret in it: it does not follow from the content."""
    import hashlib

    path = Path(upload(http, ("secret.txt", b"known to many")).json()[0])
    assert hashlib.sha256(b"known to many").hexdigest() != path.parent.name
    seed = Path(sys.modules["gradio"].__file__).with_name("hash_seed.txt")
    if seed.is_file():
        assert hashlib.sha256(seed.read_bytes().strip() + b"known to many").hexdigest() != path.parent.name


@pytest.mark.parametrize(
    "file",
    [
        {"path": "/etc/passwd", "meta": META}, {"path": "/etc/passwd"}, "/etc/passwd", {"path": str(LION), "meta": META},
        {"path": "checkpoints/lite.safetensors", "meta": META}, {"url": "file:///etc/passwd", "path": "", "meta": META},
        {"path": "http://127.0.0.1:1/a.jpg", "meta": META}, {"path": "http://169.254.169.254/", "meta": META}, 5, [5],
        {"path": "/etc/passwd", "meta": META, "is_stream": True}, {"path": ["/etc/passwd"], "meta": META},
    ],
)  # fmt: skip
def test_a_call_cannot_name_files_of_the_server(http, lion, file):
    for given in ({"query": file}, {"query": lion, "supports": [file]}):
        kind, told = ask(http, **given)
        assert kind == "error"
        assert told["error"].startswith(
            ("A picture must be a file", "The picture's web address", "The request does not")
        )


def test_an_address_is_given_up_after_a_while_and_at_a_size(monkeypatch):
    import asyncio
    import http.server

    from imrseg.app import fetching

    class Endless(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            with suppress(ConnectionError):  # the other side has had enough
                for _ in range(100):
                    self.wfile.write(b"x" * (1000 if self.path == "/long" else 1))
                    time.sleep(0.02)

        def log_message(self, *_):
            pass

    async def here(_):
        return "127.0.0.1"

    monkeypatch.setattr(fetching.safehttpx, "async_validate_url", here)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless) as stub:
        threading.Thread(target=stub.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{stub.server_address[1]}"
        monkeypatch.setattr(fetching, "MAX_FILE", 2000)
        with pytest.raises(InputError, match="too large"):
            asyncio.run(fetching.bounded_get(f"{address}/long"))
        monkeypatch.setattr(fetching, "SECONDS", 0.3)
        with pytest.raises(InputError, match="does not answer"):
            asyncio.run(fetching.bounded_get(f"{address}/slow"))
        stub.shutdown()


# ---- words and numbers


@pytest.mark.parametrize("name", ["segment", "segment_steps"])
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"label": "x" * 10_000}, "The label has 10000 characters"),
        ({"label": "a\x00b"}, "control characters"),
        ({"label": "a\u202eb"}, "control characters"),
        ({"label": " "}, "The label is empty"),
        ({"label": ["cat"]}, "“label” must be text, not list"),
        ({"label": 5}, "“label” must be text"),
        ({"distractors": "x" * 10_000}, "The distractor has 10000 characters"),
        ({"steps": float("nan")}, "whole number from 0 to 20, not nan"),
        ({"steps": float("inf")}, "whole number from 0 to 20, not inf"),
        ({"steps": -1}, "whole number from 0 to 20, not -1"),
        ({"steps": "3"}, "whole number from 0 to 20"),
        ({"steps": {}}, "whole number from 0 to 20"),
        ({"steps": 10**400}, "whole number from 0 to 20"),
        ({"threshold": float("nan")}, "number from 0 to 1, not nan"),
        ({"threshold": float("-inf")}, "number from 0 to 1, not -inf"),
        ({"threshold": -1}, "number from 0 to 1"),
        ({"threshold": "half"}, "number from 0 to 1"),
        ({"threshold": None}, "number from 0 to 1"),
        ({"preset": "huge"}, "There is no preset"),
        ({"coarse": "clip:ViT-L-14/openai"}, "Accepted: lite, clip."),  # it would be downloaded
        ({"prompts": "many"}, "single, ensemble"),
        ({"edges": "crf"}, "guided, grabcut"),
        ({"consensus": "maybe"}, "on, off"),
        ({"supports": "cat"}, "does not have the form"),
        ({"supports": [None]}, "does not have the form"),
    ],
)
def test_a_call_is_checked_on_the_server(http, lion, name, given, told):
    kind, answer = ask(http, name, **({"query": lion} | given))
    assert kind == "error"
    assert told in answer["error"]
    assert "Traceback" not in answer["error"]


def test_calls_of_another_form_are_told_so(http, lion):
    for data in ([], [lion] * 30, [None] * 11):
        kind, answer = send(http, "segment", data)
        assert kind == "error"
        assert answer["error"]
    assert ask(http, query=lion, supports=[lion] * 11)[1]["error"].startswith("11 support pictures")
    assert "Accepted: up to 100" in ask(http, query=lion, supports=[lion] * 10_000)[1]["error"]
    for body in (b"", b"hello", b"null", b'{"data": 5}', b'{"data":' + b"[" * 99_999, b"\xff\xfe"):
        answer = http.post(f"{API}/call/segment", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422)
        assert "Traceback" not in answer.text
    wrong = {"data": [], "fn_index": 9999, "session_hash": "x"}
    answer = http.post(f"{API}/queue/join", json=wrong)
    assert (answer.status_code, answer.json()["detail"]) == (400, doors.NOT_UNDERSTOOD)
    assert http.post(f"{API}/run/segment", json={"data": []}).status_code == 404  # nobody goes past the queue


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"steps": float("nan")}, "must be a whole number, not nan"),
        ({"steps": 2.5}, "must be a whole number, not 2.5"),
        ({"steps": 1000}, "greater than maximum"),
        ({"steps": "x"}, "must be a whole number"),
        ({"steps": None}, "does not have the form"),
        ({"threshold": float("nan")}, "must be a number, not nan"),
        ({"threshold": -1}, "less than minimum"),
        ({"view": "x" * 100_000}, "Value: 'xxx"),
        ({"label": ["x"]}, "must be text"),
        ({"device": "tpu"}, "is not in the list"),
        ({"queries": [{"image": {"path": "/etc/passwd", "meta": META}, "caption": None}]}, "A picture must be a file"),
        ({"queries": [None] * 101}, "Accepted: up to 100"),
    ],
)
def test_the_pages_own_events_are_checked_too(http, given, told):
    event = next(d for d in http.get("/config").json()["dependencies"] if d["api_name"] == "run")
    blocks = {c["id"]: c["props"] for c in http.get("/config").json()["components"]}
    inputs = [blocks[i] for i in event["inputs"]]
    data = [given.get(props.get("elem_id"), props.get("value")) for props in inputs]  # a state has no name
    body = json.dumps({"data": data, "fn_index": event["id"], "session_hash": "tampering"})
    assert http.post(f"{API}/queue/join", content=body, headers={"Content-Type": "application/json"}).is_success
    with http.stream("GET", f"{API}/queue/data?session_hash=tampering") as answer:
        said = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    (done,) = (message for message in said if message["msg"] == "process_completed")
    assert done["success"] is False
    assert told in done["output"]["error"]
    assert len(done["output"]["error"]) <= 1000


def test_html_stays_words(http):
    evil = "<img src=x onerror=alert(1)>.jpg"
    path = upload(http, (evil, LION.read_bytes())).json()[0]
    kind, (result, files) = ask(http, query={"path": path, "meta": META, "orig_name": evil}, label="<b>lion</b>")
    assert kind == "complete"
    assert result["label"] == "<b>lion</b>"
    assert not any("<" in file["path"] + file["orig_name"] for file in files)
    page = upload(http, ("page.html", b"<script>alert(1)</script>"), ("p.svg", b"<svg onload='alert(1)'/>")).json()
    for path in page:
        answer = http.get(f"{API}/file={path}")
        assert answer.headers["content-disposition"].startswith("attachment")
        assert answer.headers["x-content-type-options"] == "nosniff"


# ---- other sites, other routes, sizes and numbers


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://localhost:1", "http://127.0.0.1", "x", "http://[", "http://a]b"],
)
def test_another_sites_page_gets_nothing(http, origin):
    for method, path in (
        ("GET", "/config"), ("OPTIONS", "/config"), ("POST", f"{API}/upload"), ("POST", f"{API}/queue/join")
    ):  # fmt: skip
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        answer = http.request(method, path, headers=asked)
        assert answer.status_code == 403
        assert not any(name.startswith("access-control") for name in answer.headers)


def test_the_servers_own_page_is_answered(http, server):
    answer = http.get("/config", headers={"Origin": server})
    assert answer.status_code == 200
    assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize(
    ("headers", "let_in"),
    [
        ({"host": "a.org"}, True),
        ({"host": "a.org", "origin": "https://a.org"}, True),
        ({"host": "a.org:8080", "origin": "http://a.org:8080"}, True),
        ({"host": "a.org", "origin": "https://a.org:8443"}, True),  # the proxy has taken the port away
        ({"host": "127.0.0.1:7860", "x-forwarded-host": "a.org", "origin": "https://a.org"}, True),
        ({"host": "a.org:8080", "origin": "http://a.org:8081"}, False),
        ({"host": "a.org", "origin": "https://b.org"}, False),
        ({"host": "a.org", "origin": "https://a.org.evil.example"}, False),
        ({"host": "a.org", "origin": "null"}, False),
    ],
)
def test_whose_page_it_is(headers, let_in):
    assert own(Headers(headers)) is let_in


@pytest.mark.parametrize("path", ["/monitoring", "/monitoring/summary", "/openapi.json", *(API + p for p in (
    "/deep_link?session_hash=x", "/file=https://example.com", "/proxy=http://127.0.0.1", "/vibe-code", "/dev/reload",
    "/run-history/buckets", "/process_recording", "/openapi.json",
))])  # fmt: skip
def test_doors_without_a_use_are_closed(http, path):
    assert http.request("POST" if "recording" in path else "GET", path).status_code == 404


def test_what_is_too_long_is_refused(http):
    head = {"Content-Type": "application/json"}
    for body in (b"x" * (doors.MAX_BODY + 1), (b"x" * 10**6 for _ in range(102))):
        try:
            answer = http.post(f"{API}/call/segment", content=body, headers=head)
        except httpx.WriteError:  # the server does not wait for the rest
            continue
        assert (answer.status_code, answer.json()["detail"]) == (
            413,
            "The request is too long. Accepted: up to 100 MB.",
        )
    assert ask(http)[1]["error"] == "There is no query picture."


@pytest.mark.parametrize("part", [b"[],", b"{},", b'"a":0,'], ids=str)
def test_a_short_request_of_many_parts_is_refused_before_it_is_read(http, part):
    body = b'{"data":[' + part * doors.MAX_PARTS + b"[]]}"
    for head in ({"Content-Type": "application/json"}, {}):
        since = time.monotonic()
        answer = http.post(f"{API}/call/segment", content=body, headers=head)
        assert (answer.status_code, answer.json()["detail"]) == (413, doors.TOO_MANY)
        assert time.monotonic() - since < 5


def test_a_picture_within_json_is_one_part(http):
    """However large it is."""
    picture = f"data:image/jpeg;base64,{base64.b64encode(LION.read_bytes() + bytes(10**6)).decode()}"
    assert ask(http, query={"url": picture, "path": picture, "meta": META}, steps=0)[0] in ("complete", "error")


def test_a_file_that_is_too_large_is_refused_and_leaves_nothing(http, lion):
    folder = Path(lion["path"]).parents[1]
    before = {path for path in folder.rglob("*") if path.is_file()}
    answer = upload(http, ("large.jpg", b"x" * (doors.MAX_FILE + 1)))
    assert answer.status_code == 413
    many = upload(http, *[(f"{i}.jpg", b"x") for i in range(1001)])
    assert many.status_code == 400
    assert "Too many files" in many.text
    assert {path for path in folder.rglob("*") if path.is_file()} == before


def test_uploads_are_counted_and_leave_some_disk(tmp_path, monkeypatch):
    page = SimpleNamespace(app=SimpleNamespace(uploaded_file_dir=str(tmp_path)), upload_file_set=set("ab"))
    assert doors.full(page) is None
    monkeypatch.setattr(doors, "MAX_UPLOADS", 2)
    assert doors.full(page) == (429, "The server keeps 2 uploaded files already. Please try again later.")
    monkeypatch.setattr(doors.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    assert doors.full(page) == (507, "The server's disk is full. Please try again later.")


# ---- users


def test_users_come_from_a_file_or_the_environment(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("IMRSEG_AUTH", raising=False)
    assert users_of(None) == []
    monkeypatch.setenv("IMRSEG_AUTH", "ann:one:two")
    assert users_of(None) == [("ann", "one:two")]
    file = tmp_path / "users"
    file.write_text("ann:secret\n\n bob:word \n")
    file.chmod(0o600)
    assert users_of(file) == [("ann", "secret"), ("bob", "word")]
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())  # as Windows' editor saves it
    assert users_of(file) == [("ann", "secret"), ("bob", "word")]
    assert not caplog.text
    file.chmod(0o644)
    users_of(file)
    assert "chmod 600" in caplog.text


@pytest.mark.parametrize("text", ["", "ann", "ann:", ":secret", "ann:secret\nbob"])
def test_a_file_that_names_nobody_is_refused(tmp_path, text):
    (tmp_path / "users").write_text(text)
    with pytest.raises(InputError, match="user:password"):
        users_of(tmp_path / "users")


def test_a_password_in_the_wrong_place_is_not_repeated():
    with pytest.raises(InputError, match="Give a text file") as error:
        users_of(Path("ann:secret"))
    assert "secret" not in str(error.value)


def test_basic_authorization():
    def given(words):
        return Headers({"authorization": f"Basic {base64.b64encode(words.encode()).decode()}"})

    users = {"ann": "sec:ret"}
    assert knows_password(given("ann:sec:ret"), users)
    for wrong in ("ann:secret", "bob:sec:ret", "ann", ""):
        assert not knows_password(given(wrong), users)
    for broken in ("Basic ???", "Basic", "Bearer abc", ""):
        assert not knows_password(Headers({"authorization": broken}), users)


@pytest.mark.slow
def test_without_the_password_nothing_is_answered():
    with pages.serving("demo.py", "--mcp", IMRSEG_AUTH="ann:secret") as address:
        client = httpx.Client(base_url=address, trust_env=False, timeout=60)
        with client as http:
            for path in ("/config", f"{API}/info", f"{API}/file=/etc/passwd", f"{API}/queue/data?session_hash=x"):
                assert http.get(path).status_code == 401
            for path in (f"{API}/upload", f"{API}/queue/join", f"{API}/call/segment"):
                assert http.post(path, json={"data": []}).status_code == 401
            assert "label" not in http.get("/").text.lower().partition("auth_required")[0][-2000:]
            call = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
            both = {"Accept": "application/json, text/event-stream"}
            assert http.post(f"{API}/mcp/", json=call, headers=both).status_code == 401
            assert http.post(f"{API}/mcp/", json=call, headers=both, auth=("ann", "wrong")).status_code == 401
            assert "segment" in http.post(f"{API}/mcp/", json=call, headers=both, auth=("ann", "secret")).text
            for wrong in (
                lambda: http.post("/login", data={"username": "ann", "password": "wrong"}).status_code == 400,
                lambda: http.get(f"{API}/mcp/schema", auth=("ann", "wrong")).status_code == 401,
            ):
                since = time.monotonic()
                assert wrong()
                assert time.monotonic() - since >= doors.WRONG_LOGIN
            assert http.post("/login", data={"username": "ann", "password": "secret"}).status_code == 200
            lion = {"path": upload(http, (LION.name, LION.read_bytes())).json()[0], "meta": META}
            assert ask(http, query=lion)[0] == "complete"


@pytest.mark.slow
def test_tools_run_for_who_has_the_password_and_behind_a_proxy_all_doors_stay(tmp_path):
    """Also at paths with the proxy's own part before them, which routes are found without."""
    pytest.importorskip("mcp")
    given = {"IMRSEG_AUTH": "ann:secret", "GRADIO_ROOT_PATH": "/seg", "GRADIO_TEMP_DIR": str(tmp_path / "made")}
    with pages.serving("demo.py", "--mcp", **given) as address:
        client = httpx.Client(base_url=address, trust_env=False, timeout=60)
        with client as http:
            for path in (f"{API}/mcp/schema", f"/seg{API}/mcp/schema"):
                assert http.get(path).status_code == 401
            for path in ("/openapi.json", "/seg/openapi.json", f"/seg{API}/dev/reload"):
                assert http.get(path).status_code == 404
            picture = f"data:image/jpeg;base64,{base64.b64encode(LION.read_bytes()).decode()}"
            arguments = {"query": picture, "label": "lion", "steps": 0}
            call = {
                "jsonrpc": "2.0",
                "id": 1,
                "method": "tools/call",
                "params": {"name": "segment", "arguments": arguments},
            }
            both = {"Accept": "application/json, text/event-stream"}
            answer = http.post(f"{API}/mcp/", json=call, headers=both, auth=("ann", "secret")).text
            assert "covered" in answer
            assert '"isError":false' in answer
        (own,) = (tmp_path / "made").iterdir()  # what was sent lies in the page's own folder alone
        assert own.name.startswith("imrseg-")
    assert not list((tmp_path / "made").iterdir())


def test_paths_are_those_that_routes_are_found_by():
    assert doors.path_of({"path": "/a/b"}) == "/a/b"
    for root in ("/seg", "/seg/"):
        assert doors.path_of({"path": "/seg/a", "root_path": root}) == "/a"
        assert doors.path_of({"path": "/seg", "root_path": root}) == ""
        assert doors.path_of({"path": "/segment", "root_path": root}) == "/segment"


# ---- the end


def test_it_listens_on_loopback_unless_told_otherwise():
    from imrseg import cli

    words = [sys.executable, "-c", "from imrseg import cli; print(cli.parser().parse_args(['demo']).host)"]
    environment = {k: v for k, v in __import__("os").environ.items() if k != "GRADIO_SERVER_NAME"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "127.0.0.1"
    assert cli.parser().parse_args(["demo", "--host", "0.0.0.0"]).host == "0.0.0.0"


@pytest.mark.slow
def test_sigterm_answers_everybody_and_leaves_nothing(tmp_path):
    with pages.started("-c", pages.SLOW, "demo", GRADIO_TEMP_DIR=str(tmp_path)) as (address, process):
        with httpx.Client(base_url=address, trust_env=False, timeout=60) as http:
            lion = {"path": upload(http, (LION.name, LION.read_bytes())).json()[0], "meta": META}
        answers = {}

        def call(number):
            with httpx.Client(base_url=address, trust_env=False, timeout=60) as http:
                answers[number] = ask(http, query=lion)

        threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
            time.sleep(0.3)
        assert any(tmp_path.rglob("lion.jpg"))
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        late = httpx.post(f"{address}{API}/call/segment", json={"data": []}, trust_env=False)
        assert (late.status_code, late.json()["detail"]) == (503, doors.STOPPING)
        for thread in threads:
            thread.join(30)
        assert process.wait(30) == 0
        assert answers[0][0] == "complete"  # it was being served
        assert [answers[n][1]["error"] for n in (1, 2, 3)] == [doors.STOPPING] * 3
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]
        assert "Traceback" not in pages.said(process)


EARLY = """
import os, signal, sys
from imrseg import cli
from imrseg.app.handlers import Handlers
Handlers.prepare_examples = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
sys.exit(cli.main(sys.argv[1:]))
"""


def test_sigterm_ends_a_server_that_prepares_its_first_example():
    command = [sys.executable, "-c", EARLY, "demo", "--device", "cpu", "--port", "0"]
    done = subprocess.run(command, cwd=pages.ROOT, capture_output=True, text=True, timeout=pages.PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")


def test_sigterm_ends_a_server_that_builds_its_page():
    early = EARLY.replace("Handlers.prepare_examples", "Handlers.__init__")
    command = [sys.executable, "-c", early, "demo", "--device", "cpu", "--port", "0"]
    done = subprocess.run(command, cwd=pages.ROOT, capture_output=True, text=True, timeout=pages.PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
