"""Norm, gate, shortcut and ReLU in one function are what the modules compute one by one, and any other norm is left."""

import copy
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from eca_hub.attention.cpu_kernel import block_end, dispatch, fused

FORMATS = [torch.contiguous_format, torch.channels_last]
SHAPES = [(1, 40, 5, 4), (9, 16, 1, 1), (3, 70, 9, 11), (2, 300, 14, 14), (5, 16, 41, 51)]

pytestmark = pytest.mark.skipif(not fused.takes_norms, reason="eca-hub was installed without a C compiler")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=[1, 3])
def num_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Number of threads, used even for the smallest map."""
    monkeypatch.setattr(fused, "_ELEMENTS_PER_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)
    count: int = request.param
    return count


def norm_for(channels: int, mean: float = 0.0) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_(mean)
    norm.running_var.uniform_(0.5, 4)
    return norm


def sum_by_modules(x_NCHW: Tensor, norm: nn.Module, weight_11k: Tensor, shortcut_NCHW: Tensor) -> Tensor:
    z_NCHW = norm(x_NCHW)
    gate_N1C = torch.conv1d(z_NCHW.mean((2, 3)).unsqueeze(1), weight_11k, padding=weight_11k.shape[2] // 2).sigmoid()
    sum_NCHW: Tensor = z_NCHW * gate_N1C.squeeze(1)[:, :, None, None] + shortcut_NCHW
    return sum_NCHW


def by_modules(x_NCHW: Tensor, norm: nn.Module, weight_11k: Tensor, shortcut_NCHW: Tensor) -> Tensor:
    return sum_by_modules(x_NCHW, norm, weight_11k, shortcut_NCHW).relu()


def fused_end(x_NCHW: Tensor, norm: nn.Module, weight_11k: Tensor, shortcut_NCHW: Tensor) -> Tensor:
    y_NCHW = block_end.finish_block(x_NCHW, norm, weight_11k, shortcut_NCHW, may_overwrite=False)
    assert y_NCHW is not None
    return y_NCHW


Compute = Callable[[Tensor, nn.Module, Tensor, Tensor], Tensor]


def results_of(compute: Compute, norm: nn.Module, tensors: list[Tensor], dy_NCHW: Tensor) -> list[Tensor]:
    """The result, the gradients of map, kernel, shortcut, weight and bias, and the norm's statistics afterwards."""
    norm = copy.deepcopy(norm).to(dy_NCHW.dtype)
    x_NCHW, weight_11k, shortcut_NCHW = (tensor.detach().to(dy_NCHW.dtype).requires_grad_() for tensor in tensors)
    y_NCHW = compute(x_NCHW, norm, weight_11k, shortcut_NCHW)
    leaves = (x_NCHW, weight_11k, shortcut_NCHW, *norm.parameters())
    return [y_NCHW.detach(), *torch.autograd.grad(y_NCHW, leaves, dy_NCHW), *norm.buffers()]


@pytest.mark.parametrize(("shape", "mean"), [*product(SHAPES, [0.0]), (SHAPES[2], 30.0)])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("is_training", [True, False], ids=["batch statistics", "running statistics"])
def test_the_result_the_gradients_and_the_statistics_are_those_of_the_modules(
    shape: tuple[int, ...], mean: float, memory_format: torch.memory_format, is_training: bool, num_threads: int
) -> None:
    x_NCHW, shortcut_NCHW, dy_NCHW = (torch.randn(shape).contiguous(memory_format=memory_format) for _ in range(3))
    tensors = [x_NCHW * 2 + mean, torch.randn(1, 1, 5), shortcut_NCHW]
    norm = norm_for(shape[1], mean).train(is_training)
    # Where rounding decides whether a sum is positive, there is no common gradient.
    dy_NCHW = dy_NCHW * (results_of(sum_by_modules, norm, tensors, dy_NCHW.double())[0].abs() > 1e-4)
    found = results_of(fused_end, norm, tensors, dy_NCHW)
    expected = results_of(by_modules, norm, tensors, dy_NCHW.double())
    torch.testing.assert_close(found[0].double(), expected[0], atol=1e-6 * (10 + mean), rtol=1e-6)
    for one, other in zip(found[1:], expected[1:], strict=True):
        scale = other.double().abs().max().clamp_min(1e-3)
        torch.testing.assert_close(one.double() / scale, other.double() / scale, atol=1e-6 * (10 + mean), rtol=0)
    assert found[0].stride() == found[1].stride() == x_NCHW.stride()


@pytest.mark.parametrize("memory_format", FORMATS)
def test_in_inference_the_result_is_that_of_the_modules_and_may_take_the_place_of_the_map(
    memory_format: torch.memory_format, num_threads: int
) -> None:
    x_NCHW, shortcut_NCHW = (torch.randn(2, 70, 9, 11).contiguous(memory_format=memory_format) for _ in range(2))
    norm, weight_11k = norm_for(70).eval(), torch.randn(1, 1, 3)
    with torch.no_grad():
        expected_NCHW = by_modules(x_NCHW, norm, weight_11k, shortcut_NCHW)
        kept_NCHW = x_NCHW.clone()
        y_NCHW = block_end.finish_block(x_NCHW, norm, weight_11k, shortcut_NCHW, may_overwrite=False)
        assert torch.equal(x_NCHW, kept_NCHW)
        assert block_end.finish_block(x_NCHW, norm, weight_11k, shortcut_NCHW, may_overwrite=True) is x_NCHW
    torch.testing.assert_close(x_NCHW, expected_NCHW, atol=2e-6, rtol=1e-6)
    assert y_NCHW is not None
    assert torch.equal(x_NCHW, y_NCHW)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_under_autocast_only_the_results_are_rounded(memory_format: torch.memory_format) -> None:
    maps = [torch.randn(3, 70, 9, 11).contiguous(memory_format=memory_format).bfloat16() for _ in range(3)]
    norm, weight_11k = norm_for(70), torch.randn(1, 1, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = fused_end(maps[0].requires_grad_(), norm, weight_11k, maps[1])
        gradients = torch.autograd.grad(found, (maps[0], *norm.parameters()), maps[2])
    other = norm_for(70).double()
    other.load_state_dict(norm.state_dict())
    x_NCHW = maps[0].detach().double().requires_grad_()
    sum_NCHW = sum_by_modules(x_NCHW, other, weight_11k.double(), maps[1].double())
    expected, dy_NCHW = sum_NCHW.relu(), maps[2].double()
    assert found.dtype == gradients[0].dtype == torch.bfloat16
    assert gradients[1].dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=2**-7)
    expected_gradients = torch.autograd.grad(expected, (x_NCHW, *other.parameters()), dy_NCHW)
    for one, other_one in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one.double(), other_one, atol=2e-2, rtol=2**-6)


@pytest.mark.parametrize("mean", [1000, 10_000])
@pytest.mark.parametrize("side", [7, 9, 60])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_a_variance_that_is_small_beside_its_mean_keeps_its_digits(
    memory_format: torch.memory_format, side: int, mean: int
) -> None:
    x_NCHW = (torch.randn(4, 3, side, side) + mean).contiguous(memory_format=memory_format)
    statistics_2C = torch.empty(2, 3, dtype=torch.float64)
    ones_C = torch.ones(3)
    fused.finish_block(
        x_NCHW, ones_C, ones_C, torch.ones(1, 1, 1), x_NCHW, statistics_2C, has_batch_statistics=True, eps=1e-5
    )
    var_C, mean_C = torch.var_mean(x_NCHW.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(statistics_2C[0], mean_C, atol=0, rtol=3e-7)
    torch.testing.assert_close(statistics_2C[1], var_C, atol=0, rtol=mean * 2**-23)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_results_do_not_depend_on_the_number_of_threads(
    memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "_ELEMENTS_PER_THREAD", 1)
    x_NCHW, shortcut_NCHW, dy_NCHW = (torch.randn(3, 150, 23, 17).to(memory_format=memory_format) for _ in range(3))
    norm, tensors = norm_for(150).train(), [x_NCHW, torch.randn(1, 1, 3), shortcut_NCHW]
    results = []
    for count in (1, 2, 3, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        results.append(results_of(fused_end, norm, tensors, dy_NCHW))
    for found in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found, results[0], strict=True))


