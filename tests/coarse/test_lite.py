import pytest
import torch

from imrseg.coarse.lite import LiteCam
from imrseg.images import open_picture

K, C, IMAGENET = 30, 12, 25


@pytest.fixture
def cam() -> LiteCam:
    rng = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(K, C, generator=rng).double(), torch.randn(K, generator=rng).double()
    return LiteCam(weight, bias, imagenet=IMAGENET)


def inputs(batch: int = 4, size: tuple[int, int] = (5, 7)) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(2)
    features = torch.randn(batch, C, *size, generator=rng).double()
    mixture = torch.rand(batch, K, generator=rng).double() * (torch.rand(batch, K, generator=rng) < 0.3)
    mixture[:, 0] += 0.1
    return features, mixture / mixture.sum(1, keepdim=True)


@pytest.mark.parametrize("others", [0, 1, 3])
def test_closed_form_is_grad_cam_by_autograd(cam, others):
    """Section 4.1: channel weights are the spatial mean of the target's gradient; then ReLU, maximum to 1."""
    features, mixture = inputs()
    distractors = mixture[1 : 1 + others].roll(3, 1)
    features.requires_grad_(True)
    (gradient,) = torch.autograd.grad(cam.target(features, mixture, distractors).sum(), features)
    channel = gradient.mean((2, 3), keepdim=True)
    expected = (channel * features).sum(1, keepdim=True).relu()
    expected = expected / expected.amax((2, 3), keepdim=True)
    masks, _ = cam(features.detach(), mixture, distractors)
    assert masks.shape == (4, 1, 5, 7)
    torch.testing.assert_close(masks, expected.detach(), atol=1e-6, rtol=0)


def test_an_everyday_class_that_is_there_does_not_take_a_word_over(cam):
    """A rocket is mostly before a sky: that the sky is there must not make "rocket" mean the sky."""
    mixture = torch.zeros(1, K, dtype=torch.float64)
    mixture[0, [2, 5, 27]] = torch.tensor([0.3, 0.5, 0.2]).to(mixture)
    z = torch.zeros(1, K).double()
    z[0, 5], z[0, 27] = 3.0, 20.0
    meant = cam._chosen(mixture, z)[0]
    torch.testing.assert_close(meant.sum(), torch.tensor(1.0).double())
    assert meant[27] == mixture[0, 27]
    assert meant[5] > 0.75  # the picture chooses among the others
    only = torch.zeros(1, K).double()
    only[0, 27] = 1  # "sky"
    assert torch.equal(cam._chosen(only, z), only)


def test_evidence_is_the_logarithm_of_the_maps_mean(cam):
    features, mixture = inputs()
    features.requires_grad_(True)
    (gradient,) = torch.autograd.grad(cam.target(features, mixture).sum(), features)
    channel = gradient.sum((2, 3), keepdim=True)  # by the pooled features
    maps = (channel * features).sum(1).relu()
    for distractors in (None, mixture[1:3].roll(3, 1)):
        _, evidence = cam(features.detach(), mixture, distractors)
        torch.testing.assert_close(evidence, maps.mean((1, 2)).log().detach(), atol=1e-6, rtol=0)


def test_range_and_an_empty_map(cam):
    features, mixture = inputs()
    masks, _ = cam(features, mixture)
    assert (masks >= 0).all()
    assert torch.equal(masks.amax((1, 2, 3)), torch.ones(4).double())
    masks, evidence = cam(torch.zeros_like(features), mixture)
    assert (masks == 0).all()
    assert evidence.isfinite().all()


def test_what_is_shown_speaks_louder(segmenter, cat, cup):
    features = torch.cat(
        [f["head"] for f in segmenter.features(segmenter.masker.encoder, [open_picture(cat), open_picture(cup)])]
    )

    def evidence(label: str) -> list[float]:
        mixture = segmenter.masker.lexicon.meaning(label).mixture.expand(2, -1)
        return segmenter.masker.cam(features, mixture)[1].tolist()

    assert evidence("cat")[0] > evidence("cat")[1]
    assert evidence("cup")[1] > evidence("cup")[0]
    assert evidence("cat")[0] > evidence("aeroplane")[0]
