"""The snippets of docs/scripting.md do what they say."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gradio")

ROOT = Path(__file__).resolve().parents[2]
SNIPPETS = re.findall(r"```(python|bash)\n(.*?)```", (ROOT / "docs" / "scripting.md").read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize(("kind", "snippet"), SNIPPETS, ids=range(len(SNIPPETS)))
def test_a_snippet_runs(server, kind, snippet, tmp_path):
    shutil.copytree(ROOT / "assets" / "examples", tmp_path / "assets" / "examples")
    snippet = snippet.replace("http://127.0.0.1:7860", server)
    words = shlex.split(snippet)[1:] if kind == "bash" else ["-c", snippet]
    env = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout or (tmp_path / "cat.zip").is_file()


def test_there_are_snippets_of_every_kind():
    text = "".join(snippet for _, snippet in SNIPPETS)
    assert all(word in text for word in ("iterate", "correct", "write_zip", "/segment", "/segment_steps", "--query"))
