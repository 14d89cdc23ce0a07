"""Weights of EfficientNet-Lite0 in ECA-MobileNetV2, and what a release stores."""

import dataclasses

import pytest
import torch
from torch import nn

from eca_hub.errors import InvalidConfig
from eca_hub.models.build import build_model
from eca_hub.models.config import ImageConfig, ModelConfig
from experiments.make_release import halve, interval
from experiments.select_weights import TEACHER, select_weights

LITE0 = ModelConfig(TEACHER, "none", {}, ("apple", "pear"), ImageConfig(64, 64))


@pytest.fixture(scope="module")
def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    teacher = build_model(LITE0)
    for norm in teacher.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
    student, config = select_weights(teacher, LITE0)
    assert (config.architecture, config.attention, config.labels) == ("mobilenet_v2", "eca", LITE0.labels)
    return teacher, student


def test_layers_of_the_same_shape_are_copied(networks: tuple[nn.Module, nn.Module]) -> None:
    teacher, student = (network.state_dict() for network in networks)
    for mine, its in (
        ("features.0.0.weight", "conv_stem.weight"),
        ("features.2.conv.0.0.weight", "blocks.1.0.conv_pw.weight"),
        ("features.3.conv.2.weight", "blocks.1.1.conv_pwl.weight"),
        ("features.18.1.weight", "bn2.weight"),
        ("classifier.1.weight", "classifier.weight"),
    ):
        assert torch.equal(student[mine], teacher[its]), mine


def test_gates_start_at_one_half_and_the_norms_before_them_are_doubled(
    networks: tuple[nn.Module, nn.Module],
) -> None:
    teacher, student = (network.state_dict() for network in networks)
    kernels = [tensor for name, tensor in student.items() if name.endswith(".conv.weight") and tensor.ndim == 3]
    assert len(kernels) == 17
    assert all(not kernel.any() for kernel in kernels)
    assert torch.equal(student["features.3.conv.3.weight"], 2 * teacher["blocks.1.1.bn3.weight"])


def test_a_kernel_of_5_is_cropped_and_channels_are_chosen(networks: tuple[nn.Module, nn.Module]) -> None:
    teacher, student = (network.state_dict() for network in networks)
    chosen_CHW = student["features.4.conv.1.0.weight"][:, 0]
    all_CHW = teacher["blocks.2.0.conv_dw.weight"][:, 0, 1:-1, 1:-1]
    assert all((all_CHW == each).all((1, 2)).any() for each in chosen_CHW)


def test_a_block_that_lite0_lacks_is_the_identity(networks: tuple[nn.Module, nn.Module]) -> None:
    _, student = networks
    block = student.get_submodule("features.6")
    x_NCHW = torch.randn(2, 32, 8, 8)
    assert torch.equal(block(x_NCHW), x_NCHW)


def test_another_network_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="they must be those of tf_efficientnet_lite0"):
        select_weights(nn.Identity(), dataclasses.replace(LITE0, architecture="resnet18"))


def test_norms_keep_full_precision() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    halve(model)
    assert {name: tensor.dtype for name, tensor in model.state_dict().items()} == {
        "0.weight": torch.float16,
        **dict.fromkeys(["0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"], torch.float32),
        "1.num_batches_tracked": torch.int64,
    }


def test_the_interval_of_a_share_is_wilsons() -> None:
    # Newcombe, Statistics in Medicine 17, 1998, table I: 81 of 263.
    assert interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
