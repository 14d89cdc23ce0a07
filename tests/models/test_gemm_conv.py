"""Convolutions whose weight gradient is one matrix product."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from eca_hub.models.gemm_conv import GemmConv2d, use_gemm_gradients
from eca_hub.train.module import ImageClassifier


def conv(in_channels: int = 256, out_channels: int = 256, **options: object) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False, **options)  # type: ignore[arg-type]


def gradients(model: nn.Module, images_NCHW: Tensor) -> list[Tensor]:
    images_NCHW = images_NCHW.clone().requires_grad_()
    outputs = model(images_NCHW)
    weights = [each for each in model.parameters() if each.requires_grad]
    return [outputs, *torch.autograd.grad((outputs * outputs.detach().cos()).sum(), [images_NCHW, *weights])]


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 5), (7, 7)])
@pytest.mark.parametrize("stride", [1, 2, (2, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_outputs_and_gradients_are_those_of_torch(
    size: tuple[int, int], stride: int | tuple[int, int], layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    theirs = conv(stride=stride).to(memory_format=layout)
    ours = GemmConv2d(theirs)
    images_NCHW = torch.randn(5, 256, *size).contiguous(memory_format=layout)
    is_ours = "_Convolution" in type(ours(images_NCHW).grad_fn).__name__
    assert is_ours
    for found, expected in zip(gradients(ours, images_NCHW), gradients(theirs, images_NCHW), strict=True):
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_only_plain_3x3_convolutions_of_many_channels_are_replaced() -> None:
    others = [
        conv(128, 128),
        conv(groups=2),
        conv(dilation=2),
        conv(padding_mode="circular"),
        nn.Conv2d(256, 256, 1, bias=False),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.Conv2d(256, 256, 3, bias=False),
    ]
    inner = nn.Sequential(conv(256, 512))
    model = nn.Sequential(conv(), inner, *others)
    weights = dict(model.named_parameters())
    assert use_gemm_gradients(model) is model
    assert [isinstance(each, GemmConv2d) for each in (model[0], inner[0], *model[2:])] == [True] * 2 + [False] * 7
    found = dict(model.named_parameters())
    assert list(found) == list(weights)
    assert all(found[name] is weight for name, weight in weights.items())


@pytest.mark.parametrize("case", ["large maps", "float64", "autocast", "frozen", "no gradients"])
def test_torch_computes_what_one_product_is_not_meant_for(case: str) -> None:
    layer = GemmConv2d(conv())
    images_NCHW = torch.randn(1, 256, 8 if case == "large maps" else 4, 8).requires_grad_()
    if case == "float64":
        layer, images_NCHW = layer.double(), images_NCHW.double()
    layer.weight.requires_grad_(case != "frozen")
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"),
        torch.set_grad_enabled(case != "no gradients"),
    ):
        outputs = layer(images_NCHW)
    assert "_Convolution" not in type(outputs.grad_fn).__name__
    assert outputs.shape == images_NCHW.shape


def test_a_classifier_trains_as_without_it() -> None:
    options = {"architecture": "resnet18", "labels": ("cat", "dog"), "channels_last": True}
    torch.manual_seed(0)
    plain = ImageClassifier(**options)  # type: ignore[arg-type]
    torch.manual_seed(0)
    ours = ImageClassifier(**options, gemm_gradients=True)  # type: ignore[arg-type]
    assert sum(isinstance(each, GemmConv2d) for each in ours.modules()) == 7
    assert list(ours.state_dict()) == list(plain.state_dict())
    images_NCHW = torch.randn(4, 3, 32, 32)
    found, expected = (
        torch.autograd.grad(
            functional.cross_entropy(each.model(images_NCHW), torch.tensor([0, 1, 1, 0])), [*each.model.parameters()]
        )
        for each in (ours, plain)
    )
    for ours_grad, plain_grad in zip(found, expected, strict=True):
        torch.testing.assert_close(ours_grad, plain_grad, rtol=1e-3, atol=1e-5)
