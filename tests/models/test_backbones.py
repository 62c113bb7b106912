import pytest
import torch
from torch import nn

from imrseg.models.backbones import hsnet_backbone
from imrseg.models.pfenet import pfenet_backbone


@pytest.mark.parametrize(
    ("build", "name", "side"),
    [(hsnet_backbone, "resnet50", 96), (hsnet_backbone, "vgg16", 96), (pfenet_backbone, "resnet50", 97)],
)
def test_fused_backbones_give_the_same(build, name, side):
    torch.manual_seed(0)
    backbone = build(name).double()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.uniform_(tensor, -0.5, 0.5)
    images = torch.randn(2, 3, side, side, dtype=torch.float64)
    with torch.inference_mode():
        expected = backbone(images)
        fused = backbone.fuse()
        assert fused is backbone
        assert not any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
        for got, wanted in zip(fused(images), expected, strict=True):
            torch.testing.assert_close(got, wanted)
        again = backbone.fuse()(images)  # nothing is folded twice
    torch.testing.assert_close(again[-1], expected[-1])
