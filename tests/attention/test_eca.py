"""ECA against the paper's equations, and the rule for the kernel."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from eca_hub.attention.eca import ECA, ECANS, kernel_size_for
from eca_hub.errors import InvalidConfig

RULE = {16: 3, 24: 3, 32: 3, 64: 3, 96: 3, 128: 5, 160: 5, 192: 5, 256: 5, 320: 5, 384: 5, 512: 5, 576: 5, 960: 5,
        1024: 5, 1280: 5, 2048: 7}  # fmt: skip


@pytest.mark.parametrize(("channels", "size"), RULE.items())
def test_the_rule_gives_the_sizes_of_figure_3(channels: int, size: int) -> None:
    assert kernel_size_for(channels) == size


@given(channels=st.integers(16, 2**20), gamma=st.floats(0.5, 8), b=st.floats(-4, 4))
def test_the_rule_gives_an_odd_size_next_to_its_formula(channels: int, gamma: float, b: float) -> None:
    size = kernel_size_for(channels, gamma, b)
    assert size % 2 == 1
    assert abs(size - abs((math.log2(channels) + b) / gamma)) <= 1


def test_the_rule_never_shrinks_as_channels_grow() -> None:
    sizes = [kernel_size_for(channels) for channels in range(1, 4097)]
    assert sizes == sorted(sizes)


def test_the_linear_mapping_takes_the_channels_themselves() -> None:
    assert kernel_size_for(9, mapping="linear") == 5
    assert kernel_size_for(64, gamma=16, b=0, mapping="linear") == 5


@pytest.mark.parametrize(
    "wrong", [{"channels": 0}, {"gamma": 0.0}, {"gamma": math.nan}, {"b": math.inf}, {"mapping": "log"}]
)
def test_a_rule_that_cannot_work_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidConfig):
        kernel_size_for(**{"channels": 64, **wrong})  # type: ignore[arg-type]


def gate_by_loop(x_NCHW: Tensor, kernel_CK: Tensor) -> Tensor:
    """Equation 7 and 9, one channel at a time: each sees k neighbors, and zeros beyond the ends."""
    mean_NC, half = x_NCHW.mean((2, 3)), kernel_CK.shape[1] // 2
    y_NCHW = torch.empty_like(x_NCHW)
    for c in range(x_NCHW.shape[1]):
        near = range(max(0, c - half), min(x_NCHW.shape[1], c + half + 1))
        logit_N = sum((kernel_CK[c, n - c + half] * mean_NC[:, n] for n in near), torch.zeros(len(x_NCHW)))
        y_NCHW[:, c] = x_NCHW[:, c] * torch.sigmoid(logit_N)[:, None, None]
    return y_NCHW


@given(
    images=st.integers(1, 3),
    channels=st.integers(1, 40),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    half=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_eca_is_equation_9(images: int, channels: int, height: int, width: int, half: int, seed: int) -> None:
    torch.manual_seed(seed)
    x_NCHW = torch.randn(images, channels, height, width)
    layer = ECA(channels, kernel_size=2 * half + 1)
    expected_NCHW = gate_by_loop(x_NCHW, layer.conv.weight[0].expand(channels, -1))
    torch.testing.assert_close(layer(x_NCHW), expected_NCHW)


def test_eca_ns_is_equation_7() -> None:
    x_NCHW = torch.randn(2, 12, 3, 4)
    for size in (1, 3, 5):
        layer = ECANS(12, kernel_size=size)
        torch.testing.assert_close(layer(x_NCHW), gate_by_loop(x_NCHW, layer.conv.weight[:, 0]))


def test_eca_ns_with_one_kernel_for_all_is_eca() -> None:
    x_NCHW, shared, own = torch.randn(2, 12, 3, 4), ECA(12, kernel_size=5), ECANS(12, kernel_size=5)
    own.conv.weight.data.copy_(shared.conv.weight.expand(12, 1, 5))
    torch.testing.assert_close(own(x_NCHW), shared(x_NCHW))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_eca_is_timms_layer(dtype: torch.dtype) -> None:
    from timm.layers.eca import EcaModule

    theirs, ours = EcaModule(256).to(dtype), ECA(256).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    x_NCHW = torch.randn(3, 256, 7, 5).to(dtype)
    torch.testing.assert_close(ours(x_NCHW), theirs(x_NCHW))
    with torch.no_grad():
        torch.testing.assert_close(ours(x_NCHW), theirs(x_NCHW))


def test_eca_backward_is_timms_backward() -> None:
    from timm.layers.eca import EcaModule

    theirs, ours = EcaModule(64).double(), ECA(64).double()
    ours.load_state_dict(theirs.state_dict())
    grads = []
    for layer in (theirs, ours):
        x_NCHW = torch.linspace(-2, 3, 2 * 64 * 20, dtype=torch.float64).reshape(2, 64, 4, 5).requires_grad_()
        (layer(x_NCHW) ** 2).sum().backward()
        grads.append((x_NCHW.grad, layer.conv.weight.grad))
    torch.testing.assert_close(grads[0], grads[1])


def test_channels_in_reverse_with_the_kernel_in_reverse_give_the_map_in_reverse() -> None:
    layer, mirrored = ECA(16, kernel_size=5), ECA(16, kernel_size=5)
    mirrored.conv.weight.data.copy_(layer.conv.weight.flip(2))
    x_NCHW = torch.randn(2, 16, 3, 3)
    torch.testing.assert_close(mirrored(x_NCHW.flip(1)), layer(x_NCHW).flip(1))


def test_a_channel_reaches_only_its_neighbors() -> None:
    layer = ECA(16, kernel_size=5)
    mean_NC = torch.randn(1, 16, requires_grad=True)
    layer(mean_NC[:, :, None, None])[0, 8].sum().backward()
    assert mean_NC.grad is not None
    assert mean_NC.grad[0].nonzero().flatten().tolist() == [6, 7, 8, 9, 10]


@pytest.mark.parametrize("layer", [ECA, ECANS])
@pytest.mark.parametrize("size", [0, 2, -1, -3, 4097, 10**13 + 1, 10**20 + 1, 3.0, "3", True])
def test_a_kernel_without_a_center_or_beyond_all_maps_is_refused(layer: type[ECA] | type[ECANS], size: Any) -> None:
    with pytest.raises(InvalidConfig, match=f"kernel_size is {size!r}; .* odd size"):
        layer(64, kernel_size=size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": "64"}, "channels is '64'"),
        ({"channels": 64.0}, "channels is 64.0"),
        ({"channels": 0}, "channels is 0"),
        ({"gamma": "2"}, "gamma '2'"),
        ({"gamma": -1.0}, "gamma -1.0"),
        ({"b": float("inf")}, "b inf"),
        ({"b": 10**400}, "b 1000"),
        ({"mapping": "log"}, "mapping is 'log'; it must be one of exponential, linear"),
        ({"gamma": 1e-12}, "a kernel of 7000000000000; at most 4095 is allowed"),
        ({"gamma": 1e-320}, "a kernel of inf; at most 4095 is allowed"),
        ({"b": 1e300}, "at most 4095 is allowed"),
    ],
)
def test_a_rule_that_gives_no_kernel_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        kernel_size_for(**{"channels": 64, **options})


def test_the_input_is_not_changed() -> None:
    x_NCHW = torch.randn(2, 8, 4, 4)
    before_NCHW = x_NCHW.clone()
    layer = ECA(8)
    for context in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with context:
            layer(x_NCHW)
    assert torch.equal(x_NCHW, before_NCHW)
