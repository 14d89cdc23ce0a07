"""The compiled kernel computes the equations and their gradients, and declines tensors that it cannot read."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from eca_hub.attention.cpu_kernel import dispatch as dispatch
from eca_hub.attention.cpu_kernel import fused as fused
from eca_hub.attention.eca import ECA

FORMATS = [torch.contiguous_format, torch.channels_last]
SHAPES = [(1, 3, 1, 1), (1, 40, 5, 4), (2, 16, 1, 1), (3, 70, 9, 11), (5, 16, 41, 51), (1, 600, 14, 14)]

needs_kernel = pytest.mark.skipif(not fused.is_built, reason="eca-hub was installed without a C compiler")


def map_of(shape: tuple[int, ...], memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=memory_format)


def by_equations(x_NCHW: Tensor, weight_11k: Tensor) -> Tensor:
    mean_N1C = x_NCHW.mean((2, 3)).unsqueeze(1)
    gate_N1C = torch.conv1d(mean_N1C, weight_11k, padding=weight_11k.shape[2] // 2).sigmoid()
    return x_NCHW * gate_N1C.squeeze(1)[:, :, None, None]


def with_gradients(compute: Any, x_NCHW: Tensor, weight_11k: Tensor, dy_NCHW: Tensor) -> list[Tensor]:
    leaves = [x_NCHW.clone().requires_grad_(), weight_11k.clone().requires_grad_()]
    y_NCHW = compute(*leaves)
    return [y_NCHW, *torch.autograd.grad(y_NCHW, leaves, dy_NCHW)]


@pytest.fixture(params=[1, pytest.param(2, marks=pytest.mark.slow), 3])
def num_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Number of threads, used even for the smallest map."""
    monkeypatch.setattr(fused, "_ELEMENTS_PER_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)
    count: int = request.param
    return count


@needs_kernel
@pytest.mark.parametrize(("shape", "size"), list(product(SHAPES, [1, 5, 9])))
@pytest.mark.parametrize("memory_format", FORMATS)
def test_the_kernel_computes_the_equations_and_their_gradients_with_any_number_of_threads(
    shape: tuple[int, ...], size: int, memory_format: torch.memory_format, num_threads: int
) -> None:
    torch.manual_seed(0)
    x_NCHW, weight_11k = map_of(shape, memory_format), torch.randn(1, 1, size)
    dy_NCHW = torch.randn_like(x_NCHW)
    assert fused.is_supported(x_NCHW, weight_11k)
    found = with_gradients(dispatch.rescale_channels, x_NCHW, weight_11k, dy_NCHW)
    expected = with_gradients(by_equations, x_NCHW.double(), weight_11k.double(), dy_NCHW.double())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, atol=2e-6, rtol=2e-5)
    assert found[0].stride() == found[1].stride() == x_NCHW.stride()
    y_NCHW = dispatch.rescale_channels(x_NCHW, weight_11k)
    assert torch.equal(y_NCHW, found[0])
    assert fused.forward(x_NCHW, weight_11k, x_NCHW) is x_NCHW
    assert torch.equal(x_NCHW, y_NCHW)


@needs_kernel
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("memory_format", FORMATS)
def test_in_bfloat16_only_the_results_are_rounded(
    shape: tuple[int, ...], memory_format: torch.memory_format, num_threads: int
) -> None:
    torch.manual_seed(0)
    x_NCHW, weight_11k = map_of(shape, memory_format).bfloat16(), torch.randn(1, 1, 3).bfloat16()
    dy_NCHW = torch.randn_like(x_NCHW)
    found = with_gradients(dispatch.rescale_channels, x_NCHW, weight_11k, dy_NCHW)
    expected = with_gradients(by_equations, x_NCHW.double(), weight_11k.double(), dy_NCHW.double())
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one, other.bfloat16(), atol=1e-6, rtol=2**-7)
    y_NCHW = fused.forward(x_NCHW, weight_11k, x_NCHW)
    assert torch.equal(y_NCHW, found[0])


@needs_kernel
def test_bfloat16_is_rounded_as_torch_rounds_it() -> None:
    # A gate of one half: what is written is half of what was read, denormals, infinities and NaN included.
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    x_NCHW = bits.view(torch.bfloat16).view(2**16, 1, 1, 1)
    y_NCHW = fused.forward(x_NCHW, torch.zeros(1, 1, 1).bfloat16(), torch.empty_like(x_NCHW))
    logits_N = x_NCHW.flatten().float() * 0
    expected_N = (x_NCHW.flatten().float() * logits_N.sigmoid()).bfloat16()
    torch.testing.assert_close(y_NCHW.flatten(), expected_N, equal_nan=True, atol=0, rtol=0)


