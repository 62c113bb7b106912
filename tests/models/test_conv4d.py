"""The fast 4D convolution and normalisation against their definitions."""

import pytest
import torch
import torch.nn.functional as F

from imrseg.models.conv4d import CenterPivotConv4d, GroupNorm4d, as_matrix
from imrseg.models.correlation import RawCorrelation


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 4)])
def test_center_pivot_by_hand(kernel, stride):
    """One 2D convolution over each picture's positions, the other's held at the output's centre."""
    torch.manual_seed(0)
    conv = CenterPivotConv4d(2, 3, kernel, stride).double()
    x = torch.randn(1, 2, 4, 5, 7, 6, dtype=torch.float64)
    out = conv(x.permute(0, 2, 3, 4, 5, 1).contiguous()).permute(0, 5, 1, 2, 3, 4)
    assert out.shape == (1, 3, 4, 5, -(-7 // stride), -(-6 // stride))
    pad = kernel // 2
    for i, j, k, m in [(0, 0, 0, 0), (3, 4, 1, 1), (1, 2, 0, 1)]:
        own = F.conv2d(x[..., k * stride, m * stride], conv.conv1.weight, conv.conv1.bias, padding=pad)[0, :, i, j]
        other = F.conv2d(x[:, :, i, j], conv.conv2.weight, conv.conv2.bias, padding=pad)
        torch.testing.assert_close(out[0, :, i, j, k, m], own + other[0, :, k * stride, m * stride])


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 2), (3, 3), (4, 5)])
@pytest.mark.parametrize("kernel", [3, 5])
def test_a_convolution_over_few_positions_is_a_matrix(size, kernel):
    torch.manual_seed(0)
    weight = torch.randn(3, 2, kernel, kernel, dtype=torch.float64)
    x = torch.randn(7, 2, *size, dtype=torch.float64)
    expected = F.conv2d(x, weight, padding=kernel // 2)
    got = x.permute(0, 2, 3, 1).flatten(1) @ as_matrix(weight, size).t()
    torch.testing.assert_close(got.view(7, *size, 3).permute(0, 3, 1, 2), expected)


def test_few_positions_give_what_many_give():
    """Four positions of the other picture take the matrix; within a larger map of zeros they do not."""
    torch.manual_seed(0)
    conv = CenterPivotConv4d(2, 3, 3, 1).double()
    x = torch.randn(2, 4, 5, 2, 2, 2, dtype=torch.float64)
    wide = F.pad(x, (0, 0, 0, 4, 0, 4))
    torch.testing.assert_close(conv(x), conv(wide)[:, :, :, :2, :2])


@pytest.mark.parametrize("part", [10, 10**6])
@pytest.mark.parametrize("gradients", [True, False])
def test_volumes_are_convolved_without_being_made_whole(part, gradients, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr("imrseg.models.correlation.PART", part)
    query, support = ([torch.randn(1, 6, 5, 7, dtype=torch.float64) for _ in range(3)] for _ in range(2))
    raw = RawCorrelation.of(query, support, 2, torch.float64)
    gain = torch.rand_like(raw.norm)
    conv = CenterPivotConv4d(3, 4, 3, 2).double()
    with torch.set_grad_enabled(gradients):
        for volume in raw.scaled(gain, gain):
            whole = torch.cat(list(volume.parts())).view(1, 5, 7, 3, 5, 7).permute(0, 1, 2, 4, 5, 3).contiguous()
            torch.testing.assert_close(conv(volume), conv(whole))


@pytest.mark.parametrize("gradients", [True, False])
def test_group_norm(gradients):
    torch.manual_seed(0)
    norm = GroupNorm4d(4, 8).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 3, 4, 2, 5, 8, dtype=torch.float64) + 1
    with torch.set_grad_enabled(gradients):
        expected = F.group_norm(x.movedim(-1, 1), 4, norm.weight, norm.bias).movedim(1, -1)
        torch.testing.assert_close(norm(x.clone()), expected)


def test_group_norm_stays_exact_over_many_positions():
    torch.manual_seed(0)
    norm = GroupNorm4d(4, 16)
    x = (torch.randn(1, 30, 30, 13, 13, 16) + 1).relu()
    expected = F.group_norm(x.double().movedim(-1, 1), 4).movedim(1, -1)
    with torch.inference_mode():
        assert (norm(x) - expected).abs().max() <= 1e-5


def test_group_norm_in_bfloat16_is_rounded_once():
    torch.manual_seed(0)
    norm = GroupNorm4d(4, 16)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = (torch.randn(2, 30, 30, 7, 7, 16) + 1).relu().bfloat16()
    expected = F.group_norm(x.double().movedim(-1, 1), 4, norm.weight.double(), norm.bias.double()).movedim(1, -1)
    with torch.inference_mode():
        out = norm(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=1e-3)


def test_gradients_of_the_fast_path():
    """Derivatives of convolution and norm, by finite differences."""
    torch.manual_seed(0)
    conv, norm = CenterPivotConv4d(2, 4, 3, 2).double(), GroupNorm4d(2, 4).double()
    x = torch.randn(1, 2, 3, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: norm(conv(x)), x)
