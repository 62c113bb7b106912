import pytest
import torch

from imrseg.models.imr import ConvCell, GRUCell, IMRCell, NoCell

SEEN, GUIDE, HIDDEN = 3, 2, 32


def make(kind: str) -> GRUCell:
    torch.manual_seed(0)
    if kind == "group":
        return IMRCell(SEEN + GUIDE, HIDDEN, squeeze=32)
    return ConvCell(SEEN + GUIDE, HIDDEN)


def inputs() -> list[torch.Tensor]:
    return [torch.randn(2, channels, 6, 7) for channels in (SEEN, GUIDE, HIDDEN)]


@pytest.mark.parametrize("kind", ["group", "conv"])
def test_equation_4_gate_by_gate(kind):
    """The features' part, made once per pair, changes nothing."""
    cell = make(kind)
    seen, guide, h = inputs()
    x = torch.cat([seen, guide], 1)
    gates, candidate = torch.nn.Sequential(*cell.gates), torch.nn.Sequential(*cell.candidate)
    z, r = gates(torch.cat([x, h], 1)).sigmoid().split(HIDDEN, 1)
    expected = (1 - z) * h + z * candidate(torch.cat([r * h, x], 1)).tanh()
    torch.testing.assert_close(cell(seen, h, cell.prepare(guide)), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["group", "conv"])
def test_a_closed_update_gate_keeps_the_state(kind):
    cell = make(kind)
    seen, guide, h = inputs()
    bias = cell.gates[-1].bias
    assert bias is not None
    with torch.no_grad():
        bias[:HIDDEN] = -100
        torch.testing.assert_close(cell(seen, h, cell.prepare(guide)), h)
        bias[:HIDDEN] = 100
        assert cell(seen, h, cell.prepare(guide)).abs().max() <= 1


def test_gates_and_candidate_are_grouped():
    cell = IMRCell(inputs=5, hidden=48, groups=16, squeeze=64)
    assert cell.candidate_out.groups == 16
    assert cell.gates_out.groups == 32  # two gates
    assert cell.gates_in.kernel_size == cell.candidate_in.kernel_size == (1, 1)


def test_the_plain_cell_has_standard_convolutions():
    cell = ConvCell(inputs=5, hidden=48)
    assert [c.kernel_size for c in cell.gates + cell.candidate] == [(3, 3), (3, 3)]
    assert all(c.groups == 1 for c in cell.gates + cell.candidate)


def test_without_a_cell_nothing_is_added():
    cell, (seen, guide, _) = NoCell(), inputs()
    h = cell(seen, cell.first(guide), cell.prepare(guide))
    assert torch.equal(seen + h, seen)
    assert not list(cell.parameters())


def test_the_first_state_is_zero_or_learned():
    like = torch.randn(2, 1, 4, 5)
    assert torch.equal(IMRCell(5, 16).first(like), torch.zeros(2, 16, 4, 5))
    cell = IMRCell(5, 16, start=(4, 5))
    assert isinstance(cell.start, torch.nn.Parameter)
    torch.nn.init.normal_(cell.start)
    assert torch.equal(cell.first(like), cell.start.repeat(2, 1, 1, 1))
