"""Raw products rescaled by gains equal correlations of masked, normalised features."""

import pytest
import torch

from imrseg.models import correlation
from imrseg.models.correlation import EPSILON, RawCorrelation, swap


def direct(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """HSNet's correlation of masked features (B, C, h, w), spelled out."""
    own, other = (f.flatten(2) / (f.flatten(2).norm(dim=1, keepdim=True) + EPSILON) for f in (own, other))
    return torch.einsum("bci,bcj->bij", own, other).relu()


@pytest.mark.parametrize("part", [correlation.PART, 100])  # all positions at a time, and some
@pytest.mark.parametrize("own_masked", [True, False])
def test_rescaling_is_exact(own_masked, part, monkeypatch):
    monkeypatch.setattr(correlation, "PART", part)
    torch.manual_seed(0)
    layers = [torch.randn(4, 6, 3, 5, dtype=torch.float64) for _ in range(2)]
    masks = torch.rand(4, 1, 3, 5, dtype=torch.float64)
    masks[:, :, 0, 0] = 0  # a position that is masked away altogether
    raw = RawCorrelation.of([f[:2] for f in layers], [f[2:] for f in layers], 2, torch.float64)
    volumes = raw.scaled(raw.gain(masks if own_masked else None), raw.gain(masks))
    cosine = torch.stack([torch.cat(list(v.parts())).transpose(0, 1).unflatten(1, (3, 5)) for v in volumes])
    assert cosine.shape == (4, 2, 3, 5, 3, 5)
    for volume, whole in zip(volumes, cosine, strict=True):
        kept = whole[..., ::2, ::2].permute(1, 2, 3, 4, 0)
        torch.testing.assert_close(volume.kept()[0], kept, atol=1e-12, rtol=1e-12)
    for i, f in enumerate(layers):
        own = f * masks if own_masked else f
        expected = direct(own, swap(f * masks)).view(4, 3, 5, 3, 5)
        torch.testing.assert_close(cosine[:, i], expected, atol=1e-12, rtol=1e-12)