@needs_kernel
def test_gates_are_right_for_extreme_logits_infinity_and_nan() -> None:
    logits_NC = torch.tensor([[-1e30, -200.0, -88.0, -20.0, 0.0, 20.0, 200.0, float("inf"), float("nan")]])
    ones_NCHW = logits_NC[:, :, None, None]
    _, (_, gate_NC) = fused.forward_with_saved(ones_NCHW, torch.ones(1, 1, 1))
    torch.testing.assert_close(gate_NC, logits_NC.sigmoid(), equal_nan=True, atol=1e-37, rtol=1e-6)


@needs_kernel
def test_results_are_deterministic_and_the_kernel_is_thread_safe() -> None:
    x_NCHW, weight_11k = map_of((2, 64, 30, 30)), torch.randn(1, 1, 3)
    once_NCHW = fused.forward(x_NCHW, weight_11k, torch.empty_like(x_NCHW))
    with ThreadPoolExecutor(4) as pool:
        again = pool.map(lambda _: fused.forward(x_NCHW, weight_11k, torch.empty_like(x_NCHW)), range(32))
        assert all(torch.equal(one_NCHW, once_NCHW) for one_NCHW in again)


@needs_kernel
def test_a_gradient_in_another_memory_format_is_converted() -> None:
    x_NCHW, weight_11k = map_of((2, 8, 5, 5)), torch.randn(1, 1, 3)
    for dy_NCHW in (torch.ones(()).expand(2, 8, 5, 5), map_of((2, 8, 5, 5), torch.channels_last)):
        found = with_gradients(dispatch.rescale_channels, x_NCHW, weight_11k, dy_NCHW)
        torch.testing.assert_close(found, with_gradients(by_equations, x_NCHW, weight_11k, dy_NCHW))


@needs_kernel
def test_second_derivatives_are_computed_by_torch() -> None:
    x_NCHW, weight_11k = map_of((2, 8, 5, 5)), torch.randn(1, 1, 3)

    def second_derivative(compute: Any) -> Tensor:
        leaf_NCHW = x_NCHW.clone().requires_grad_()
        (dx_NCHW,) = torch.autograd.grad(compute(leaf_NCHW, weight_11k).square().sum(), leaf_NCHW, create_graph=True)
        (again_NCHW,) = torch.autograd.grad(dx_NCHW.square().sum(), leaf_NCHW)
        return again_NCHW

    torch.testing.assert_close(second_derivative(dispatch.rescale_channels), second_derivative(by_equations))


def test_unsupported_tensors_are_declined() -> None:
    x_NCHW, weight_11k = map_of((2, 8, 6, 6)), torch.randn(1, 1, 3)
    assert fused.is_supported(x_NCHW, weight_11k) == fused.is_built
    assert not fused.is_supported(x_NCHW.double(), weight_11k.double())
    assert not fused.is_supported(x_NCHW, weight_11k.double())
    assert not fused.is_supported(x_NCHW[:, :, ::2], weight_11k)
    assert not fused.is_supported(x_NCHW.permute(0, 1, 3, 2), weight_11k)
    assert not fused.is_supported(x_NCHW[:0], weight_11k)
    assert not fused.is_supported(x_NCHW, weight_11k.to("meta"))


def test_traced_and_transformed_tensors_go_through_torch_operations() -> None:
    layer, x_NCHW = ECA(8), map_of((2, 8, 4, 4))
    by_torch_NCHW = by_equations(x_NCHW, layer.conv.weight)
    with torch.no_grad():
        many_NCHW = torch.func.vmap(layer)(torch.stack([x_NCHW, x_NCHW]))
        torch.testing.assert_close(many_NCHW[1], by_torch_NCHW)
        # torch warns of torch.jit, which it uses itself for tangents.
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            traced: Any = torch.jit.trace(layer, x_NCHW)  # type: ignore[no-untyped-call]
            tangent_NCHW = torch.func.jvp(layer, (x_NCHW,), (torch.ones_like(x_NCHW),))[1]
        assert "sigmoid" in str(traced.graph)
        assert tangent_NCHW.abs().min() > 0
    gradient_NCHW = torch.func.grad(lambda z_NCHW: layer(z_NCHW).sum())(x_NCHW)
    expected = with_gradients(by_equations, x_NCHW, layer.conv.weight.detach(), torch.ones_like(x_NCHW))
    torch.testing.assert_close(gradient_NCHW, expected[1])


def end_of_block(x_NCHW: Tensor, weight_11k: Tensor, shortcut_NCHW: Tensor) -> Tensor:
    return (by_equations(x_NCHW, weight_11k) + shortcut_NCHW).relu()


@needs_kernel
@pytest.mark.parametrize(("shape", "size"), list(product(SHAPES, [1, 5])))
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_end_of_a_residual_block_and_its_gradients_are_the_equations(
    shape: tuple[int, ...], size: int, memory_format: torch.memory_format, dtype: torch.dtype, num_threads: int
) -> None:
    torch.manual_seed(0)
    weight_11k = torch.randn(1, 1, size).to(dtype)
    x_NCHW, shortcut_NCHW, dy_NCHW = (map_of(shape, memory_format).to(dtype) for _ in range(3))
    leaves = [tensor.clone().requires_grad_() for tensor in (x_NCHW, weight_11k, shortcut_NCHW)]
    y_NCHW = dispatch.rescale_add_relu(*leaves)
    assert y_NCHW is not None
    found = [y_NCHW, *torch.autograd.grad(y_NCHW, leaves, dy_NCHW)]
    doubles = [tensor.detach().double().requires_grad_() for tensor in leaves]
    expected_NCHW = end_of_block(*doubles)
    # Where a sum is rounded to zero or from it, the gradient is that of the rounded result.
    dy_NCHW = dy_NCHW.double() * ((y_NCHW > 0) == (expected_NCHW > 0))
    found[1:] = torch.autograd.grad(dispatch.rescale_add_relu(*leaves), leaves, dy_NCHW.to(dtype))  # type: ignore[arg-type]
    expected = [expected_NCHW, *torch.autograd.grad(expected_NCHW, doubles, dy_NCHW)]
    atol, rtol = (1e-5, 2e-5) if dtype == torch.float32 else (1e-2, 2**-6)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, atol=atol, rtol=rtol)
    with torch.no_grad():
        assert torch.equal(fused.forward(x_NCHW, weight_11k, x_NCHW, shortcut_NCHW=shortcut_NCHW), y_NCHW)


@needs_kernel
def test_nan_passes_the_activation_as_in_torch() -> None:
    x_NCHW, weight_11k = torch.tensor([1.0, torch.nan, -2.0, torch.inf]).view(4, 1, 1, 1), torch.zeros(1, 1, 1)
    found_NCHW = dispatch.rescale_add_relu(x_NCHW, weight_11k, torch.zeros_like(x_NCHW))
    torch.testing.assert_close(found_NCHW, end_of_block(x_NCHW, weight_11k, torch.zeros_like(x_NCHW)), equal_nan=True)


@needs_kernel
@pytest.mark.parametrize("memory_format", FORMATS)
def test_the_mean_of_a_large_constant_map_is_exact(memory_format: torch.memory_format) -> None:
    x_NCHW = torch.full((1, 2, 1024, 1024), 0.1).contiguous(memory_format=memory_format)
    _, (mean_NC, _) = fused.forward_with_saved(x_NCHW, torch.ones(1, 1, 1))
    torch.testing.assert_close(mean_NC, torch.full((1, 2), 0.1), atol=0, rtol=5e-7)


@needs_kernel
@pytest.mark.parametrize("memory_format", FORMATS)
def test_results_depend_neither_on_the_other_images_nor_on_the_number_of_threads(
    memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "_ELEMENTS_PER_THREAD", 1)
    torch.manual_seed(0)
    x_NCHW, dy_NCHW = map_of((4, 48, 23, 17), memory_format), map_of((4, 48, 23, 17), memory_format)
    weight_11k = torch.randn(1, 1, 5)
    results = []
    for num_threads, size in product([1, 2, 3, 5], [1, 2, 4]):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=num_threads: count)
        parts = []
        for x_part, dy_part in zip(torch.split(x_NCHW, size), torch.split(dy_NCHW, size), strict=True):
            y_part, saved = fused.forward_with_saved(x_part, weight_11k)
            parts.append((y_part, fused.backward(dy_part, x_part, weight_11k, saved)[0]))
        results.append([torch.cat(tensors) for tensors in zip(*parts, strict=True)])
    for found in results[1:]:
        assert torch.equal(found[0], results[0][0])
        assert torch.equal(found[1], results[0][1])


@needs_kernel
def test_autocast_gives_the_kernel_bfloat16_maps_and_float32_weights() -> None:
    layer, x_NCHW = ECA(8), map_of((2, 8, 5, 5)).bfloat16()
    with pytest.raises(RuntimeError, match="type"):
        layer(x_NCHW)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        leaf_NCHW = x_NCHW.clone().requires_grad_()
        y_NCHW = layer(leaf_NCHW)
        assert "RescaleChannels" in type(y_NCHW.grad_fn).__name__
    dx_NCHW, dweight_11k = torch.autograd.grad(y_NCHW.float().square().sum(), [leaf_NCHW, layer.conv.weight])
    assert (y_NCHW.dtype, dx_NCHW.dtype, dweight_11k.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    leaf_NCHW = x_NCHW.float().requires_grad_()
    expected = torch.autograd.grad(layer(leaf_NCHW).square().sum(), [leaf_NCHW, layer.conv.weight])
    torch.testing.assert_close(dx_NCHW.float(), expected[0], atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(dweight_11k, expected[1], atol=2e-2, rtol=2e-2)
