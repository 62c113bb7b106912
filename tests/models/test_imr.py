import torch

from imrseg.models.imr import IMRCell


def test_equation_4_gate_by_gate():
    torch.manual_seed(0)
    cell = IMRCell(inputs=5, hidden=32, squeeze=32)
    x, h = torch.randn(2, 5, 6, 7), torch.randn(2, 32, 6, 7)
    z, r = cell.gates_out(cell.gates_in(torch.cat([x, h], 1))).sigmoid().split(32, 1)
    candidate = cell.candidate_out(cell.candidate_in(torch.cat([r * h, x], 1))).tanh()
    new = cell(x, h)
    assert new.shape == h.shape
    torch.testing.assert_close(new, (1 - z) * h + z * candidate)


def test_a_closed_update_gate_keeps_the_state():
    torch.manual_seed(0)
    cell = IMRCell(inputs=5, hidden=32, squeeze=32)
    x, h = torch.randn(1, 5, 4, 4), torch.randn(1, 32, 4, 4)
    with torch.no_grad():
        cell.gates_out.bias[:32] = -100
        torch.testing.assert_close(cell(x, h), h)
        cell.gates_out.bias[:32] = 100
        assert cell(x, h).abs().max() <= 1


def test_gates_and_candidate_are_grouped():
    cell = IMRCell(inputs=5, hidden=48, groups=16, squeeze=64)
    assert cell.candidate_out.groups == 16
    assert cell.gates_out.groups == 32  # two gates
    assert cell.gates_in.kernel_size == cell.candidate_in.kernel_size == (1, 1)
