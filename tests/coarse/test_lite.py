import pytest
import torch

from imrseg.coarse.lite import MILDNESS, LiteCam
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


def grad_cam(cam: LiteCam, features: torch.Tensor, mixture: torch.Tensor, distractors: torch.Tensor) -> torch.Tensor:
    """Section 4.1 by autograd: channel weights are the target's gradient by the pooled features; then ReLU."""
    features = features.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(cam.target(features, mixture, distractors).sum(), features)
    return (gradient.sum((2, 3), keepdim=True) * features).sum(1, keepdim=True).relu().detach()


def contest(cam: LiteCam, features: torch.Tensor, mixture: torch.Tensor, distractors: torch.Tensor) -> torch.Tensor:
    """The probability that each position shows the label, by plain loops over pictures and positions."""
    out = torch.zeros(len(features), 1, *features.shape[2:]).to(features)
    for b, picture in enumerate(features):
        pooled = picture.mean((1, 2)) @ cam.weight.T + cam.bias
        shown = pooled.softmax(0)
        if len(distractors):
            shown = (shown + torch.stack([cam._chosen(d, pooled) for d in distractors]).mean(0)) / 2
        own = cam._chosen(mixture[b], pooled)
        for y in range(picture.shape[1]):
            for x in range(picture.shape[2]):
                place = ((picture[:, y, x] @ cam.weight.T + cam.bias) / MILDNESS).exp()
                ratio = (own * place).sum() / (shown * place)[mixture[b] == 0].sum()
                out[b, 0, y, x] = 1 / (1 + ratio ** (-1 / MILDNESS))
    return out


@pytest.mark.parametrize("others", [0, 1, 3])
def test_closed_form_is_grad_cam_by_autograd_where_the_label_wins(cam, others):
    features, mixture = inputs()
    distractors = mixture[1 : 1 + others].roll(3, 1)
    expected = grad_cam(cam, features, mixture, distractors) * contest(cam, features, mixture, distractors)
    expected = expected / expected.amax((2, 3), keepdim=True)
    masks, _ = cam(features, mixture, distractors)
    assert masks.shape == (4, 1, 5, 7)
    torch.testing.assert_close(masks, expected, atol=1e-6, rtol=0)


def test_a_dog_on_a_sofa_is_not_the_sofa():
    """Two classes that are seen together: each one's vector is partly the other's, and Grad-CAM alone confuses them."""
    axes = torch.eye(8).double()
    sofa, dog = axes[:2]
    weight = torch.cat([(sofa + 0.6 * dog)[None], (dog + 0.2 * sofa)[None], axes[2:]])
    cam = LiteCam(weight, torch.zeros(8).double(), imagenet=8)
    features = torch.zeros(1, 8, 1, 2).double()
    features[0, :, 0, 0], features[0, :, 0, 1] = 6 * sofa, 30 * dog  # the dog is louder
    label = torch.zeros(1, 8).double()
    label[0, 0] = 1
    on_sofa, on_dog = grad_cam(cam, features, label, label[:0]).flatten()
    assert on_dog > on_sofa
    on_sofa, on_dog = cam(features, label)[0].flatten()
    assert on_sofa == 1
    assert on_dog < 0.5


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
    none = mixture[:0]
    maps = grad_cam(cam, features, mixture, none) * contest(cam, features, mixture, none)
    for distractors in (None, mixture[1:3].roll(3, 1)):
        _, evidence = cam(features, mixture, distractors)
        torch.testing.assert_close(evidence, maps.mean((1, 2, 3)).log(), atol=1e-6, rtol=0)


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
