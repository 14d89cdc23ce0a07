"""The fused end of residual blocks computes what timm's blocks compute, and keeps the interface of a module."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FrozenBatchNorm2d

from eca_hub.attention.cpu_kernel import block_end, dispatch, fused
from eca_hub.attention.eca import ECA
from eca_hub.models.build import create_model
from eca_hub.models.eca_blocks import ECABasicBlock, ECABottleneck

needs_kernel = pytest.mark.skipif(not fused.is_built, reason="eca-hub was installed without a C compiler")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def network(name: str = "eca_resnet18", **options: Any) -> nn.Module:
    model = create_model(name, num_classes=3, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
    return model.eval()


def as_timm(model: nn.Module) -> nn.Module:
    """The same weights in blocks whose end is separate operations."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, ECABasicBlock | ECABottleneck):
            module.__class__ = type(module).__base__  # type: ignore[assignment]
    return copied


@pytest.fixture
def num_fused(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts how often the end of a block was one kernel."""
    calls: list[int] = []

    def counted(original: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
        def call(*args: Any, **options: Any) -> Tensor | None:
            y_NCHW = original(*args, **options)
            calls.extend([1] * (y_NCHW is not None))
            return y_NCHW

        return call

    for module, name in ((dispatch, "rescale_add_relu"), (block_end, "finish_block")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    return calls


@needs_kernel
@pytest.mark.parametrize(
    ("name", "memory_format", "dtype"),
    [
        ("eca_resnet20", torch.contiguous_format, torch.float32),
        ("eca_resnet20", torch.channels_last, torch.float32),
        pytest.param("eca_resnet18", torch.contiguous_format, torch.bfloat16, marks=pytest.mark.slow),
        ("eca_resnet18", torch.channels_last, torch.bfloat16),
        ("eca_resnet26d", torch.channels_last, torch.float32),
        pytest.param("eca_resnet50", torch.contiguous_format, torch.float32, marks=pytest.mark.slow),
    ],
)
def test_inference_is_that_of_timms_blocks(
    name: str, memory_format: torch.memory_format, dtype: torch.dtype, num_fused: list[int]
) -> None:
    model = network(name).to(dtype).to(memory_format=memory_format)
    x_N3HW = torch.randn(2, 3, 64, 64).to(dtype).contiguous(memory_format=memory_format)
    with torch.inference_mode():
        found_NK, expected_NK = model(x_N3HW), as_timm(model)(x_N3HW)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    scale = expected_NK.abs().max()
    assert ((found_NK - expected_NK).abs().max() / scale).item() < tolerance
    assert len(num_fused) == sum(isinstance(module, ECA) for module in model.modules())


@needs_kernel
@pytest.mark.parametrize("name", ["eca_resnet18", pytest.param("eca_resnet50", marks=pytest.mark.slow)])
def test_training_is_that_of_timms_blocks(name: str, num_fused: list[int]) -> None:
    model = network(name).double().float().train()
    other = as_timm(model)
    x_N3HW = torch.randn(4, 3, 64, 64)
    for network_ in (model, other):
        network_(x_N3HW).square().sum().backward()
    assert len(num_fused) == sum(isinstance(module, ECA) for module in model.modules())
    for (key, found), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        assert found.grad is not None
        assert expected.grad is not None
        # Torch's own operations are 3e-5 from float64 here, and a hundred times as far where a ReLU's input changes its
        # sign. A single block is compared to 1e-5 in tests/attention/cpu_kernel/test_block_end.py.
        assert (found.grad - expected.grad).norm() <= 1e-2 * expected.grad.norm(), key
    for (key, found_C), expected_C in zip(model.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(found_C, expected_C, atol=1e-4, rtol=1e-4, msg=key)


def test_copies_pickles_state_dicts_and_classes_are_those_of_timms_blocks() -> None:
    model, x_N3HW = network(), torch.randn(1, 3, 64, 64)
    assert all(isinstance(block, timm.models.resnet.BasicBlock) for block in model.get_submodule("layer1").children())
    assert model.state_dict().keys() == as_timm(model).state_dict().keys()
    with torch.no_grad():
        expected_NK = model(x_N3HW)
        assert torch.equal(copy.deepcopy(model)(x_N3HW), expected_NK)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x_N3HW), expected_NK)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["eca_resnet18", "eca_resnet50", "eca_mobilenet_v2"],
)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:`torch.jit:FutureWarning")
def test_a_network_with_eca_can_be_scripted_and_traced(name: str) -> None:
    model, x_N3HW = network(name), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected_NK = model(x_N3HW)
        scripted: Any = torch.jit.script(model)
        traced: Any = torch.jit.trace(model, x_N3HW)  # type: ignore[no-untyped-call]
        for converted in (scripted, traced):
            torch.testing.assert_close(converted(x_N3HW), expected_NK, atol=1e-4, rtol=1e-4)


def outputs_with_hooks(model: nn.Module, x_N3HW: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What each module returned, kept as it is and as a copy made at once."""
    kept: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, args, y: kept.setdefault(name, (y, y.clone())) and None

    handles = [module.register_forward_hook(keep(name)) for name, module in model.named_modules()]
    with torch.no_grad():
        model(x_N3HW)
    for handle in handles:
        handle.remove()
    return kept


def test_hooks_see_every_module_and_what_the_last_norm_returned_stays() -> None:
    model, x_N3HW = network(), torch.randn(1, 3, 64, 64)
    kept = outputs_with_hooks(model, x_N3HW)
    assert {"layer1.0.bn2", "layer1.0.se", "layer1.0.se.conv", "layer1.0.act2"} <= kept.keys()
    # timm's own `x += shortcut` and ReLU overwrite the output of the last norm's successor, never that of the norm.
    for name, (tensor, copied) in kept.items():
        if name.endswith(("bn2", "se.conv")):
            assert torch.equal(tensor, copied), name


@pytest.mark.parametrize("name", ["bn2", "conv2", "se", "se.conv", "act2"])
def test_a_hook_on_one_child_is_called_and_keeps_its_tensor(name: str, num_fused: list[int]) -> None:
    model, x_N3HW = network(), torch.randn(1, 3, 64, 64)
    child, kept = model.get_submodule(f"layer1.0.{name}"), []
    handle = child.register_forward_pre_hook(lambda module, args: kept.append((args[0], args[0].clone())))
    with torch.no_grad():
        with_hook_NK = model(x_N3HW)
        handle.remove()
        torch.testing.assert_close(with_hook_NK, model(x_N3HW), atol=1e-5, rtol=1e-5)
    [(tensor, copied)] = kept
    # The ReLU of timm writes into its input.
    assert torch.equal(tensor, copied) or name == "act2"


@pytest.mark.parametrize(("name", "is_folded"), [("conv1", False), ("conv2", False), ("bn2", False), ("bn2", True)])
def test_what_a_hook_keeps_of_an_output_stays_as_it_was(name: str, is_folded: bool, num_fused: list[int]) -> None:
    model, x_N3HW = network(), torch.randn(1, 3, 64, 64)
    if is_folded:
        model.get_submodule("layer1.0").bn2 = nn.Identity()
    kept: list[tuple[Tensor, Tensor]] = []
    handle = model.get_submodule(f"layer1.0.{name}").register_forward_hook(
        lambda module, args, y: kept.append((y, y.clone()))
    )
    with torch.no_grad():
        with_hook_NK = model(x_N3HW)
        handle.remove()
        torch.testing.assert_close(with_hook_NK, model(x_N3HW), atol=1e-5, rtol=1e-5)
    [(tensor, copied)] = kept
    assert torch.equal(tensor, copied)
    assert len(num_fused) == (2 * 8 if fused.is_built else 0), "with a hook too, since a hooked child is called"


def test_a_hook_may_change_the_gate() -> None:
    model, x_N3HW = network(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before_NK = model(x_N3HW)
        handle = model.get_submodule("layer1.0.se.conv").register_forward_hook(lambda module, args, y: y * 0 - 100)
        closed_NK = model(x_N3HW)
        handle.remove()
        assert not torch.allclose(closed_NK, before_NK)
        torch.testing.assert_close(model(x_N3HW), before_NK)


def test_feature_extraction_gives_the_maps_of_the_unfused_network() -> None:
    model, x_N3HW = network(), torch.randn(1, 3, 64, 64)
    nodes = ["layer1.0.bn2", "layer1.1", "layer4.1.bn2"]
    with torch.no_grad():
        found = create_feature_extractor(model, nodes)(x_N3HW)
        expected = create_feature_extractor(as_timm(model), nodes)(x_N3HW)
    for node in nodes:
        torch.testing.assert_close(found[node], expected[node], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_calling_the_attention_of_a_block_leaves_the_input_as_it_is(context: Any) -> None:
    layer, x_NCHW = network().get_submodule("layer1.0.se"), torch.randn(2, 64, 128, 128)
    before_NCHW = x_NCHW.clone()
    with context():
        layer(x_NCHW)
    assert torch.equal(x_NCHW, before_NCHW)


def test_a_tensor_saved_for_backward_is_not_changed() -> None:
    model = network()
    weight_NCHW = torch.randn(1, 64, 16, 16, requires_grad=True)
    x_NCHW = torch.randn(1, 64, 16, 16)
    y_NCHW = weight_NCHW * x_NCHW
    with torch.no_grad():
        model.get_submodule("layer1.0.se")(x_NCHW)
        model.get_submodule("layer1.0")(x_NCHW)
    before_NCHW = x_NCHW.clone()
    assert torch.equal(torch.autograd.grad(y_NCHW.sum(), weight_NCHW)[0], before_NCHW)


class DoubledConv(nn.Conv1d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def pruned(layer: ECA) -> None:
    prune.l1_unstructured(layer.conv, "weight", amount=1)  # type: ignore[no-untyped-call]


def weight_normed(layer: ECA) -> None:
    parametrizations.weight_norm(layer.conv)


def swapped_for_a_bias(layer: ECA) -> None:
    layer.conv = nn.Conv1d(1, 1, 3, padding=1, bias=True)


def given_a_bias_that_is_a_buffer(layer: ECA) -> None:
    del layer.conv.bias
    layer.conv.register_buffer("bias", torch.tensor([5.0]))


def swapped_for_a_subclass(layer: ECA) -> None:
    layer.conv = DoubledConv(1, 1, 3, padding=1, bias=False)


def swapped_for_a_dilation(layer: ECA) -> None:
    layer.conv = nn.Conv1d(1, 1, 3, padding=2, dilation=2, bias=False)


def swapped_for_circular_padding(layer: ECA) -> None:
    layer.conv = nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular", bias=False)


def given_another_forward(layer: ECA) -> None:
    conv = layer.conv
    setattr(conv, "forward", lambda mean_N1C: mean_N1C * conv.weight.sum())  # noqa: B010


@pytest.mark.parametrize(
    "change",
    [
        pruned, weight_normed, swapped_for_a_bias, given_a_bias_that_is_a_buffer, swapped_for_a_subclass,
        swapped_for_a_dilation, swapped_for_circular_padding, given_another_forward,
    ],
)  # fmt: skip
def test_a_changed_convolution_is_the_one_that_runs_and_trains(change: Callable[[ECA], None]) -> None:
    layer, x_NCHW = ECA(16, kernel_size=3), torch.randn(2, 16, 5, 5)
    change(layer)

    def expected() -> Tensor:
        gate_N1C: Tensor = layer.conv(x_NCHW.mean((2, 3)).unsqueeze(1)).sigmoid()
        return x_NCHW * gate_N1C.squeeze(1)[:, :, None, None]

    with torch.no_grad():
        torch.testing.assert_close(layer(x_NCHW), expected())
    parameters = list(layer.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1) if parameters else None
    for _ in range(3):
        if optimizer:
            optimizer.zero_grad()
            layer(x_NCHW).square().sum().backward()
            optimizer.step()
        torch.testing.assert_close(layer(x_NCHW), expected())


def test_a_block_with_another_activation_or_drop_path_runs_it(num_fused: list[int]) -> None:
    model = network()
    block = model.get_submodule("layer1.0")
    block.act2 = nn.GELU()
    block_1 = model.get_submodule("layer1.1")
    block_1.drop_path = timm.layers.DropPath(0.999999).train()
    with torch.no_grad():
        x_NCHW = torch.randn(1, 64, 8, 8)
        torch.testing.assert_close(block(x_NCHW), as_timm(nn.Sequential(block))(x_NCHW))
        assert torch.equal(block_1(x_NCHW), x_NCHW.relu())
    assert not num_fused


@pytest.mark.parametrize("name", ["downsample", "drop_path"])
def test_a_function_in_the_place_of_a_module_is_called(name: str, num_fused: list[int]) -> None:
    block, x_NCHW = network().get_submodule("layer1.0"), torch.randn(1, 64, 8, 8)
    setattr(block, name, lambda y_NCHW: y_NCHW * 0.5)
    with torch.no_grad():
        torch.testing.assert_close(block(x_NCHW), as_timm(nn.Sequential(block))(x_NCHW))
    assert not num_fused


class DoubledWeight(nn.Module):
    def forward(self, weight_C: Tensor) -> Tensor:
        return 2 * weight_C


def given_a_hook(block: nn.Module) -> None:
    block.get_submodule("bn2").register_forward_hook(lambda module, args, y: y + 1)


def with_a_pruned_norm(block: nn.Module) -> None:
    prune.l1_unstructured(block.bn2, "weight", amount=32)  # type: ignore[no-untyped-call]


def with_a_parametrized_norm(block: nn.Module) -> None:
    parametrize.register_parametrization(block.get_submodule("bn2"), "weight", DoubledWeight())


def with_another_forward(block: nn.Module) -> None:
    setattr(block.bn2, "forward", lambda x_NCHW: x_NCHW.sin())  # noqa: B010


def with_a_group_norm(block: nn.Module) -> None:
    block.bn2 = nn.GroupNorm(4, 64)


def with_frozen_statistics(block: nn.Module) -> None:
    block.get_submodule("bn2").eval()


def with_a_frozen_norm(block: nn.Module) -> None:
    block.bn2 = FrozenBatchNorm2d(64)


def with_a_convolution_that_keeps_its_output(block: nn.Module) -> None:
    block.conv2 = KeepingConv(64, 64, 3, padding=1)


class KeepingConv(nn.Conv2d):
    last: Tensor

    def forward(self, input: Tensor) -> Tensor:
        self.last = super().forward(input)
        return self.last


@pytest.mark.parametrize(
    "change",
    [
        given_a_hook, with_a_pruned_norm, with_a_parametrized_norm, with_another_forward, with_a_group_norm,
        with_frozen_statistics, with_a_frozen_norm, with_a_convolution_that_keeps_its_output,
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "is_training", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["training", "inference"]
)
def test_a_block_whose_last_norm_or_convolution_is_changed_computes_and_trains_it(
    change: Callable[[nn.Module], None], is_training: bool
) -> None:
    block, x_NCHW = network().get_submodule("layer1.0").train(is_training), torch.randn(2, 64, 8, 8)
    other = as_timm(nn.Sequential(block))
    for changed in (block, other.get_submodule("0")):
        torch.manual_seed(1)
        change(changed)
    with torch.set_grad_enabled(is_training):
        for compute in (block, other):
            y_NCHW = compute(x_NCHW)
            if is_training:
                y_NCHW.square().sum().backward()
        torch.testing.assert_close(block(x_NCHW), other(x_NCHW), atol=1e-5, rtol=1e-5)
    for found, expected in zip(block.parameters(), other.parameters(), strict=True):
        # A norm whose forward was replaced has no gradient.
        assert (found.grad is None) == (expected.grad is None)
        if found.grad is not None:
            torch.testing.assert_close(found.grad, expected.grad, atol=1e-3, rtol=1e-4)
    for found_C, expected_C in zip(block.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(found_C, expected_C, atol=1e-5, rtol=1e-5)
    if isinstance(block.conv2, KeepingConv):
        torch.testing.assert_close(block.conv2.last, other.get_submodule("0.conv2").last, atol=1e-5, rtol=1e-5)


class Caching(nn.BatchNorm2d):
    last: Tensor

    def forward(self, input: Tensor) -> Tensor:
        self.last = super().forward(input)
        return self.last


def test_a_norm_that_keeps_its_output_keeps_it_unchanged() -> None:
    model = network()
    block, x_NCHW = model.get_submodule("layer1.0"), torch.randn(1, 64, 8, 8)
    block.bn2 = Caching(64).eval()
    with torch.no_grad():
        block(x_NCHW)
        expected_NCHW = nn.BatchNorm2d.forward(block.bn2, block.conv2(block.act1(block.bn1(block.conv1(x_NCHW)))))  # type: ignore[operator]
    torch.testing.assert_close(block.bn2.last, expected_NCHW)
