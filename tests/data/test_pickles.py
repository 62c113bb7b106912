import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path

import pytest

from imrseg import InputError
from imrseg.data import pickles
from imrseg.data.pickles import load_lists

LISTS = {0: [], 1: ["val2014/a.jpg", "val2014/b.jpg"], 79: ["val2014/a.jpg"]}


@pytest.fixture
def file(tmp_path):
    def write(content: object, protocol: int = 3) -> Path:
        path = tmp_path / "fold0.pkl"
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
        return path

    return write


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_lists_of_every_protocol_are_read(file, protocol):
    assert load_lists(file(LISTS, protocol)) == LISTS
    assert load_lists(file([["a"], [], ["b", "c"]], protocol)) == {0: ["a"], 1: [], 2: ["b", "c"]}


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_list_is_refused_by_name_and_not_run(file, tmp_path, protocol):
    mark = tmp_path / "mark"
    with pytest.raises(InputError, match=r"fold0\.pkl cannot be used: it asks for (posix|nt)\.mkdir, which is refused"):
        load_lists(file({0: [Evil(mark)]}, protocol))
    assert not mark.exists()


@pytest.mark.parametrize(
    "content", [{0: OrderedDict()}, {0: {"a"}}, {0: ["a", 1]}, {"0": ["a"]}, {True: ["a"]}, ["a"], {}, [], 3, {0: "a"}]
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_anything_but_lists_of_names_is_refused(file, content, protocol):
    with pytest.raises(InputError, match="Accepted: HSNet's pickled lists"):
        load_lists(file(content, protocol))


def test_broken_files_are_refused(file):
    whole = pickle.dumps(LISTS)
    for content in (
        b"",
        b"hello",
        b"\x80\x04.",
        whole[:-1],
        whole[: len(whole) // 2],
        b"\x80\x02\x82\x01.",
        b"Ptoken\n.",
    ):
        with pytest.raises(InputError, match=r"fold0\.pkl cannot be used"):
            load_lists(file(content))


def test_numbers_in_a_file_set_no_memory_aside(file):
    """Where a value goes is the file's to say: at 2**31 the C unpickler would make room for as many."""
    assert load_lists(file(b"}K\x00]r" + struct.pack("<I", 2**31) + b"X\x01\x00\x00\x00aas.")) == {0: ["a"]}


def test_a_large_file_is_not_read(file, monkeypatch):
    monkeypatch.setattr(pickles, "LARGEST", 10)
    with pytest.raises(InputError, match="larger than"):
        load_lists(file(LISTS))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.pkl cannot be used: .*No such file"):
        load_lists(tmp_path / "none.pkl")
