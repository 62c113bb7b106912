"""What hosts go by: the README's front matter, the Dockerfile, and ZeroGPU."""

import inspect
import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import types
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from imrseg import InputError

ROOT = Path(__file__).parents[1]
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
# https://huggingface.co/docs/hub/spaces-config-reference, with the type of each; "license" is every repository's.
FIELDS = {
    "title": str, "emoji": str, "colorFrom": str, "colorTo": str, "sdk": str, "python_version": str, "sdk_version": str,
    "suggested_hardware": str, "app_file": str, "app_port": int, "base_path": str, "fullWidth": bool, "header": str,
    "short_description": str, "models": list, "datasets": list, "tags": list, "thumbnail": str, "pinned": bool,
    "hf_oauth": bool, "hf_oauth_scopes": list, "hf_oauth_expiration_minutes": int, "disable_embedding": bool,
    "startup_duration_timeout": str, "custom_headers": dict, "preload_from_hub": list, "license": str,
}  # fmt: skip
ZERO_GPU_PYTHONS = {"3.10", "3.12"}  # https://huggingface.co/docs/hub/spaces-zerogpu
HARDWARE = {"cpu-basic", "cpu-upgrade", "t4-small", "t4-medium", "l4x1", "a10g-small", "a10g-large", "a100-large"}


@pytest.fixture(scope="module")
def card():
    """The README's front matter."""
    yaml = pytest.importorskip("yaml")
    text = (ROOT / "README.md").read_text("utf-8")
    matter = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert matter, "README.md must begin with front matter between two lines of ---"
    return yaml.safe_load(matter[1])


