import pytest
import torch

from imrseg.images import open_picture, to_square
from imrseg.models.efficientnet import EFFICIENTNET_LITE2, EfficientNetLite
from imrseg.models.layers import resize
from imrseg.models.lite import Correlation, highest, lite_refiner


@pytest.fixture(scope="module")
def backbone(segmenter) -> EfficientNetLite:
    return segmenter.network.encoder.encode


def test_backbone_features_by_stride(backbone):
    with torch.inference_mode():
        out = backbone(torch.zeros(1, 3, 64, 96))
    assert set(out) == {*EFFICIENTNET_LITE2, "head"}
    for name, channels in EFFICIENTNET_LITE2.items():
        stride = int(name[1:].rstrip("abcd"))
        assert out[name].shape == (1, channels, 64 // stride, 96 // stride)
    assert out["head"].shape == (1, 1280, 2, 3)


def test_backbone_knows_imagenet(backbone, cat, cup):
    images = torch.stack([to_square(open_picture(pixels), 224) for pixels in (cat, cup)])
    with torch.inference_mode():
        classes = backbone.classifier(backbone(images)["head"].mean((2, 3))).argmax(1)
    assert 281 <= classes[0] <= 285  # the domestic cats
    assert classes[1] in (504, 967, 968)  # coffee mug, espresso, cup


def test_backbone_is_frozen(backbone):
    backbone.train()
    assert not any(m.training for m in backbone.modules())
    assert not any(p.requires_grad for p in backbone.parameters())


def test_describe_by_hand():
    """Ten numbers per position: the carried mask, then mean and peak likeness to object and background."""
    torch.manual_seed(0)
    n = 4  # 2 x 2 positions
    cosine = torch.rand(2, 2, n, n) * 2 - 1
    attention = (5 * cosine).softmax(-1)
    own, other = torch.rand(2, 1, 2, 2), torch.rand(2, 1, 2, 2)
    maps = Correlation(cosine, cosine.relu(), attention, (2, 2)).describe(own, other).flatten(2)
    assert maps.shape == (2, 10, n)
    for image in range(2):
        for side, mask in enumerate((other[image].flatten(), own[image].flatten())):
            for i in range(n):
                c, a = cosine[image, side, i], attention[image, side, i]
                expected = [(a * mask).sum()]
                expected += [(c * m).sum() / (m.sum() + 1e-3) for m in (mask, 1 - mask)]
                expected += [(c.relu() * m).max() for m in (mask, 1 - mask)]
                got = maps[image, 5 * side : 5 * side + 5, i]
                torch.testing.assert_close(got, torch.stack(expected), atol=1e-5, rtol=1e-4)


def test_resize_averages_down_and_interpolates_up():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert resize(x, (4, 4)) is x
    assert resize(x, (2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    up = resize(x, (8, 8))
    assert up.shape == (1, 1, 8, 8)
    assert up.mean().item() == pytest.approx(x.mean().item())


def test_the_network_is_small():
    assert sum(p.numel() for p in lite_refiner().parameters()) < 1_000_000


def test_the_peaks_gradient_is_autograds():
    torch.manual_seed(1)
    similarity, mask = torch.rand(2, 2, 6, 6), torch.rand(2, 2, 1, 6, requires_grad=True)
    value = highest(similarity, mask)
    plain = (similarity * mask).amax(-1)
    assert torch.equal(value, plain)
    weights = torch.rand_like(plain)
    (ours,) = torch.autograd.grad((value * weights).sum(), mask)
    (expected,) = torch.autograd.grad((plain * weights).sum(), mask)
    torch.testing.assert_close(ours, expected)
