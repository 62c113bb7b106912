"""The same inputs give the same files: in every process, and all but the same with another number of threads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "assets" / "examples"
pytestmark = pytest.mark.slow
RUNS = {"one": 1, "again": 1, "two": 2}  # threads


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """Results of three processes that start with nothing known, by name."""
    folders = {}
    for name, threads in RUNS.items():
        folders[name] = tmp_path_factory.mktemp(name) / "out"
        words = [sys.executable, "-m", "imrseg", "segment", "--label", "cheetah", "--device", "cpu"]
        words += ["--query", EXAMPLES / "cheetah-running.jpg", "--support", EXAMPLES / "cheetah-portrait.jpg"]
        words += ["--out", folders[name]]
        env = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONHASHSEED": str(len(folders))}
        subprocess.run(words, check=True, cwd=ROOT, env=env, capture_output=True)
    return folders


def test_another_process_writes_the_same_bytes(made):
    names = sorted(p.relative_to(made["one"]) for p in made["one"].rglob("*") if p.is_file())
    assert len([n for n in names if n.suffix == ".png"]) == 2 * 4 + 1
    for name in names:
        if name.name != "result.json":
            assert (made["one"] / name).read_bytes() == (made["again"] / name).read_bytes(), name


def test_times_stand_apart(made):
    for path in made["one"].rglob("result.json"):
        one, again = (
            json.loads((made[n] / path.relative_to(made["one"])).read_text("utf-8")) for n in ("one", "again")
        )
        assert one.pop("seconds").keys() == again.pop("seconds").keys()
        assert all(step.pop("seconds") >= 0 for record in (one, again) for step in record["steps"])
        assert one == again


def test_another_number_of_threads_changes_one_pixel_in_10000_at_most(made):
    masks = [p.relative_to(made["one"]) for p in made["one"].rglob("*_step?.png")]
    assert masks
    for name in masks:
        one, two = (np.asarray(Image.open(made[n] / name)) for n in ("one", "two"))
        assert one.shape == two.shape
        assert (one != two).mean() <= 1e-4, name
