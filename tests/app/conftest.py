"""The page, served by a process of its own."""

import os

import pytest

from tests.app.pages import SLOW, serving

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"


@pytest.fixture(scope="session")
def server():
    """Address of a running demo.py."""
    with serving("demo.py") as address:
        yield address


@pytest.fixture(scope="module")
def mcp_server():
    """The same, which serves language models too."""
    with serving("demo.py", "--mcp") as address:
        yield address


@pytest.fixture(scope="module")
def slow_server():
    """The same, whose every step takes two seconds more, and which remembers no example."""
    with serving("-c", SLOW, "demo") as address:
        yield address
