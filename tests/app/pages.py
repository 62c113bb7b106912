"""Pages that are served by a process of their own."""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300  # seconds until the page must answer, on a machine that is busy with other things

SLOW = """
import sys, time
from imrseg import cli
from imrseg.app.handlers import Handlers
from imrseg.run import Run
advance_by = Run.advance_by
Run.advance_by = lambda run, count: time.sleep(2 * count) or advance_by(run, count)
Handlers.prepare_examples = lambda *_: None
sys.exit(cli.main(sys.argv[1:]))
"""


@contextmanager
def serving(*program, **environment):
    """Address of a program that serves the page."""
    with started(*program, **environment) as (address, _):
        yield address


@contextmanager
def started(*program, **environment):
    """(address, process) of a program; ``process.output`` is a file of what it says."""
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile("w+") as output:  # a pipe that nobody reads would fill up and stop the server
        process = subprocess.Popen(
            [sys.executable, *program, "--device", "cpu", "--port", str(port)],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
        process.output = output
        address = f"http://127.0.0.1:{port}"
        try:
            wait_for(address, process)
            yield address, process
        finally:
            process.terminate()
            process.wait(30)


def said(process):
    """What it has said so far."""
    process.output.seek(0)
    return process.output.read()


def wait_for(address, process):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if process.poll() is not None:
            pytest.fail(f"demo.py ended with {process.returncode}:\n{said(process)}")
        try:
            with opener.open(address, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"demo.py did not answer within {PATIENCE} s")
