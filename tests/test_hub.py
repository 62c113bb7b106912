"""Downloads against a stub of a hub, on this machine, that can misbehave."""

import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from imrseg import WeightsError, hub, weights
from imrseg.hub import KNOWN, Known

CONTENT = bytes(range(256)) * 1000
HALF = len(CONTENT) // 2
ROW = Known(
    name="tiny.pt", what="a test", origin="nowhere", licence="none", size=len(CONTENT),
    sha256=sha256(CONTENT).hexdigest(), url="to be set",
)  # fmt: skip


class Hub(ThreadingHTTPServer):
    """Serves ``content``; the other attributes say how badly."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.ranges = True
        self.status = 200
        self.length: int | None = None  # what it claims
        self.stop_after: int | None = None  # bytes of a body
        self.then = "close"  # or "reset", "stall"
        self.chunked = False
        self.delay = 0.0
        self.asked: list[str | None] = []  # the Range of every request
        self.over = threading.Event()

    def row(self, **changes) -> Known:
        return replace(ROW, url=f"http://127.0.0.1:{self.server_port}/tiny.pt", **changes)


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        hub_, wanted = self.server, self.headers.get("Range")
        hub_.asked.append(wanted)
        hub_.over.wait(hub_.delay)
        start = int(wanted[len("bytes=") : -1]) if wanted and hub_.ranges else 0
        body = hub_.content[start:]
        if start and not body:
            return self.send_error(416)
        if hub_.status != 200:
            return self.send_error(hub_.status)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(hub_.content) - 1}/{len(hub_.content)}")
        if hub_.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:999], body[999:])) + b"0\r\n\r\n"
        else:
            self.send_header("Content-Length", str(len(body) if hub_.length is None else hub_.length))
        self.end_headers()
        self.wfile.write(body[: hub_.stop_after])
        if hub_.stop_after is not None:
            self.wfile.flush()
            if hub_.then == "stall":
                hub_.over.wait(10)
            elif hub_.then == "reset":
                time.sleep(0.1)  # until what was sent has been read
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
        return None


@pytest.fixture
def stub(monkeypatch) -> Iterator[Hub]:
    monkeypatch.setenv("no_proxy", "*")
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


def leftovers(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


# The table


def test_every_row_says_where_it_comes_from():
    for name, row in KNOWN.items():
        assert row.name == name
        assert row.what
        assert row.origin
        assert row.licence
        assert row.sha256 is None or re.fullmatch("[0-9a-f]{64}", row.sha256)
        if row.url is not None:
            assert row.url.startswith("https://")
            assert row.url.endswith(f"/{name}")
            assert row.sha256 is not None
    assert sum(name.startswith("imr-hsnet-") for name in KNOWN) == 16


def test_hashes_agree_with_what_the_names_and_addresses_hold():
    assert KNOWN["RN50.pt"].sha256 in KNOWN["RN50.pt"].url
    for name in ("resnet50-0676ba61.pth", "resnet101-63fe2227.pth", "vgg16-397923af.pth"):
        assert KNOWN[name].sha256.startswith(re.search("-(.{8})[.]pth", name)[1])


@pytest.mark.parametrize("name", ["lite.safetensors", "lite-text.safetensors"])
def test_what_is_embedded_is_what_the_table_says(name):
    path = weights.find(name)
    assert (path.stat().st_size, hub.sha256(path)) == (KNOWN[name].size, KNOWN[name].sha256)


def test_presets_name_rows_of_the_table():
    from imrseg.presets import PRESETS

    assert {preset.checkpoint for preset in PRESETS.values()} <= KNOWN.keys()


def test_what_to_do_where_something_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = re.escape(str(tmp_path / "imrseg"))
    name = "imr-hsnet-vgg16-coco-2.safetensors"
    assert re.search(rf"vgg16, coco, fold 2 .*drive\.google.*convert best_model.pt {folder}/{name}", hub.missing(name))
    assert re.search(rf"weights fetch RN50.pt.*https://.*/RN50.pt .*{folder}", hub.missing("RN50.pt"))
    assert re.search(
        f"Nobody has published .*IMR-PFENet.* into {folder}", hub.missing("imr-pfenet-resnet50.safetensors")
    )
    assert "install imrseg again" in hub.missing("lite.safetensors")
    assert re.search(folder, hub.missing("mine.safetensors"))


# A hub that behaves


def test_a_download_is_whole_and_made_once(stub, tmp_path):
    path = hub.download(stub.row(), tmp_path / "new" / "folder")
    assert path.read_bytes() == CONTENT
    assert leftovers(path.parent) == {"tiny.pt"}
    assert hub.download(stub.row(), path.parent) == path
    assert stub.asked == [None]


def test_a_broken_file_is_replaced_and_a_link_not_written_through(stub, tmp_path):
    (tmp_path / "other").write_bytes(b"precious")
    (tmp_path / "tiny.pt").symlink_to(tmp_path / "other")
    assert hub.download(stub.row(), tmp_path).read_bytes() == CONTENT
    assert (tmp_path / "other").read_bytes() == b"precious"
    assert not (tmp_path / "tiny.pt").is_symlink()


@pytest.mark.parametrize("there", [True, False])
def test_a_part_that_is_a_link_is_not_written_through(stub, tmp_path, there):
    other = tmp_path / "other"
    if there:
        other.write_bytes(CONTENT[:HALF])
    (tmp_path / "tiny.pt.part").symlink_to(other)
    assert hub.download(stub.row(), tmp_path).read_bytes() == CONTENT
    assert not (tmp_path / "tiny.pt").is_symlink()
    assert (other.read_bytes() == CONTENT[:HALF]) if there else not other.exists()
    assert stub.asked == [None]


def test_a_part_is_taken_up(stub, tmp_path):
    (tmp_path / "tiny.pt.part").write_bytes(CONTENT[:HALF])
    assert hub.download(stub.row(), tmp_path).read_bytes() == CONTENT
    assert stub.asked == [f"bytes={HALF}-"]


def test_a_hub_without_ranges_sends_all_of_it_again(stub, tmp_path):
    stub.ranges = False
    (tmp_path / "tiny.pt.part").write_bytes(b"x" * HALF)
    assert hub.download(stub.row(), tmp_path).read_bytes() == CONTENT
    assert len(stub.asked) == 1


def test_halves_of_two_files_are_never_glued(stub, tmp_path):
    (tmp_path / "tiny.pt.part").write_bytes(b"x" * HALF)  # of a file that the hub has no more
    assert hub.download(stub.row(), tmp_path).read_bytes() == CONTENT
    assert stub.asked == [f"bytes={HALF}-", None]


def test_a_part_that_is_whole_needs_no_hub(stub, tmp_path):
    (tmp_path / "tiny.pt.part").write_bytes(CONTENT)
    assert hub.download(stub.row(), tmp_path).read_bytes() == CONTENT
    assert stub.asked == []


@pytest.mark.parametrize("size", [len(CONTENT), None])
@pytest.mark.parametrize("part", [CONTENT, CONTENT + b"more", b"x" * len(CONTENT)])
def test_a_part_as_long_as_the_file_or_longer(stub, tmp_path, part, size):
    (tmp_path / "tiny.pt.part").write_bytes(part)
    assert hub.download(stub.row(size=size), tmp_path).read_bytes() == CONTENT


def test_a_body_without_a_length(stub, tmp_path):
    stub.chunked = True
    assert hub.download(stub.row(), tmp_path).read_bytes() == CONTENT


def test_two_at_once_make_one_download(stub, tmp_path, caplog):
    stub.delay, found = 0.3, []
    both = [threading.Thread(target=lambda: found.append(hub.download(stub.row(), tmp_path))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert found == [tmp_path / "tiny.pt"] * 2
    assert found[0].read_bytes() == CONTENT
    assert len(stub.asked) == 1
    assert "waiting for it" in caplog.text


# A hub that does not


def test_another_file_than_was_published_is_removed(stub, tmp_path):
    stub.content = CONTENT[:-1] + b"x"
    with pytest.raises(WeightsError, match=rf"SHA-256 {sha256(stub.content).hexdigest()}, not {ROW.sha256}"):
        hub.download(stub.row(), tmp_path)
    assert leftovers(tmp_path) == set()


@pytest.mark.parametrize("length", [1000, 10**15])
def test_a_length_that_is_not_the_files_is_refused_at_once(stub, tmp_path, length):
    stub.length = length
    with pytest.raises(WeightsError, match=f"a file of {length} bytes, not of {len(CONTENT)}"):
        hub.download(stub.row(), tmp_path)
    assert leftovers(tmp_path) == set()


@pytest.mark.parametrize("length", [1000, len(CONTENT) + 1])
def test_a_length_that_is_a_lie_where_none_is_known(stub, tmp_path, length):
    stub.length = length
    with pytest.raises(WeightsError, match=r"SHA-256|ended after"):
        hub.download(stub.row(size=None), tmp_path)
    assert "tiny.pt" not in leftovers(tmp_path)
    stub.length = None
    assert hub.download(stub.row(size=None), tmp_path).read_bytes() == CONTENT


def test_more_than_was_published_is_not_taken(stub, tmp_path):
    stub.chunked, stub.content = True, CONTENT * 100
    with pytest.raises(WeightsError, match="SHA-256"):
        hub.download(stub.row(), tmp_path)
    assert leftovers(tmp_path) == set()


@pytest.mark.parametrize(
    ("then", "words"),
    [("close", "ended after"), ("reset", "the connection broke"), ("stall", "nothing came for 0.3 s")],
)
def test_a_broken_connection_keeps_what_came(stub, tmp_path, monkeypatch, then, words):
    monkeypatch.setattr(hub, "STALL", 0.3)
    stub.stop_after, stub.then = HALF, then
    began = time.monotonic()
    with pytest.raises(WeightsError, match=words):
        hub.download(stub.row(), tmp_path)
    assert time.monotonic() - began < 5
    assert leftovers(tmp_path) == {"tiny.pt.part"}
    kept = (tmp_path / "tiny.pt.part").stat().st_size
    assert 0 < kept <= HALF  # a reset may overtake what was sent before it
    stub.stop_after = None
    assert hub.download(stub.row(), tmp_path).read_bytes() == CONTENT
    assert stub.asked == [None, f"bytes={kept}-"]


@pytest.mark.parametrize("status", [404, 403, 500])
def test_a_refusal_is_told_with_what_to_do(stub, tmp_path, status, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    stub.status = status
    with pytest.raises(
        WeightsError, match=rf"answered {status}.*download http\S+/tiny.pt elsewhere and put it into {tmp_path}"
    ):
        hub.download(stub.row(), tmp_path)


def test_no_answer_in_time(stub, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "ANSWER", 0.2)
    stub.delay = 10
    began = time.monotonic()
    with pytest.raises(WeightsError, match=r"no answer within 0\.2 s"):
        hub.download(stub.row(), tmp_path)
    assert time.monotonic() - began < 2


def test_a_name_that_is_looked_up_for_ever(tmp_path, monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(hub, "ANSWER", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: over.wait(10) and [])
    monkeypatch.setenv("no_proxy", "*")
    began = time.monotonic()
    with pytest.raises(WeightsError, match=r"from hub\.invalid: there was no answer"):
        hub.download(replace(ROW, url="http://hub.invalid/tiny.pt"), tmp_path)
    assert time.monotonic() - began < 2
    over.set()


def test_offline_is_told_within_five_seconds(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    assert hub.ANSWER < 5
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(WeightsError, match="Temporary failure in name resolution"):
        hub.download(replace(ROW, url="http://hub.invalid/tiny.pt"), tmp_path)


def test_something_that_is_no_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def babble() -> None:
            connection, _ = server.accept()
            connection.recv(1000)
            connection.sendall(b"220 mail ready\r\n")
            connection.close()

        thread = threading.Thread(target=babble)
        thread.start()
        with pytest.raises(WeightsError, match="220 mail ready"):
            hub.download(replace(ROW, url=f"http://127.0.0.1:{port}/tiny.pt"), tmp_path)
        thread.join()
    with pytest.raises(WeightsError, match="refused"):
        hub.download(replace(ROW, url=f"http://127.0.0.1:{port}/tiny.pt"), tmp_path)


def test_what_has_no_address_is_not_downloaded(tmp_path):
    with pytest.raises(WeightsError, match=r"cannot be downloaded.*by hand"):
        hub.download(KNOWN["imr-hsnet-resnet50-coco-0.safetensors"], tmp_path)


# A disk that does not


def test_a_folder_that_cannot_be_written_is_named(stub, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WeightsError, match=rf"cannot be written to {tmp_path}/file/cache .*XDG_CACHE_HOME"):
        hub.download(stub.row(), tmp_path / "file" / "cache")
    assert stub.asked == []


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no full device")
def test_a_full_disk_is_told(stub, tmp_path, monkeypatch):
    opened = Path.open
    full = Path("/dev/full")
    monkeypatch.setattr(Path, "open", lambda path, mode="r": opened(full if path.suffix == ".part" else path, mode))
    with pytest.raises(WeightsError, match=rf"cannot be written to {tmp_path} \(No space left on device\)"):
        hub.download(stub.row(), tmp_path)
    assert not (tmp_path / "tiny.pt").exists()
