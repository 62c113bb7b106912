import gc
import threading

import pytest
import torch

from imrseg.models import memory

SHAPE = (3, 5, 7)
SIZE = 3 * 5 * 7 * 4


@pytest.fixture(autouse=True)
def waiting(monkeypatch):
    blocks = []
    monkeypatch.setattr(memory, "_waiting", blocks)
    monkeypatch.setattr(memory, "LARGE", SIZE)
    gc.collect()
    return blocks


def test_a_tensor_is_as_asked_for():
    x = memory.empty(SHAPE, torch.bfloat16)
    assert x.shape == SHAPE
    assert x.dtype == torch.bfloat16
    assert x.is_contiguous()


def test_memory_is_used_again_once_no_tensor_holds_it(waiting):
    x = memory.empty(SHAPE, torch.float32)
    where = x.data_ptr()
    row = x.fill_(1)[1]
    del x
    assert not waiting
    other = memory.empty(SHAPE, torch.float32).fill_(2)
    assert other.data_ptr() != where
    assert bool((row == 1).all())
    del row
    assert len(waiting) == 1
    again = memory.empty((*SHAPE, 2), torch.bfloat16)  # as many bytes
    assert again.data_ptr() == where
    assert not waiting
    assert bool((other == 2).all())


def test_other_sizes_have_memory_of_their_own(waiting):
    x = memory.empty(SHAPE, torch.float32)
    where = x.data_ptr()
    del x
    assert memory.empty((*SHAPE, 3), torch.float32).data_ptr() != where
    assert len(waiting) == 2


def test_small_tensors_are_left_to_pytorch(waiting):
    x = memory.empty((SIZE - 1,), torch.uint8)
    del x
    assert not waiting


def test_other_devices_are_left_to_pytorch(waiting):
    x = memory.empty(SHAPE, torch.float32, torch.device("meta"))
    assert x.device.type == "meta"
    del x
    assert not waiting


def test_no_more_waits_than_is_worth_keeping(waiting, monkeypatch):
    monkeypatch.setattr(memory, "KEPT", 2 * SIZE)
    held = [memory.empty(SHAPE, torch.float32) for _ in range(4)]
    last = held[-1].data_ptr()
    while held:
        held.pop(0)
    assert sum(map(len, waiting)) == 2 * SIZE
    assert memory.empty(SHAPE, torch.float32).data_ptr() == last


def test_what_waits_can_be_given_back(waiting):
    kept, gone = (memory.empty(SHAPE, torch.float32).fill_(1) for _ in range(2))
    del gone
    memory.release()
    assert not waiting
    assert bool((kept == 1).all())


def test_threads_never_share_memory():
    wrong = []

    def work(number):
        for _ in range(300):
            x = memory.empty(SHAPE, torch.float32).fill_(number)
            if not bool((x == number).all()):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong
