import io
import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageSequence

from imrseg import figures
from imrseg.run import Step
from imrseg.visualize import overlay

ODD = r"a $x^2$ <b>big</b> & {\bf cat} é"


def steps(count: int, sizes: list[tuple[int, int]]) -> list[Step]:
    """Masks that grow from left to right, step by step."""
    masks = [np.tile((np.arange(20) < 4 + 3 * i).astype(np.float32), (20, 1)) for i in range(count)]
    return [
        Step(i, m[None], (m,) * (len(sizes) - 1), sizes[0], tuple(sizes[1:]), 0.5, "mean", 0.1)
        for i, m in enumerate(masks)
    ]


@pytest.fixture
def run(cat, cup):
    return [cat, cup], steps(3, [cat.shape[:2], cup.shape[:2]]), 0.5


@pytest.fixture
def short(cup):
    """No supports, two steps."""
    return [cup], steps(2, [cup.shape[:2]]), 0.5


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def texts(svg: bytes) -> list[str]:
    return [e.text for e in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def pdf_streams(pdf: bytes) -> bytes:
    out = b""
    for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL):
        try:
            out += zlib.decompress(stream)
        except zlib.error:
            out += stream
    return out


def test_a_label_is_text_and_nothing_else(run):
    files = figures.figure(*run, ODD)
    assert texts(files["svg"]) == [f"“{ODD}”", "Input", "Coarse", "Step 1", "Step 2", "Query", "Support"]
    assert b"$x^2$ &lt;b&gt;" in files["svg"]
    letters = b"".join(re.findall(rb"\((.*?)\)", pdf_streams(files["pdf"]))).replace(b"\0", b"")
    assert b"$x^2$ <b>big</b>" in letters
    assert b"Coarse" in letters
    assert b"/FontFile2" in files["pdf"]
    assert b"/Type3" not in files["pdf"]


def test_the_figures_pictures(run, cat):
    pictures, made, threshold = run
    image = np.asarray(opened(figures.figure(pictures, made, threshold, "cat", ["png"])["png"]).convert("RGB"))
    cell, gap, left = figures.CELL, figures.GAP, figures.LEFT
    high = round(cat.shape[0] * cell / cat.shape[1])
    top = figures.GAP + 2 * figures.LINE
    assert image.shape[1] == left + 4 * (cell + gap)
    query = np.asarray(Image.fromarray(cat).resize((cell, high), Image.Resampling.BOX))
    for column, step in enumerate([None, *made]):
        x = left + column * (cell + gap)
        seen = image[top : top + high, x : x + cell].astype(float)
        want = query if step is None else overlay(query, step.query_at((high, cell)) >= 0.5)
        assert np.abs(seen - want).mean() < 12, column
        assert column == 0 or np.abs(seen - query).mean() > 20
        assert (image[top : top + high, x + cell + 2 : x + cell + gap - 2] == 255).all()


def test_the_same_run_gives_the_same_bytes(short):
    run, kinds = short, ["png", "svg", "pdf"]
    once = figures.figure(*run, "cat")
    with ThreadPoolExecutor(len(kinds)) as pool:
        files = pool.map(lambda kind: figures.figure(*run, "cat", [kind])[kind], kinds)
        assert all(file == once[kind] for kind, file in zip(kinds, files, strict=True))
    assert figures.animation(*run, "cat") == figures.animation(*run, "cat")
    mine = {"font.size": 20, "svg.fonttype": "path", "pdf.fonttype": 3, "savefig.bbox": "tight", "axes.grid": True}
    with matplotlib.rc_context(mine):
        assert figures.figure(*run, "cat", ["svg"])["svg"] == once["svg"]
        assert {name: matplotlib.rcParams[name] for name in mine} == mine


def test_odd_labels_are_drawn(short):
    for label, shown in {"猫 😀": "猫 😀", "x\0y\x08\n<": "x y <", "a\udcff": "a"}.items():
        assert texts(figures.figure(*short, label, ["svg"])["svg"])[0] == f"“{shown}”"
        assert opened(figures.animation(*short, label, ["gif"])["gif"]).n_frames == 2
    figures.figure(*short, "猫 😀", ["png", "pdf"])
    assert figures.plain(" a\n b\0c ") == "a b c"


