import warnings
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest
from PIL import Image

from imrseg import InputError, images
from imrseg.images import Remembered, open_picture, open_pictures, remembered, to_size, to_square

T = Image.Transpose
# What a camera held that way stores: the inverse of what a viewer does for that EXIF value.
STORED = {1: None, 2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_90,
          7: T.TRANSVERSE, 8: T.ROTATE_270}  # fmt: skip


def drawn(width: int, height: int) -> np.ndarray:
    """A red square on green, off the centre: its middle lies at (0.3, 0.2) of the width and height."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 1] = 160
    x, y, r = 0.3 * width, 0.2 * height, 0.1 * min(width, height)
    pixels[round(y - r) : round(y + r), round(x - r) : round(x + r)] = (220, 0, 0)
    return pixels


def centre(weight: np.ndarray) -> tuple[float, float]:
    """Centre of mass as shares of width and height."""
    h, w = weight.shape
    x, y = (np.arange(w) + 0.5) / w, (np.arange(h) + 0.5) / h
    return float((weight.sum(0) * x).sum() / weight.sum()), float((weight.sum(1) * y).sum() / weight.sum())


def redness(pixels: np.ndarray) -> np.ndarray:
    return (pixels[..., 0] > 128).astype(np.float32)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    image = Image.fromarray(drawn(300, 200))
    if STORED[orientation] is not None:
        image = image.transpose(STORED[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"p.{suffix}"
    image.save(path, exif=exif)
    picture = open_picture(path)
    assert picture.size == (200, 300)
    assert picture.pixels.shape == (200, 300, 3)
    assert centre(redness(picture.pixels)) == pytest.approx((0.3, 0.2), abs=0.01)


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_large_rotated_jpeg_keeps_its_true_size(tmp_path, orientation):
    image = Image.fromarray(drawn(4000, 1500))
    if STORED[orientation] is not None:
        image = image.transpose(STORED[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "p.jpg", exif=exif)
    picture = open_picture(tmp_path / "p.jpg")
    assert picture.size == (1500, 4000)
    assert picture.pixels.shape == (375, 1000, 3)  # decoded to a quarter
    assert centre(redness(picture.pixels)) == pytest.approx((0.3, 0.2), abs=0.01)


@pytest.mark.parametrize(
    ("width", "kept"), [(900, 900), (1280, 1280), (1919, 1280), (1920, 960), (2500, 1250), (2600, 1280), (3840, 960),
                        (4001, 1001), (7679, 1280), (7680, 960)],
)  # fmt: skip
def test_a_jpeg_is_decoded_to_a_part_that_the_page_can_show(tmp_path, width, kept):
    image = Image.fromarray(drawn(width, 300))
    image.save(tmp_path / "p.jpg")
    image.save(tmp_path / "p.png")
    picture, whole = open_picture(tmp_path / "p.jpg"), open_picture(tmp_path / "p.png")
    assert picture.pixels.shape[1] == kept
    assert (picture.size, whole.pixels.shape[1]) == ((300, width), min(width, images.WORKING_SIDE))
    assert centre(redness(picture.pixels)) == pytest.approx((0.3, 0.2), abs=0.01)
    a, b = (to_square(p, 320) for p in (picture, whole))
    assert (a - b).abs().mean() < 1.5


@pytest.mark.parametrize("orientation", [1, 6])
def test_all_pixels_of_a_large_picture(tmp_path, orientation):
    pixels = drawn(3000, 1100)
    image = Image.fromarray(pixels)
    if STORED[orientation] is not None:
        image = image.transpose(STORED[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("p.png", "p.jpg"):
        image.save(tmp_path / name, exif=exif, quality=95)
    assert np.array_equal(open_picture(tmp_path / "p.png", side=None).pixels, pixels)
    picture = open_picture(tmp_path / "p.jpg", side=None)
    assert picture.size == picture.pixels.shape[:2] == (1100, 3000)
    assert centre(redness(picture.pixels)) == pytest.approx((0.3, 0.2), abs=0.001)
    assert open_picture(pixels, side=None).pixels.shape == pixels.shape
    assert open_picture(pixels, side=300).pixels.shape == (110, 300, 3)
    assert open_picture(tmp_path / "p.jpg", side=300).pixels.shape == (110, 300, 3)


@pytest.mark.parametrize(("width", "height"), [(100, 900), (900, 100), (320, 320), (37, 53), (2000, 700)])
def test_a_point_keeps_its_relative_place(width, height):
    picture = open_picture(drawn(width, height))
    square = to_square(picture, 320).numpy()
    assert square.shape == (3, 320, 320)
    assert 0 <= square.min() <= square.max() <= 255
    red = np.clip(square[0] / 220, 0, 1)
    assert centre(red) == pytest.approx((0.3, 0.2), abs=0.01)
    back = to_size(red, picture.size)
    assert back.shape == (height, width)
    assert back.dtype == np.float32
    assert centre(back) == pytest.approx((0.3, 0.2), abs=0.01)


def test_soft_masks_stay_in_range_at_any_size():
    mask = np.random.default_rng(0).random((80, 80), np.float32)
    for size in [(1, 1), (1, 500), (3, 2), (40_000, 2), (2, 40_000)]:
        out = to_size(mask, size)
        assert out.shape == size
        assert 0 <= out.min() <= out.max() <= 1


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 2000, 3), (2000, 1, 3), (5, 4)])
def test_tiny_and_narrow_pictures(shape):
    picture = open_picture(np.full(shape, 7, np.uint8))
    assert picture.size == shape[:2]
    assert to_square(picture, 64).unique().tolist() == [7]


def test_every_mode_becomes_rgb(save, tmp_path):
    grey = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
    assert (open_picture(grey).pixels == grey[..., None]).all()
    assert (open_picture(grey[..., None]).pixels == grey[..., None]).all()
    for mode in ("1", "P", "L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"):
        image = Image.fromarray(grey).convert("RGB" if mode in ("LAB", "HSV", "YCbCr") else "L").convert(mode)
        picture = open_picture(image)
        assert picture.pixels.dtype == np.uint8, mode
        assert picture.pixels.shape == (4, 6, 3), mode
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    deep.save(tmp_path / "deep.png")
    assert (open_picture(tmp_path / "deep.png").pixels == grey[..., None]).all()


def test_transparency_is_laid_on_white_and_told(save):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4, :, 3] = 255
    picture = open_picture(save(pixels, "cut.png"))
    assert (picture.pixels[:4] == 0).all()
    assert (picture.pixels[4:] == 255).all()
    assert picture.warnings == ["“cut.png” is transparent in parts; they were laid on white."]
    assert open_picture(np.full((8, 8, 4), 255, np.uint8)).warnings == []


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    picture = open_picture(tmp_path / "a.gif")
    assert (picture.pixels == (255, 0, 0)).all()
    assert "animated" in picture.warnings[0]


def test_a_callers_image_is_left_as_it_was(save):
    path = save(drawn(3000, 2000), "large.jpg")
    with Image.open(path) as image:
        picture = open_picture(image)
        assert image.size == (3000, 2000)
        assert image.mode == "RGB"
    assert picture.size == (2000, 3000)
    assert max(picture.pixels.shape) == images.WORKING_SIDE
    assert open_picture(picture) is picture


def test_what_is_not_a_picture_is_refused(save, tmp_path, monkeypatch):
    (tmp_path / "note.jpg").write_text("not a picture")
    whole = save(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8), "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with Image.open(tmp_path / "cut.jpg") as cut:
        for source, said in {
            tmp_path / "none.jpg": "no picture file",
            tmp_path: "is a folder",
            "": "is a folder",
            "x" * 5000: "cannot be read",
            tmp_path / "note.jpg": "not a picture that can be read. Accepted: JPEG",
            tmp_path / "cut.jpg": "broken",
        }.items():
            with pytest.raises(InputError, match=said):
                open_picture(source)
        with pytest.raises(InputError, match="broken"):
            open_picture(cut)
    for array in (np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8), np.zeros((3,) * 4, np.uint8)):
        with pytest.raises(InputError):
            open_picture(array)
    for other in (None, 3, b"bytes", [1], np.uint8(3)):
        with pytest.raises(InputError, match="must be a path"):
            open_picture(other)
    with pytest.raises(InputError, match="no pixels"):
        open_picture(Image.new("RGB", (0, 5)))
    monkeypatch.setattr(images, "MAX_PIXELS", 30_000)
    with pytest.raises(InputError, match="megapixels"):
        open_picture(tmp_path / "whole.jpg")


def test_a_file_is_decoded_once_and_known_by_its_content(save, tmp_path, monkeypatch):
    remembered.clear()
    calls = []
    decode = images._decode
    monkeypatch.setattr(images, "_decode", lambda *args: calls.append(args[1]) or decode(*args))
    path = save(drawn(60, 40), "a.png")
    first = open_picture(path)
    assert open_picture(path) is first
    assert calls == ["a.png"]
    Image.fromarray(drawn(60, 40)[::-1].copy()).save(path)  # another picture under the same name
    assert not np.array_equal(open_picture(path).pixels, first.pixels)
    assert calls == ["a.png"] * 2
    assert open_picture(path, side=None).size == (40, 60)
    assert open_picture(path, side=20).pixels.shape == (13, 20, 3)
    assert len(calls) == 4  # other sizes are not looked up


def test_what_is_remembered_stays_within_its_budget(save):
    pictures = [open_picture(save(drawn(30, 20), f"{i}.png")) for i in range(4)]
    few = Remembered(sum(p.pixels.nbytes for p in pictures[:3]))
    for i, picture in enumerate(pictures[:2]):
        few.put((bytes([i]), "a"), picture)
    assert few.get((b"\x00", "a")) is pictures[0]  # used last
    for i, picture in enumerate(pictures[2:], 2):
        few.put((bytes([i]), "a"), picture)
    assert few.get((b"\x01", "a")) is None
    assert few.get((b"\x00", "a")) is pictures[0]
    assert few.get((b"\x00", "b")) is None


def test_several_are_opened_in_their_order_and_a_broken_one_is_told(save, tmp_path):
    paths = [save(drawn(30, 20 + i), f"{i}.png") for i in range(5)]
    assert [p.size[0] for p in open_pictures([*paths, np.zeros((7, 9, 3), np.uint8)])] == [20, 21, 22, 23, 24, 7]
    assert open_pictures([]) == []
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"broken\.png"):
        open_pictures([paths[0], broken, paths[1]])


def test_one_pil_image_may_be_used_by_several_threads_at_once(save, cat):
    path = save(np.tile(cat, (4, 4, 1)), "large.jpg")
    whole = open_picture(path, side=None).pixels
    for _ in range(4):
        image = Image.open(path)  # reads its file when it is used
        first, second = open_pictures([image, image])
        assert np.array_equal(first.pixels, second.pixels)
        assert first.size == whole.shape[:2]


def test_warnings_of_others_are_heard_once_pictures_are_open(monkeypatch):
    before, opened, go_on = list(warnings.filters), [Event(), Event()], [Event(), Event()]

    def slowly(i, side=None):
        opened[i].set()
        assert go_on[i].wait(10)

    monkeypatch.setattr(images, "_open", slowly)
    with ThreadPoolExecutor(2) as pool:
        results = []
        for i in (0, 1):
            results.append(pool.submit(open_picture, i))
            assert opened[i].wait(10)
        for i in (0, 1):  # the first to come is the first to go
            go_on[i].set()
            results[i].result()
    assert list(warnings.filters) == before
