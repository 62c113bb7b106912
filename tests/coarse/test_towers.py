"""The two towers against open_clip's own forward pass, at the trained size and at others."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from imrseg.coarse.towers import ResNetTower, ViTTower, open_tower, stretched
from imrseg.errors import InputError

pytest.importorskip("open_clip")
SIZES = {"resnet": (64, 96), "vit": (32, 48)}


def visual(kind: str, **vision) -> nn.Module:
    """A small image tower with random weights, in double precision."""
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    torch.manual_seed(0)
    if kind == "resnet":
        config = CLIPVisionCfg(layers=(1, 1, 1, 1), width=16, image_size=64, head_width=16)
    else:
        config = CLIPVisionCfg(
            **{"layers": 3, "width": 32, "image_size": 32, "patch_size": 8, "head_width": 8} | vision
        )
    built = _build_vision_tower(24, config, quick_gelu=True).double().eval().requires_grad_(False)
    if kind == "resnet":  # open_clip begins each block as the identity; the last one shall count too
        nn.init.normal_(built.layer4[-1].bn3.weight)
    return built


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(scope="module", params=["resnet", "vit"])
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def tower(kind):
    return open_tower(visual(kind))


def test_each_kind_has_its_tower(kind, tower):
    assert isinstance(tower, {"resnet": ResNetTower, "vit": ViTTower}[kind])
    assert (tower.side, tower.stride) == {"resnet": (64, 32), "vit": (32, 8)}[kind]


def test_features_and_pooling_make_the_towers_own_vectors(kind, tower):
    images = draw(2, 3, tower.side, tower.side)
    expected = F.normalize(visual(kind)(images), dim=-1)
    torch.testing.assert_close(tower.pool(tower.features(images)), expected)


def test_a_vit_at_another_size_is_that_vit_with_its_positions_stretched():
    large = visual("vit", image_size=(40, 64))
    small = visual("vit")
    state = small.state_dict()
    state["positional_embedding"] = stretched(state["positional_embedding"], (4, 4), (5, 8))
    large.load_state_dict(state)
    images, tower = draw(2, 3, 40, 64), ViTTower(small)
    torch.testing.assert_close(tower.pool(tower.features(images)), F.normalize(large(images), dim=-1))


def test_a_resnet_at_another_size_is_that_resnet_with_its_positions_stretched():
    small = visual("resnet")
    large = copy.deepcopy(small)
    positions = stretched(small.attnpool.positional_embedding, (2, 2), (3, 5))
    large.attnpool.positional_embedding = nn.Parameter(positions)
    images, tower = draw(1, 3, 96, 160), ResNetTower(small)
    torch.testing.assert_close(tower.pool(tower.features(images)), F.normalize(large(images), dim=-1))


def test_maps_are_as_high_and_wide_as_the_picture(kind, tower):
    h, w = SIZES[kind]
    features = tower.features(draw(2, 3, h, w))
    size = (2, h // tower.stride, w // tower.stride)
    assert tower.weigh(features, torch.ones_like(features)).shape == size
    dense = tower.dense(features)
    assert dense.shape == (*size, 24)
    torch.testing.assert_close(dense.norm(dim=-1), torch.ones(size, dtype=torch.float64))


def test_positions_keep_their_place(kind, tower):
    """A change in the picture's bottom right corner moves the vectors there most."""
    h, w = SIZES[kind]
    images = draw(1, 3, h, w)
    changed = images.clone()
    changed[:, :, -tower.stride :, -tower.stride :] += 3
    moved = (tower.dense(tower.features(changed)) - tower.dense(tower.features(images))).norm(dim=-1)[0]
    assert moved.argmax() == moved.numel() - 1


def test_a_vits_dense_vectors_are_those_of_a_patch_that_sees_itself_alone():
    """Attention over one token gives its value, projected: no share of it goes elsewhere."""
    built = visual("vit")
    tower, attention = ViTTower(built), built.transformer.resblocks[-1].attn
    features = tower.features(draw(1, 3, 32, 32))
    alone = features[:, 1:].reshape(16, 1, 32)
    expected = built.ln_post(attention(alone, alone, alone)[0]) @ built.proj
    torch.testing.assert_close(tower.dense(features).view(16, 1, -1), F.normalize(expected, dim=-1))


def test_a_vit_weighs_its_patches_alone():
    tower = ViTTower(visual("vit"))
    features, gradient = draw(1, 3, 2, 5), torch.zeros(1, 3, 2, 5, dtype=torch.float64)
    gradient[:, 0] = 7  # the class token's row
    assert not tower.weigh(features, gradient).any()
    gradient[:, 1, 0, 3] = 4  # a mean of 1 over the four patches, in channel 3
    torch.testing.assert_close(tower.weigh(features, gradient), features[:, 1:, :, 3])


def test_stretched_positions():
    whole, columns = torch.tensor([[5.0]]), torch.tensor([0.0, 1, 2] * 2).unsqueeze(1)
    embedding = torch.cat([whole, columns])
    assert stretched(embedding, (2, 3), (2, 3)) is embedding
    grid = stretched(embedding, (2, 3), (4, 6))
    assert grid[0] == 5
    rows = grid[1:].view(4, 6)
    assert (rows[0] == rows).all()
    assert (rows.diff(dim=1) > 0).all()


@pytest.mark.parametrize(
    "vision", [{"attentional_pool": True, "attn_pooler_heads": 4}, {"pool_type": "avg"}, {"block_type": "custom"}]
)
def test_other_vits_are_refused(vision):
    with pytest.raises(InputError, match=r"RN50.*ViT-B-16.*VisionTransformer"):
        open_tower(visual("vit", **vision))


def test_other_networks_are_refused():
    with pytest.raises(InputError, match=r"another kind \(Identity\)"):
        open_tower(nn.Identity())
