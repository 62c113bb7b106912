"""What the benchmarks measure with. They themselves take minutes and are run by hand."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import measure


def test_runs_take_turns_after_a_round_to_warm_up():
    order: list[str] = []
    times = measure.in_turns([lambda: order.append("a"), lambda: order.append("b")], rounds=3)
    assert order == ["a", "b"] * 4
    assert [len(each) for each in times] == [3, 3]


def test_spread_is_median_and_95th_percentile():
    assert measure.spread(list(range(101))) == {"p50": 50, "p95": 95}


def test_operations_are_counted():
    a, b = torch.rand(20, 30), torch.rand(30, 40)
    assert measure.flops(lambda: a @ b) == pytest.approx(2 * 20 * 30 * 40 / 1e9)


def test_bytes_are_counted_of_what_moves_them():
    a, b = torch.rand(20, 30), torch.rand(30, 40)
    assert measure.traffic(lambda: a @ b) == pytest.approx(4 * (20 * 30 + 30 * 40 + 20 * 40) / 1e9)
    assert measure.traffic(lambda: a.t()[3:]) == 0  # views
    assert measure.traffic(lambda: a.clone().mul_(2)) == pytest.approx(4 * (2 + 1) * 20 * 30 / 1e9)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells")
def test_memory_is_what_a_call_adds():
    assert 90e6 < measure.peak_memory(lambda: np.ones(100_000_000, np.uint8).sum()) < 200e6