@pytest.mark.parametrize("is_training", [True, False], ids=["batch statistics", "running statistics"])
def test_second_derivatives_are_computed_by_torch(is_training: bool) -> None:
    x_NCHW, shortcut_NCHW = torch.randn(2, 8, 5, 5), torch.randn(2, 8, 5, 5)
    norm, weight_11k = norm_for(8).train(is_training), torch.randn(1, 1, 3)

    def second_derivatives(compute: Compute) -> tuple[Tensor, ...]:
        leaves = (x_NCHW.clone().requires_grad_(), shortcut_NCHW.clone().requires_grad_(), *norm.parameters())
        y_NCHW = compute(leaves[0], norm, weight_11k, leaves[1])
        gradients = torch.autograd.grad(y_NCHW.square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(torch.stack([each.square().sum() for each in gradients]).sum(), leaves)

    torch.testing.assert_close(second_derivatives(fused_end), second_derivatives(by_modules), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("is_training", [True, False], ids=["batch statistics", "running statistics"])
def test_a_batch_of_gradients_gives_what_each_of_them_gives(is_training: bool) -> None:
    x_NCHW, shortcut_NCHW = torch.randn(2, 8, 5, 5, requires_grad=True), torch.randn(2, 8, 5, 5, requires_grad=True)
    norm, weight_11k = norm_for(8).train(is_training), torch.randn(1, 1, 3, requires_grad=True)
    for y_NCHW in (
        fused_end(x_NCHW, norm, weight_11k, shortcut_NCHW),
        dispatch.rescale_add_relu(x_NCHW, weight_11k, shortcut_NCHW),
    ):
        assert y_NCHW is not None
        leaves, dy_BNCHW = (x_NCHW, weight_11k, shortcut_NCHW), torch.randn(3, *x_NCHW.shape)
        one_by_one = [torch.autograd.grad(y_NCHW, leaves, dy_NCHW, retain_graph=True) for dy_NCHW in dy_BNCHW]
        together = torch.autograd.grad(y_NCHW, leaves, dy_BNCHW, is_grads_batched=True)
        expected = tuple(map(torch.stack, zip(*one_by_one, strict=True)))
        torch.testing.assert_close(together, expected, atol=1e-5, rtol=1e-4)


class DoubledNorm(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Doubled(nn.Module):
    def forward(self, weight_C: Tensor) -> Tensor:
        return 2 * weight_C


def with_hook(norm: nn.BatchNorm2d) -> nn.Module:
    norm.register_forward_hook(lambda module, args, y: y * 2)
    return norm


def pruned(norm: nn.BatchNorm2d) -> nn.Module:
    return prune.l1_unstructured(norm, "weight", amount=1)  # type: ignore[no-any-return,no-untyped-call]


def parametrized(norm: nn.BatchNorm2d) -> nn.Module:
    return parametrize.register_parametrization(norm, "weight", Doubled())


def given_another_forward(norm: nn.BatchNorm2d) -> nn.Module:
    setattr(norm, "forward", lambda x_NCHW: x_NCHW)  # noqa: B010
    return norm


@pytest.mark.parametrize(
    "change",
    [
        with_hook, pruned, parametrized, given_another_forward,
        lambda norm: DoubledNorm(8),
        lambda norm: nn.SyncBatchNorm(8),
        lambda norm: nn.GroupNorm(2, 8),
        lambda norm: nn.Identity(),
        lambda norm: nn.BatchNorm2d(8, affine=False),
        lambda norm: nn.BatchNorm2d(8, track_running_stats=False),
        lambda norm: nn.BatchNorm2d(8, momentum=None),
        lambda norm: nn.BatchNorm2d(8, dtype=torch.float64),
    ],
    ids=[
        "hook", "pruned", "parametrized", "forward", "subclass", "sync", "group", "none", "no weights",
        "no running statistics", "cumulative average", "float64",
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_training", [True, False], ids=["training", "evaluation"])
def test_any_other_norm_is_left_to_its_module(change: Callable[[nn.BatchNorm2d], nn.Module], is_training: bool) -> None:
    norm, x_NCHW = change(norm_for(8)).train(is_training), torch.randn(2, 8, 3, 3)
    state = copy.deepcopy(norm.state_dict())
    assert block_end.finish_block(x_NCHW, norm, torch.randn(1, 1, 3), x_NCHW, may_overwrite=False) is None
    torch.testing.assert_close(norm.state_dict(), state)


def test_a_single_number_a_channel_is_left_to_the_norm_which_refuses_it() -> None:
    x_NCHW = torch.randn(1, 8, 1, 1)
    assert block_end.finish_block(x_NCHW, norm_for(8), torch.randn(1, 1, 3), x_NCHW, may_overwrite=False) is None


def test_a_kernel_file_of_an_earlier_version_leaves_the_norm_to_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "takes_norms", False)
    x_NCHW = torch.randn(2, 8, 3, 3)
    assert block_end.finish_block(x_NCHW, norm_for(8), torch.randn(1, 1, 3), x_NCHW, may_overwrite=False) is None
