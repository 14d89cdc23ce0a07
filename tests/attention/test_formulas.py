"""Each method against an independent implementation of its formula, or timm's module with the same weights."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from eca_hub.attention import ATTENTIONS
from eca_hub.attention.augmented_conv import AugmentedConv
from eca_hub.attention.cbam import CBAM
from eca_hub.attention.double_attention import DoubleAttention
from eca_hub.attention.global_context import GlobalContext
from eca_hub.attention.later_methods import SRM, SimAM
from eca_hub.attention.non_local import NonLocal
from eca_hub.attention.se import SE, SEGC, SEGC1, SEGC2, SEGC3, SEVar1, SEVar2, SEVar3
from eca_hub.attention.second_order import SecondOrder
from eca_hub.errors import InvalidConfig


@pytest.fixture(name="x_NCHW")
def random_map() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 32, 5, 4)


def randomized(layer: nn.Module) -> nn.Module:
    """Fresh weights everywhere, so that nothing starts at zero or as the identity."""
    for number, parameter in enumerate(layer.parameters()):
        torch.manual_seed(number)
        parameter.data.normal_(std=0.3)
    return layer.eval()


@pytest.mark.parametrize("bias", [False, True])
def test_se_is_timms_se(x_NCHW: Tensor, bias: bool) -> None:
    from timm.layers.squeeze_excite import SEModule

    theirs, ours = SEModule(32, rd_channels=2, bias=bias), SE(32, bias=bias)
    weights = {name: tensor.flatten(1) if tensor.ndim == 4 else tensor for name, tensor in theirs.state_dict().items()}
    ours.load_state_dict(weights)
    torch.testing.assert_close(ours(x_NCHW), theirs(x_NCHW))


@pytest.mark.parametrize("layer", [SEVar1(32), SEVar2(32), SEVar3(32), SEGC1(32), SEGC2(32), SEGC3(32), SEGC(32, 4)])
def test_the_variants_of_se_multiply_the_means_by_a_matrix(x_NCHW: Tensor, layer: nn.Module) -> None:
    weights = [parameter.detach() for parameter in layer.parameters()]
    matrix_CC = torch.eye(32)
    if weights:
        rows = weights[0].reshape(32, -1)
        size = rows.shape[1]
        matrix_CC = torch.zeros(32, 32)
        for row, values in enumerate(rows):
            matrix_CC[row, row // size * size : row // size * size + size] = values
    expected_NCHW = x_NCHW * torch.sigmoid(x_NCHW.mean((2, 3)) @ matrix_CC.T)[:, :, None, None]
    torch.testing.assert_close(layer(x_NCHW), expected_NCHW)


def test_cbam_is_timms_cbam(x_NCHW: Tensor) -> None:
    from timm.layers.cbam import CbamModule

    theirs, ours = randomized(CbamModule(32)), randomized(CBAM(32))
    weights = theirs.state_dict()
    ours.load_state_dict(
        {
            "fc1.weight": weights["channel.fc1.weight"].flatten(1),
            "fc2.weight": weights["channel.fc2.weight"].flatten(1),
            # The authors put the maximum before the mean, timm the mean before the maximum.
            "conv.weight": weights["spatial.conv.conv.weight"].flip(1),
            **{
                f"norm.{name}": weights[f"spatial.conv.bn.{name}"]
                for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
            },
        }
    )
    torch.testing.assert_close(ours(x_NCHW), theirs(x_NCHW))


def test_cbam_with_bias_is_the_authors_formula(x_NCHW: Tensor) -> None:
    layer = randomized(CBAM(32, bias=True))
    weights = layer.state_dict()

    def mlp(pooled_NC: Tensor) -> Tensor:
        hidden = functional.relu(functional.linear(pooled_NC, weights["fc1.weight"], weights["fc1.bias"]))
        return functional.linear(hidden, weights["fc2.weight"], weights["fc2.bias"])

    pooled = functional.adaptive_avg_pool2d(x_NCHW, 1).flatten(1), functional.adaptive_max_pool2d(x_NCHW, 1).flatten(1)
    z_NCHW = x_NCHW * torch.sigmoid(mlp(pooled[0]) + mlp(pooled[1]))[:, :, None, None]
    planes = torch.stack([z_NCHW.max(1).values, z_NCHW.mean(1)], 1)
    logits = functional.conv2d(planes, weights["conv.weight"], padding=3) / math.sqrt(1 + 1e-5)
    gate = torch.sigmoid(logits * weights["norm.weight"] + weights["norm.bias"])
    torch.testing.assert_close(layer(x_NCHW), z_NCHW * gate)


def test_global_context_is_timms_with_addition(x_NCHW: Tensor) -> None:
    from timm.layers.global_context import GlobalContext as Theirs

    theirs, ours = (
        randomized(Theirs(32, fuse_add=True, fuse_scale=False, rd_ratio=1 / 16)),
        randomized(GlobalContext(32)),
    )
    weights = theirs.state_dict()
    ours.load_state_dict(
        {
            "attend.weight": weights["conv_attn.weight"],
            "attend.bias": weights["conv_attn.bias"],
            "conv1.weight": weights["mlp_add.fc1.weight"],
            "conv1.bias": weights["mlp_add.fc1.bias"],
            "norm.weight": weights["mlp_add.norm.weight"].reshape(2, 1, 1),
            "norm.bias": weights["mlp_add.norm.bias"].reshape(2, 1, 1),
            "conv2.weight": weights["mlp_add.fc2.weight"],
            "conv2.bias": weights["mlp_add.fc2.bias"],
        }
    )
    # timm's norm has another epsilon, and a norm over two channels is sensitive to it.
    ours.norm.eps = theirs.mlp_add.norm.eps  # type: ignore[union-attr]
    torch.testing.assert_close(ours(x_NCHW), theirs(x_NCHW))


def matrix(layer: nn.Module, name: str) -> Tensor:
    """The weights of a 1x1 convolution as a matrix."""
    weight: Tensor = layer.state_dict()[f"{name}.weight"]
    return weight.flatten(1)


@pytest.mark.parametrize("scaled", [False, True])
def test_non_local_mixes_all_positions(x_NCHW: Tensor, scaled: bool) -> None:
    layer = randomized(NonLocal(32, scaled=scaled))
    weights = layer.state_dict()
    for image_CHW, result_CHW in zip(x_NCHW, layer(x_NCHW), strict=True):
        x_CL = image_CHW.flatten(1)
        query, key, value = (matrix(layer, n) @ x_CL + weights[f"{n}.bias"][:, None] for n in ("query", "key", "value"))
        y_CL = x_CL.clone()
        for i in range(x_CL.shape[1]):
            similarity_L = query[:, i] @ key / (math.sqrt(16) if scaled else 1)
            mixed_D = (value * similarity_L.softmax(0)).sum(1)
            y_CL[:, i] += matrix(layer, "out") @ mixed_D + weights["out.bias"]
        torch.testing.assert_close(result_CHW.flatten(1), y_CL)


def test_double_attention_gathers_and_distributes(x_NCHW: Tensor) -> None:
    layer = randomized(DoubleAttention(32))
    for image_CHW, result_CHW in zip(x_NCHW, layer(x_NCHW), strict=True):
        x_CL = image_CHW.flatten(1)
        gather_BL = (matrix(layer, "gather") @ x_CL).exp()
        gather_BL /= gather_BL.sum(1, keepdim=True)
        weights_BL = (matrix(layer, "distribute") @ x_CL).exp()
        weights_BL /= weights_BL.sum(0, keepdim=True)
        mixed_ML = matrix(layer, "feature") @ x_CL @ gather_BL.T @ weights_BL
        torch.testing.assert_close(result_CHW.flatten(1), x_CL + matrix(layer, "out") @ mixed_ML)


def test_second_order_gates_by_the_covariance(x_NCHW: Tensor) -> None:
    layer = randomized(SecondOrder(32, num_reduced=6))
    weights = layer.state_dict()
    for image_CHW, result_CHW in zip(x_NCHW, layer(x_NCHW), strict=True):
        z_DL = matrix(layer, "reduce") @ image_CHW.relu().flatten(1) + weights["reduce.bias"][:, None]
        z_DL = (z_DL / math.sqrt(1 + 1e-5) * weights["norm.weight"][:, None] + weights["norm.bias"][:, None]).relu()
        covariance_DD = torch.cov(z_DL, correction=0) / math.sqrt(1 + 1e-5)
        covariance_DD = covariance_DD * weights["row_norm.weight"][:, None] + weights["row_norm.bias"][:, None]
        rows = weights["rows.weight"].reshape(6, 4, 6) @ covariance_DD[:, :, None]
        logits_C = matrix(layer, "out") @ (rows.flatten() + weights["rows.bias"]) + weights["out.bias"]
        torch.testing.assert_close(result_CHW, image_CHW * logits_C.sigmoid()[:, None, None])


def test_augmented_conv_attends_with_relative_positions(x_NCHW: Tensor) -> None:
    layer = AugmentedConv(32, num_heads=2, map_size_px=5)
    image_CHW, weights = x_NCHW[:1], layer.state_dict()
    qkv_CL = (matrix(layer, "query_key_value") @ image_CHW[0].flatten(1)).split_with_sizes([40, 40, 4])
    heads = []
    for q_DL, k_DL, v_DL in zip(*(part.chunk(2) for part in qkv_CL), strict=True):
        mixed_DL = torch.empty_like(v_DL)
        for i in range(20):
            logits = []
            for j in range(20):
                along = weights["along_width"][j % 4 - i % 4 + 4] + weights["along_height"][j // 4 - i // 4 + 4]
                logits.append(q_DL[:, i] @ (k_DL[:, j] + along) / math.sqrt(20))
            mixed_DL[:, i] = v_DL @ torch.stack(logits).softmax(0)
        heads.append(mixed_DL)
    attended_CL = matrix(layer, "project") @ torch.cat(heads)
    y_NCHW = layer(image_CHW)
    torch.testing.assert_close(y_NCHW[0, :28], functional.conv2d(image_CHW, weights["conv.weight"], padding=1)[0])
    torch.testing.assert_close(y_NCHW[0, 28:].flatten(1), attended_CL)


def test_augmented_conv_halves_the_map_as_the_convolution_does() -> None:
    for size in (7, 8):
        layer = AugmentedConv(32, in_channels=16, stride=2)
        assert layer(torch.randn(1, 16, size, size)).shape == (1, 32, 4, 4)


def test_a_larger_map_shares_the_farthest_distance() -> None:
    assert AugmentedConv(32, map_size_px=3)(torch.randn(1, 32, 9, 6)).shape == (1, 32, 9, 6)


def test_simam_and_srm_are_their_formulas(x_NCHW: Tensor) -> None:
    mean, variance = x_NCHW.mean((2, 3), keepdim=True), x_NCHW.var((2, 3), keepdim=True)
    energy = (x_NCHW - mean) ** 2 / (4 * (variance + 1e-4)) + 0.5
    torch.testing.assert_close(SimAM(32)(x_NCHW), x_NCHW * energy.sigmoid())
    layer = SRM(32).eval()
    weight_C2 = layer.conv.weight[:, 0]
    style = weight_C2[:, 0] * mean.flatten(1) + weight_C2[:, 1] * (x_NCHW.var((2, 3), correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(layer(x_NCHW), x_NCHW * (style / math.sqrt(1 + 1e-5)).sigmoid()[:, :, None, None])


@pytest.mark.parametrize("name", ["a2", "nl", "gc"])
def test_a_block_that_adds_starts_as_the_identity(x_NCHW: Tensor, name: str) -> None:
    assert torch.equal(ATTENTIONS[name](32)(x_NCHW), x_NCHW)


@pytest.mark.parametrize(("name", "channels"), [("se_gc1", 24), ("se_gc1", 8), ("se_gc2", 24), ("se_gc3", 12)])
def test_channels_that_do_not_divide_into_groups_are_refused(name: str, channels: int) -> None:
    with pytest.raises(InvalidConfig, match=f"{channels} channels cannot be divided into"):
        ATTENTIONS[name](channels)


@pytest.mark.parametrize("name", ["se", "cbam", "gc"])
def test_fewer_channels_than_the_reduction_are_refused(name: str) -> None:
    with pytest.raises(InvalidConfig, match="of 8 channels it must leave 1 or more"):
        ATTENTIONS[name](8)


def test_other_invalid_options_are_refused() -> None:
    for make in (
        lambda: CBAM(32, kernel_size=4),
        lambda: AugmentedConv(8),
        lambda: AugmentedConv(32, num_heads=0),
        lambda: SecondOrder(32, num_reduced=0),
        lambda: SE(32, reduction=0),
    ):
        with pytest.raises(InvalidConfig):
            make()
