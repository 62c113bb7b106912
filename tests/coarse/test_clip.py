"""CLIP's Grad-CAM from one product through the pooling, against autograd through the whole tower."""

import pytest
import torch
import torch.nn.functional as F

from imrseg.coarse.clip import ClipCam
from imrseg.errors import InputError

open_clip = pytest.importorskip("open_clip")
PROMPTS = ["a photo of a cat", "a photo of a dog", "a photo of a road"]


@pytest.fixture(scope="module")
def cam() -> ClipCam:
    """A small ResNet CLIP with random weights, in double precision: its attention magnifies rounding."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=(1, 1, 1, 1), width=16, image_size=64, head_width=16)
    return ClipCam(CLIP(32, vision, CLIPTextCfg(width=32, heads=2, layers=1), quick_gelu=True).double())


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("contrast", ["softmax", "cosine"])
def test_equals_autograd_through_the_tower(cam, images, contrast):
    kept = []
    hook = cam.model.visual.layer4.register_forward_hook(lambda *a: kept.append(a[2]) or a[2].retain_grad())
    cosine = F.normalize(cam.model.encode_image(images.requires_grad_()), dim=-1) @ cam.text_features(PROMPTS).T
    hook.remove()
    scores = (100 * cosine).softmax(-1) if contrast == "softmax" else cosine
    (scores[0, 2] + scores[1, 0]).backward()
    expected = (kept[0].grad.mean((2, 3), keepdim=True) * kept[0]).sum(1).relu().detach()
    expected = expected - expected.amin((1, 2), keepdim=True)
    highest = expected.amax((1, 2), keepdim=True)
    expected = torch.where(highest > 0, expected / highest, 0)
    assert (highest > 0).any()
    torch.testing.assert_close(cam.maps(images, PROMPTS, [2, 0], contrast), expected, atol=1e-6, rtol=1e-6)


def test_a_single_label_is_explained_by_its_cosine(cam, images):
    """Its probability would be constant, and the map empty."""
    maps = cam.maps(images, PROMPTS[2:], [0, 0])
    torch.testing.assert_close(maps, cam.maps(images, PROMPTS, [2, 2], "cosine"))
    assert maps.max() == 1


def test_the_whole_picture_at_any_size(cam):
    maps = cam.maps(torch.randn(1, 3, 96, 160, dtype=torch.float64), PROMPTS, [1])
    assert maps.shape == (1, 3, 5)
    assert maps.isfinite().all()


def test_similarity_is_the_poolings_own_projection(cam, images):
    got = cam.similarity(images, PROMPTS, [1, 1])
    pooling, features = cam.model.visual.attnpool, cam.features(images)
    v = F.conv2d(features, pooling.v_proj.weight[..., None, None], pooling.v_proj.bias)
    dense = F.normalize(F.conv2d(v, pooling.c_proj.weight[..., None, None], pooling.c_proj.bias), dim=1)
    s = torch.einsum("bchw,c->bhw", dense, cam.text_features(PROMPTS)[1])
    low, high = s.amin((1, 2), keepdim=True), s.amax((1, 2), keepdim=True)
    torch.testing.assert_close(got, (s - low) / (high - low + 1e-4), atol=1e-6, rtol=1e-6)


def test_bad_targets_are_refused(cam, images):
    for targets in ([0], [0, 3], [0, -1]):
        with pytest.raises(InputError, match="0 to 2"):
            cam.maps(images, PROMPTS, targets)
    with pytest.raises(InputError, match="softmax, cosine"):
        cam.maps(images, PROMPTS, [0, 0], "sigmoid")


def test_a_vision_transformer_is_refused():
    with pytest.raises(InputError, match="ResNet CLIP"):
        ClipCam(torch.nn.ModuleDict({"visual": torch.nn.Identity()}))