def test_the_front_matter_has_documented_fields_alone(card):
    for field, value in card.items():
        assert field in FIELDS, field
        assert type(value) is FIELDS[field], field
    assert {"title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "app_file", "license"} <= set(card)


def test_the_front_matter_has_accepted_values(card):
    assert {card["colorFrom"], card["colorTo"]} <= COLOURS
    assert len(card["emoji"]) <= 2
    assert not card["emoji"].isascii()
    assert len(card["short_description"]) <= 60  # the hub refuses longer ones
    assert card["suggested_hardware"] in HARDWARE
    assert all(re.fullmatch(r"[a-z0-9-]+", tag) for tag in card["tags"])


def test_the_front_matter_agrees_with_the_project(card):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    specifiers = pytest.importorskip("packaging.specifiers")
    assert card["sdk"] == "gradio"
    asked = re.search(r"^gradio(?:\[\w+\])?(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[1]
    assert card["sdk_version"] in specifiers.SpecifierSet(asked)
    assert card["python_version"] in specifiers.SpecifierSet(project["requires-python"])
    assert card["python_version"] in ZERO_GPU_PYTHONS
    assert (ROOT / card["app_file"]).is_file()
    assert card["license"] == project["license"].lower()


# ---- Docker


def instructions():
    """(instruction, rest) of the Dockerfile, lines joined and comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word, rest.strip()


def given(word):
    return [rest for name, rest in instructions() if name == word]


def copied():
    """(sources, target) of every COPY."""
    for rest in given("COPY"):
        *sources, target = [part for part in shlex.split(rest) if not part.startswith("--")]
        yield sources, target


def test_the_container_runs_as_a_normal_user():
    words = [name for name, _ in instructions()]
    assert given("USER") == ["1000"]
    assert re.search(r"useradd\b.*--uid 1000\b", " ".join(given("RUN")))
    assert words.index("USER") < words.index("COPY")
    assert all(rest.startswith("--chown=user ") for rest in given("COPY"))


def test_the_container_listens_where_it_says():
    settings = dict(part.split("=", 1) for rest in given("ENV") for part in shlex.split(rest))
    assert settings["GRADIO_SERVER_NAME"] == "0.0.0.0"
    assert given("EXPOSE") == [settings["GRADIO_SERVER_PORT"]]
    assert [json.loads(rest) for rest in given("CMD")] == [["python", "demo.py"]]


def test_the_health_check_tells_a_page_that_answers_from_one_that_does_not():
    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    python, *rest = json.loads(given("HEALTHCHECK")[0].partition("CMD ")[2])
    assert python == "python"
    with HTTPServer(("127.0.0.1", 0), Page) as server:
        settings = os.environ | {"GRADIO_SERVER_PORT": str(server.server_port), "http_proxy": "http://127.0.0.1:9"}
        Thread(target=server.handle_request, daemon=True).start()
        assert subprocess.run([sys.executable, *rest], env=settings).returncode == 0
    assert subprocess.run([sys.executable, *rest], env=settings, stderr=subprocess.DEVNULL).returncode != 0


def test_what_changes_often_is_copied_after_the_installation():
    order = [(name, rest) for name, rest in instructions() if name in ("COPY", "RUN")]
    installed = max(i for i, (name, rest) in enumerate(order) if name == "RUN" and "pip install" in rest)
    before = [rest for name, rest in order[:installed] if name == "COPY"]
    assert [shlex.split(rest)[1:] for rest in before] == [["requirements.txt", "./"]]


def test_docker_is_sent_what_is_copied():
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore
    sent = {line[1:] for line in ignore if line.startswith("!")}
    for sources, _ in copied():
        for source in sources:
            assert (ROOT / source).exists(), source
            assert Path(source).parts[0] in sent


def test_what_is_copied_is_enough(tmp_path):
    """The files of the container alone hold models, examples and page."""
    pytest.importorskip("gradio")
    for sources, target in copied():
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                (tmp_path / target).mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, tmp_path / target)
    code = """
import imrseg, demo
from imrseg.app.examples import list_examples
from imrseg import Segmenter
example = list_examples()[0]
seg = Segmenter.from_preset("lite", device="cpu")
print(imrseg.__file__, seg.segment(example.query, example.supports, example.label, steps=1).mask.any())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == [str(tmp_path / "imrseg" / "__init__.py"), "True"], done.stderr


# ---- ZeroGPU


@pytest.fixture
def gpu():
    pytest.importorskip("gradio")
    from imrseg.app.gpu import gpu

    return gpu


@pytest.fixture
def zero_gpu(monkeypatch):
    """A stand-in for ``spaces`` that pickles what goes in and what comes out, as the real one does.

    Like the real one it turns every error into one that has the error's name alone. Gives the durations asked for.
    """
    asked = []

    def through(thing):
        return pickle.loads(pickle.dumps(thing))

    def decorator(duration):
        asked.append(duration)

        def decorate(task):
            def steps(*args, **settings):
                try:
                    for out in task(*through(args), **through(settings)):
                        yield through(out)
                except Exception as error:
                    raise RuntimeError(type(error).__name__) from None

            def once(*args, **settings):
                try:
                    return through(task(*through(args), **through(settings)))
                except Exception as error:
                    raise RuntimeError(type(error).__name__) from None

            return steps if inspect.isgeneratorfunction(task) else once

        return decorate

    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setitem(sys.modules, "spaces", types.SimpleNamespace(GPU=decorator))
    return asked


def double(numbers, times=2):
    """Twice."""
    numbers.append(0)
    return [times * n for n in numbers]


def count(seen, last):
    """Yields ``seen`` with 1, 2, ..., ``last``, one more each time."""
    if last < 1:
        raise InputError("The last must be 1 or more.")
    for n in range(1, last + 1):
        seen.append(n)
        yield seen


def test_elsewhere_a_function_stays_what_it_is(gpu, monkeypatch):
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    monkeypatch.setitem(sys.modules, "spaces", None)  # an import of it would fail
    assert gpu(5)(double) is double
    monkeypatch.setenv("SPACES_ZERO_GPU", "false")
    assert gpu(5)(count) is count


def test_on_zero_gpu_only_what_is_returned_comes_back(gpu, zero_gpu):
    there = gpu(duration=7)(double)
    numbers = [1, 2]
    assert there(numbers, times=3) == [3, 6, 0]
    assert numbers == [1, 2]
    assert zero_gpu == [7]
    assert (there.__name__, there.__doc__) == ("double", "Twice.")


def test_on_zero_gpu_a_generator_stays_one(gpu, zero_gpu):
    there = gpu(7)(count)
    assert inspect.isgeneratorfunction(there)  # what Gradio asks
    seen = []
    first, second = there(seen, last=2)
    assert (first, second, seen) == ([1], [1, 2], [])


def test_on_zero_gpu_bad_input_is_told_in_its_own_words(gpu, zero_gpu):
    with pytest.raises(InputError, match="1 or more"):
        next(gpu(7)(count)([], 0))
    with pytest.raises(RuntimeError, match="TypeError"):  # what is unexpected stays unexpected
        gpu(7)(double)([None])


def test_on_zero_gpu_a_visitor_who_leaves_ends_the_work(gpu, zero_gpu, monkeypatch):
    ended = []

    def work():
        try:
            yield 1
            yield 2
        finally:
            ended.append(True)

    steps = gpu(7)(work)()
    assert next(steps) == 1
    steps.close()
    assert ended == [True]


def test_a_bound_method_keeps_its_object_here(gpu, zero_gpu):
    class Keeper:
        def __reduce__(self):
            raise TypeError("not to be pickled")

        def answer(self, n):
            return n + 1

    assert gpu(7)(Keeper().answer)(1) == 2
