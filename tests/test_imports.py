"""The core stays light: what only the page or a panel needs is not imported with it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAVY = {"gradio", "open_clip", "matplotlib", "timm", "transformers", "skimage"}


def modules_after(code: str) -> set[str]:
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
    )


def test_import_is_light():
    loaded = modules_after("import imrseg; imrseg.Segmenter")
    assert "torch" in loaded
    assert not loaded & HEAVY


def test_the_page_is_there_before_a_figure_is_asked_for():
    assert not modules_after("import imrseg.app") & (HEAVY - {"gradio"})


def test_the_command_line_answers_before_torch_is_there():
    assert "torch" not in modules_after("import imrseg.cli; imrseg.list_presets()")


def test_gradio_makes_no_stubs_of_its_components():
    opened = "import sys; sys.addaudithook(lambda event, args: event == 'open' and print(*args[:1]));"
    code = f"{opened} import imrseg.app, gradio, inspect; print(inspect.getfile(gradio.Button))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.rstrip().endswith("button.py")
    assert not [path for path in out.split() if "components" in path and path.endswith(".pyi")]


def test_an_event_looks_for_no_window_to_draw_in():
    code = "import imrseg.app, matplotlib, sys; print(matplotlib.get_backend(), 'matplotlib.pyplot' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.split() == ["agg", "False"]
