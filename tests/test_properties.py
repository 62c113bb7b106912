"""What holds for any input: geometry, encoders, names and the command line, on examples that Hypothesis draws.

The same examples come each time; with HYPOTHESIS_PROFILE=search in the environment, thousands of new ones.
"""

import contextlib
import io
import os

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, scalar_dtypes
from PIL import Image
from pycocotools import mask as coco_mask

from imrseg import InputError, bundle, cli, coco, figures, visualize
from imrseg.export import encode_mask, encode_picture
from imrseg.images import UPRIGHT, open_picture, to_centre, to_size, to_square
from imrseg.run import MAX_LABEL, Step, check_label

settings.register_profile("tests", deadline=None, derandomize=True, database=None, max_examples=60)
settings.register_profile(
    "search", deadline=None, database=None, max_examples=3000, suppress_health_check=list(HealthCheck)
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "tests"))

SIDES = st.integers(1, 400)
MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=40))
SOFT = arrays(np.float32, st.tuples(st.integers(1, 30), st.integers(1, 30)), elements=st.floats(0, 1, width=32))
PICTURES = arrays(np.uint8, st.tuples(st.integers(1, 30), st.integers(1, 30), st.just(3)))
TEXT = st.text(max_size=300)


# Pictures


@given(height=SIDES, width=SIDES, orientation=st.integers(0, 9), side=st.none() | st.integers(1, 300))
def test_a_picture_keeps_its_true_size(height, width, orientation, side):
    """EXIF 5 to 8 swap the sides; the longer one is reduced to what was asked, and no side vanishes."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.new("L", (width, height)).save(file, "png", exif=exif)
    picture = open_picture(Image.open(file), side)
    upright = (width, height) if orientation in (5, 6, 7, 8) else (height, width)
    assert picture.size == upright
    scale = min(1, (side or 400) / max(upright))
    assert picture.pixels.shape == (*(max(1, round(n * scale)) for n in upright), 3)


@given(pixels=PICTURES, orientation=st.sampled_from([1, *UPRIGHT]))
def test_turning_a_picture_loses_nothing(pixels, orientation):
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(file, "png", exif=exif)
    turned = open_picture(Image.open(file)).pixels
    back = {6: UPRIGHT[8], 8: UPRIGHT[6]}.get(orientation, UPRIGHT.get(orientation))
    assert np.array_equal(turned if back is None else Image.fromarray(turned).transpose(back), pixels)


@given(array=arrays(scalar_dtypes(), array_shapes(min_dims=0, max_dims=4, max_side=5)))
def test_any_array_is_a_picture_or_refused(array):
    before = array.copy()
    try:
        picture = open_picture(array)
    except InputError:
        assert (
            array.dtype.kind not in "biu" or array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,), (4,))
        )
    else:
        assert picture.pixels.shape == (*array.shape[:2], 3)
        assert picture.size == array.shape[:2]
    assert array.tobytes() == before.tobytes()


@given(
    content=st.binary(max_size=200), start=st.sampled_from([b"", b"\xff\xd8\xff\xe1", b"II*\0\x08\0\0\0", b"GIF89a"])
)
def test_any_bytes_are_refused_in_a_sentence(tmp_path_factory, content, start):
    path = tmp_path_factory.getbasetemp() / "any.jpg"
    path.write_bytes(start + content)
    with contextlib.suppress(InputError):
        open_picture(path)


@given(pixels=PICTURES, side=st.integers(1, 64))
def test_squares_hold_the_pictures_values_and_no_others(pixels, side):
    picture = open_picture(pixels)
    for square in (to_square(picture, side), to_centre(picture, side)):
        assert square.shape == (3, side, side)
        for channel in range(3):
            assert pixels[..., channel].min() <= square[channel].min()
            assert square[channel].max() <= pixels[..., channel].max()


@given(mask=SOFT, height=SIDES, width=SIDES)
def test_masks_go_to_any_size_and_stay_masks(mask, height, width):
    out = to_size(mask, (height, width))
    assert out.dtype == np.float32
    assert out.shape == (height, width)
    assert mask.min() - 1e-6 <= out.min() <= out.max() <= mask.max() + 1e-6


# Files


@given(mask=MASKS)
def test_a_mask_comes_back_from_png_and_run_lengths(mask):
    decoded = cv2.imdecode(np.frombuffer(encode_mask(mask), np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(decoded, mask * np.uint8(255))
    shape = coco.shape(mask, "x")
    assert np.array_equal(coco_mask.decode(shape.rle).astype(bool), mask)
    assert shape.area == np.count_nonzero(mask)


@given(mask=MASKS)
def test_polygons_lie_on_the_grid_and_cover_the_mask(mask):
    """Drawn again, they leave out no pixel but at the edge, and go a pixel beyond it at most, but for holes and
    rings with gaps of a pixel, which they fill."""
    polygons = coco.outlines(mask)
    assert bool(polygons) == mask.any()
    h, w = mask.shape
    drawn = np.zeros((h * 4 + 1, w * 4 + 1), np.uint8)
    for polygon in polygons:
        assert len(polygon) >= 6
        assert min(polygon) >= 0
        assert max(polygon[::2]) <= w
        assert max(polygon[1::2]) <= h
        cv2.fillPoly(drawn, [(np.reshape(polygon, (-1, 2)) * 4).astype(np.int32)], 1)
    centres = drawn[2::4, 2::4][:h, :w] > 0
    square = np.ones((3, 3), np.uint8)
    assert centres[cv2.erode(mask.astype(np.uint8), square) > 0].all()
    filled = np.zeros((h + 2, w + 2), np.uint8)
    filled[1:-1, 1:-1] = cv2.dilate(mask.astype(np.uint8), square)
    cv2.floodFill(filled, None, (0, 0), 2)
    assert (filled[1:-1, 1:-1][centres] != 2).all()


@given(pixels=PICTURES)
def test_a_picture_comes_back_from_png(pixels):
    assert np.array_equal(Image.open(io.BytesIO(encode_picture(pixels))), pixels)


@given(pixels=PICTURES, data=st.data())
def test_a_cutout_hides_nothing_and_shows_the_object(pixels, data):
    mask = data.draw(arrays(bool, pixels.shape[:2]))
    out = bundle.cutout(pixels, mask)
    assert (out[out[..., 3] == 0] == 0).all()
    assert (out[mask][:, 3] >= 128).all()
    assert (out[~mask][:, 3] < 128).all()
    assert np.array_equal(out[mask][:, :3], pixels[mask])


# Words


@given(label=TEXT)
@example("$\\frac{1}{0}$ \\n %s {0} {label}")
@example("<img src=x onerror=alert(1)>&amp;")
@example("\u202eطق\u0000\ud800")
def test_a_label_is_one_printable_line_or_refused(label):
    plain = said = ""
    try:
        plain = check_label(label)
    except InputError as error:
        said = str(error)
    assert bool(plain) != bool(said)
    assert len(said) < 200
    assert said.isprintable()
    if plain:
        assert 0 < len(plain) <= MAX_LABEL
        assert plain == check_label(plain) == plain.strip()
        assert not set(plain) & set("\0\n\r\t\x1b\x7f\u202e\u2067")
        plain.encode()


STEP = Step(0, np.zeros((1, 4, 4), np.float32), (), (9, 9), (), 0.5, "mean", 0.0)
BLANK = np.zeros((9, 9, 3), np.uint8)


@settings(max_examples=15)
@given(label=TEXT)
@example("$\\frac{1}{0}$")
@example("$x^2$ \\textbf{a} %s {0}")
@example("<script>alert(1)</script>")
@example("\ud800\0\n\x1b[31m")
def test_any_text_is_drawn_as_it_is(label):
    assert figures.figure([BLANK], [STEP], 0.5, label, ["svg"])["svg"].count(b"<script") == 0
    figures.labelled(BLANK, np.ones((9, 9), np.uint8), [label])
    figures.animation([BLANK], [STEP], 0.5, label, ["gif"])
    with contextlib.suppress(InputError):
        visualize.panel(BLANK, [], [STEP], 0.5, check_label(label))


@given(
    wishes=st.lists(
        TEXT | st.sampled_from(["..", "CON", "a/../b", "NUL.txt", ".", "~", "C:\\x", "É", "e\u0301"]), max_size=8
    )
)
def test_names_of_files_are_safe_on_every_system(wishes):
    taken: list[str] = []
    for wish in wishes:
        taken.append(bundle.safe_name(wish, taken))
    assert len({name.casefold() for name in taken}) == len(wishes)
    for name in taken:
        assert 0 < len(name.encode()) <= 255
        assert not set(name) & set('/\\:*?"<>|\0\n')
        assert name.strip(". ") == name
        assert not bundle.RESERVED.fullmatch(name)


# The command line


WORDS = st.lists(
    st.sampled_from(
        ["segment", "evaluate", "train", "bench", "weights", "demo", "list", "fetch", "check", "convert", "--query", "--label",
         "--out", "--steps", "--threshold", "--seed", "--shots", "--episodes", "--port", "--set", "--help", "-1", "1e9", "nan"]
    )
    | TEXT,
    max_size=7,
)  # fmt: skip


@given(words=WORDS)
def test_any_words_are_parsed_or_refused_with_status_2_in_one_line(words):
    err, status = io.StringIO(), 0
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            cli.parser().parse_args(words)
        except SystemExit as stop:
            status = stop.code
    assert (status, err.getvalue().count("\n")) in ((0, 0), (2, 1))
    assert err.getvalue().rstrip("\n").isprintable()


@given(number=st.text("0123456789+-. eEnaif", max_size=30) | st.integers().map(str) | TEXT)
@pytest.mark.parametrize(
    ("option", "least", "most"), [("--seed", 0, 2**64 - 1), ("--shots", 1, 10), ("--episodes", 1, 10**9)]
)
def test_numbers_outside_the_accepted_range_are_refused(option, least, most, number):
    words = ["evaluate", "--benchmark", "folder", "--data", "x", "--json", "y", f"{option}={number}"]
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        try:
            value = getattr(cli.parser().parse_args(words), option[2:])
        except SystemExit:
            assert f"must be a whole number from {least} to {most}" in err.getvalue()
        else:
            assert value == int(number)
            assert least <= value <= most


@given(words=TEXT)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_what_is_said_never_steers_a_terminal(words, encoding):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding)
    cli.say(f"“{words}”", file)
    file.flush()
    said = raw.getvalue().decode(encoding)
    assert all(c.isprintable() or c in "\n\u200c\u200d" for c in said)
