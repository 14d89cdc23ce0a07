"""The fast implementations of ECA compute what its layers compute, and never change their input."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from eca_hub.attention.cpu_kernel import fused as fused
from eca_hub.attention.cpu_kernel.dispatch import is_eager, is_supported
from eca_hub.attention.cpu_kernel.operations import correlate
from eca_hub.attention.eca import ECA

SHAPES = [(1, 16, 3, 3), (2, 16, 1, 1), (3, 40, 5, 4), (9, 512, 2, 3)]


@pytest.fixture(params=[torch.contiguous_format, torch.channels_last])
def memory_format(request: pytest.FixtureRequest) -> torch.memory_format:
    chosen: torch.memory_format = request.param
    return chosen


@pytest.fixture(params=[False, True], ids=["torch", "kernel"], autouse=True)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param and not fused.is_built:
        pytest.skip("eca-hub was installed without a C compiler")
    monkeypatch.setattr(fused, "is_built", request.param)


def by_layers(layer: ECA, x_NCHW: Tensor) -> Tensor:
    gate_N1C: Tensor = layer.conv(x_NCHW.mean((2, 3)).unsqueeze(1)).sigmoid()
    return x_NCHW * gate_N1C.squeeze(1)[:, :, None, None]


@pytest.mark.parametrize("shape", [(1, 5), (2, 16), (9, 600)])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_correlation_is_a_convolution_of_one_channel(shape: tuple[int, int], size: int) -> None:
    conv, values_NC = nn.Conv1d(1, 1, size, padding=size // 2, bias=False), torch.randn(shape)
    torch.testing.assert_close(correlate(values_NC, conv.weight), conv(values_NC.unsqueeze(1)).squeeze(1))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_map_and_its_gradients_are_those_of_the_layers(
    shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    layer = ECA(shape[1], kernel_size=5).to(dtype)
    x_NCHW = torch.randn(shape, dtype=dtype).contiguous(memory_format=memory_format)
    dy_NCHW = torch.randn_like(x_NCHW)
    results = []
    for compute in (layer, lambda x: by_layers(layer, x)):
        leaf_NCHW = x_NCHW.clone().requires_grad_()
        y_NCHW = compute(leaf_NCHW)
        results.append((y_NCHW, *torch.autograd.grad(y_NCHW, (leaf_NCHW, layer.conv.weight), dy_NCHW)))
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)
    assert results[0][1].is_contiguous(memory_format=memory_format)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x_NCHW), results[1][0])


def test_second_derivatives_are_right() -> None:
    layer = ECA(6, kernel_size=3).double()
    x_NCHW = torch.randn(2, 6, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x_NCHW)
    assert torch.autograd.gradgradcheck(layer, x_NCHW)


@pytest.mark.parametrize("shape", [(1, 16, 9, 9), (2, 16, 3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_of_gradients_gives_what_each_of_them_gives(
    shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    layer = ECA(shape[1]).to(dtype)
    x_NCHW = torch.randn(shape, dtype=dtype).contiguous(memory_format=memory_format).requires_grad_()
    y_NCHW, dy_BNCHW = layer(x_NCHW), torch.randn(3, *shape, dtype=dtype)
    leaves = (x_NCHW, layer.conv.weight)
    one_by_one = [torch.autograd.grad(y_NCHW, leaves, dy_NCHW, retain_graph=True) for dy_NCHW in dy_BNCHW]
    for create_graph in (False, True):
        together = torch.autograd.grad(
            y_NCHW, leaves, dy_BNCHW, retain_graph=True, create_graph=create_graph, is_grads_batched=True
        )
        torch.testing.assert_close(together, tuple(map(torch.stack, zip(*one_by_one, strict=True))))


def test_only_the_weight_or_only_the_map_may_require_a_gradient() -> None:
    layer, x_NCHW = ECA(16), torch.randn(2, 16, 3, 3)
    (by_weight,) = torch.autograd.grad(layer(x_NCHW).sum(), layer.conv.weight)
    (expected,) = torch.autograd.grad(by_layers(layer, x_NCHW).sum(), layer.conv.weight)
    torch.testing.assert_close(by_weight, expected)
    layer.requires_grad_(False)
    assert not layer(x_NCHW).requires_grad
    assert layer(x_NCHW.requires_grad_()).requires_grad


def test_traced_and_cast_tensors_go_through_the_layers() -> None:
    x_NCHW, weight_11k = torch.randn(2, 8, 3, 3), torch.randn(1, 1, 3)
    assert is_eager(x_NCHW)
    assert is_supported(x_NCHW, weight_11k)
    assert not is_supported(x_NCHW.half(), weight_11k.half())
    assert not is_supported(x_NCHW, weight_11k.double())
    assert not is_eager(x_NCHW.to("meta"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert is_supported(x_NCHW, weight_11k) == fused.is_built
        assert ECA(8)(x_NCHW).shape == x_NCHW.shape
    assert "conv" in str(torch.fx.symbolic_trace(ECA(8)).graph)


def test_tensors_under_a_dispatch_mode_go_through_the_layers() -> None:
    layer, x_NCHW = ECA(16), torch.randn(2, 16, 3, 3)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        assert not is_eager(x_NCHW)
        layer(x_NCHW)
    assert counter.get_total_flops() == 2 * 2 * 16 * 3
