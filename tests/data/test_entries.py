"""Seeded episodes drawn from flat lists of entries."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imrseg.data.entries import Entry, episodes
from imrseg.errors import InputError


def test_names_are_spelled_out_for_prompts():
    assert Entry(Path("x"), Path("y"), "pottedplant").label == "potted plant"
    assert Entry(Path("x"), Path("y"), "fire_truck").label == "fire truck"


def entries_of(**classes: int) -> list[Entry]:
    return [Entry(Path(f"{n}{i}"), Path(), n) for n, count in classes.items() for i in range(count)]


def test_episode_i_queries_entry_i_and_supports_are_others_of_its_class():
    entries = entries_of(cat=3, dog=4)
    drawn, skipped = episodes(entries, shots=2, count=20, seed=0)
    assert skipped == []
    assert [q for q, _ in drawn] == [i % 7 for i in range(20)]
    for query, supports in drawn:
        assert len({query, *supports}) == 3
        assert {entries[i].name for i in supports} == {entries[query].name}


def test_episodes_are_seeded():
    entries = entries_of(cat=9)
    assert episodes(entries, 1, 50, 3) == episodes(entries, 1, 50, 3)
    assert episodes(entries, 1, 50, 3) != episodes(entries, 1, 50, 4)


def test_without_supports_one_picture_is_enough():
    drawn, skipped = episodes(entries_of(cat=1, dog=2), 0, 4, 0)
    assert (drawn, skipped) == ([(0, []), (1, []), (2, []), (0, [])], [])


def saved_masks() -> dict[str, Image.Image]:
    """A square, as drawing programs save it."""
    square = np.zeros((6, 8), np.uint8)
    square[1:4, 2:5] = 255
    grey, full, none = Image.fromarray(square), Image.new("L", (8, 6), 255), Image.new("L", (8, 6))
    white_first = Image.new("P", (8, 6))
    white_first.putdata((square == 0).ravel().astype(int).tolist())
    white_first.putpalette([255, 255, 255, 0, 0, 0])
    return {
        "grey": grey, "ones": Image.fromarray(square // 255), "bits": grey.convert("1"), "colours": grey.convert("RGB"),
        "opaque": Image.merge("RGBA", (grey, grey, grey, full)), "grey, opaque": Image.merge("LA", (grey, full)),
        "on nothing": Image.merge("RGBA", (full, full, full, grey)), "black on nothing": Image.merge("LA", (none, grey)),
        "white first": white_first, "CMYK": Image.merge("CMYK", (none, none, none, grey.point(lambda v: 255 - v))),
    }  # fmt: skip


@pytest.mark.parametrize("kind", saved_masks())
def test_a_mask_of_one_class_is_what_is_bright_and_not_transparent(tmp_path, kind):
    path = tmp_path / ("mask.tif" if kind == "CMYK" else "mask.png")
    saved_masks()[kind].save(path)
    expected = np.zeros((6, 8), np.uint8)
    expected[1:4, 2:5] = 1
    assert np.array_equal(Entry(Path(), path, "cat").target(), expected)


def test_numbers_without_colours_and_colours_without_opacity_count(tmp_path):
    numbers = Image.new("P", (8, 6))
    numbers.putpalette([0, 0, 0] * 2)
    numbers.paste(1, (2, 1, 5, 4))
    seen = Image.new("RGBA", (8, 6), (0, 0, 0, 0))
    seen.paste((255, 255, 255, 0), (2, 1, 5, 4))
    for image in (numbers, seen):
        image.save(tmp_path / "mask.png")
        assert Entry(Path(), tmp_path / "mask.png", "cat").target().sum() == 9


def test_an_empty_mask_stays_empty(tmp_path):
    for mode in ("L", "RGBA", "LA", "P"):
        Image.new(mode, (4, 3)).save(tmp_path / "mask.png")
        assert not Entry(Path(), tmp_path / "mask.png", "cat").target().any()
        Image.new("RGBA", (4, 3), (0, 0, 0, 255)).save(tmp_path / "mask.png")
        assert not Entry(Path(), tmp_path / "mask.png", "cat").target().any()


def test_small_classes_are_skipped_and_listed():
    drawn, skipped = episodes(entries_of(cat=1, dog=2), 1, 4, 0)
    assert skipped == ["cat"]
    assert {q for q, _ in drawn} == {1, 2}
    with pytest.raises(InputError, match="2 pictures"):
        episodes(entries_of(cat=1), 1, 1, 0)


def test_uniform_episodes_draw_the_class_first():
    entries = entries_of(cat=60, dog=3, cow=1)
    drawn, skipped = episodes(entries, 2, 400, 0, uniform=True)
    assert skipped == ["cow"]
    dogs = [query for query, _ in drawn if entries[query].name == "dog"]
    assert 150 < len(dogs) < 250
    assert len(set(dogs)) == 3
    assert all(len({query, *supports}) == 3 for query, supports in drawn)
    assert episodes(entries, 2, 400, 0, uniform=True)[0] == drawn
