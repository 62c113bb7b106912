"""Seeded episodes drawn from flat lists of entries."""

from pathlib import Path

import pytest

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