def test_a_long_label_takes_more_lines(run):
    one = figures.figure(*run, "cat", ["svg"])["svg"]
    for label in ("word " * 39, "w" * 200):
        svg = figures.figure(*run, label, ["svg"])["svg"]
        lines = texts(svg)[: -len(["Input", "Coarse", "Step 1", "Step 2", "Query", "Support"])]
        assert len(lines) == 3
        assert "".join(lines).replace(" ", "") == f"“{label.replace(' ', '')}”"
        heights = [float(ElementTree.fromstring(s).get("height").removesuffix("pt")) for s in (svg, one)]
        assert heights[0] - heights[1] == pytest.approx(2 * figures.LINE * 72 / figures.DPI, abs=0.01)


@pytest.mark.parametrize("kind", ["gif", "webp"])
@pytest.mark.parametrize("pictures", [1, 2, 3, 11])
def test_animation(kind, pictures, cat, cup):
    shown = [cat, *[cup, cat[:, 100:200]] * 5][:pictures]
    content = figures.animation(shown, steps(3, [p.shape[:2] for p in shown]), 0.5, "cat", [kind])[kind]
    image = opened(content)
    assert (image.format, image.n_frames, image.info["loop"]) == (kind.upper(), 3, 0)
    assert image.width <= figures.WIDTH
    frames, pauses = [], []
    for frame in ImageSequence.Iterator(image):
        frames.append(np.asarray(frame.convert("RGB")).astype(float))
        pauses.append(image.info["duration"])
    assert pauses == [figures.PAUSE, figures.PAUSE, figures.REST]
    assert all(np.abs(a - b).mean() > 0.5 for a, b in pairwise(frames))


def test_the_animations_masks(cat):
    """The first frame shows the coarse mask: bright on its left, dimmed on its right."""
    made = steps(3, [cat.shape[:2]])
    content = figures.animation([cat], made, 0.5, "cat")["webp"]
    width = figures.WIDEST
    high = round(cat.shape[0] * width / cat.shape[1])
    query = np.asarray(Image.fromarray(cat).resize((width, high), Image.Resampling.BOX))
    for frame, step in zip(ImageSequence.Iterator(opened(content)), made, strict=True):
        seen = np.asarray(frame.convert("RGB"))[38 : 38 + high, 12 : 12 + width]
        assert np.abs(seen - overlay(query, step.query_at((high, width)) >= 0.5).astype(float)).mean() < 12


@pytest.mark.parametrize("shape", [(1, 1, 3), (300, 2, 3), (2, 300, 3)])
def test_one_step_of_a_narrow_picture(shape):
    picture = np.full(shape, 90, np.uint8)
    made = steps(1, [shape[:2]])
    for kind, content in figures.animation([picture], made, 0.5, "cat " * 30).items():
        assert (opened(content).format, opened(content).n_frames) == (kind.upper(), 1)
    assert opened(figures.figure([picture], made, 0.5, "cat", ["png"])["png"]).format == "PNG"
    assert figures.labelled(picture, np.ones(shape[:2], np.uint8), ["cat"]).shape[1] == shape[1]


def test_labelled(cat):
    index = np.zeros(cat.shape[:2], np.uint8)
    index[50:150, 50:200], index[100:250, 180:400] = 1, 2
    picture = figures.labelled(cat, index, ["cat", ODD])
    h, w = cat.shape[:2]
    assert picture.shape[1] == w
    assert h < picture.shape[0] < h + 60
    colours = figures.palette(2)
    for k, (y, x) in {1: (75, 75), 2: (200, 300)}.items():
        assert picture[y, x] == pytest.approx((cat[y, x].astype(int) + colours[k]) / 2, abs=1)
    assert picture[280, 20] == pytest.approx(cat[280, 20] * 0.5, abs=1)
    legend = picture[h:].reshape(-1, 3)
    for k in (1, 2):
        assert (legend == colours[k]).all(1).sum() > 100
    assert (legend == 255).all(1).mean() > 0.5


def test_a_legend_of_many_labels_stays_in_the_picture(cat):
    index = np.zeros(cat.shape[:2], np.uint8)
    picture = figures.labelled(cat, index, [f"label number {k}" for k in range(30)] + ["w" * 200])
    assert picture.shape[1] == cat.shape[1]
    assert (picture[cat.shape[0] :, -2:] == 255).all()


def test_colours_of_labels_differ():
    colours = figures.palette(12).astype(int)
    assert (colours[0] == 0).all()
    apart = np.abs(colours[:, None] - colours[None]).sum(-1)
    assert apart[~np.eye(13, dtype=bool)].min() > 40
    assert len(np.unique(figures.palette(255), axis=0)) > 200
    assert np.array_equal(figures.palette(40)[:13], colours)
