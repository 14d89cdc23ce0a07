"""Properties of every method: shape, dtype, memory format, gradients, and equivariances."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eca_hub.attention import ATTENTIONS
from eca_hub.errors import InvalidConfig

NAMES = list(ATTENTIONS)
GATES = [name for name, method in ATTENTIONS.items() if getattr(method, "is_gate", True)]
POSITION_EQUIVARIANT = [name for name in NAMES if name not in ("cbam", "aa", "coord", "ela", "strip")]
C = 32


def make(name: str) -> nn.Module:
    torch.manual_seed(7)
    layer = ATTENTIONS[name](C)
    # Layers that start at zero would fulfill every property trivially.
    for parameter in layer.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return layer


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, C, 1, 1), (1, C, 5, 3), (3, C, 1, 7), (2, C, 8, 8)])
def test_the_shape_is_preserved(name: str, shape: tuple[int, ...]) -> None:
    layer = make(name).eval()
    y_NCHW = layer(torch.randn(shape))
    assert y_NCHW.shape == shape
    assert y_NCHW.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_dtype_is_preserved(name: str, dtype: torch.dtype) -> None:
    layer, x_NCHW = make(name).eval(), torch.randn(2, C, 6, 6)
    expected_NCHW = layer(x_NCHW)
    y_NCHW = layer.to(dtype)(x_NCHW.to(dtype))
    assert y_NCHW.dtype == dtype
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(y_NCHW.float(), expected_NCHW, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_the_memory_format_is_preserved(name: str) -> None:
    layer, x_NCHW = make(name).eval(), torch.randn(2, C, 6, 5)
    expected_NCHW = layer(x_NCHW)
    assert expected_NCHW.is_contiguous()
    y_NCHW = layer(x_NCHW.to(memory_format=torch.channels_last))
    assert y_NCHW.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y_NCHW, expected_NCHW)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_correct(name: str) -> None:
    layer = make(name).double().eval()
    x_NCHW = torch.randn(2, C, 2, 3, dtype=torch.float64, requires_grad=True)
    layer.requires_grad_(False)
    assert torch.autograd.gradcheck(layer, x_NCHW, fast_mode=True)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    layer = make(name)
    x_NCHW = torch.randn(4, C, 5, 5, requires_grad=True)
    (layer(x_NCHW) * torch.randn(4, C, 5, 5)).sum().backward()
    assert x_NCHW.grad is not None
    # A bias before a softmax shifts all positions alike, so its gradient is zero; the authors' code has it.
    without_gradient = {"nl": {"key.bias"}, "gc": {"attend.bias"}, "gsop": {"reduce.bias"}}.get(name, set())
    stuck = {key for key, parameter in layer.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    assert stuck <= without_gradient


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_computes_the_same(name: str) -> None:
    layer, x_NCHW = make(name).eval(), torch.randn(2, C, 4, 4)
    other = ATTENTIONS[name](C).eval()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(copy.deepcopy(layer)(x_NCHW), layer(x_NCHW))
    assert torch.equal(other(x_NCHW), layer(x_NCHW))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_computed_on_construction(name: str) -> None:
    with torch.device("meta"):
        meta_model = ATTENTIONS[name](C)
    layer, x_NCHW = make(name).eval(), torch.randn(2, C, 4, 4)
    meta_model.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(meta_model.eval()(x_NCHW), layer(x_NCHW))


@pytest.mark.parametrize("name", NAMES)
def test_the_input_is_not_changed(name: str) -> None:
    layer, x_NCHW = make(name).eval(), torch.randn(2, C, 4, 4)
    before_NCHW = x_NCHW.clone()
    with torch.inference_mode():
        layer(x_NCHW)
    layer(x_NCHW)
    assert torch.equal(x_NCHW, before_NCHW)


@pytest.mark.parametrize("name", NAMES)
def test_images_do_not_affect_each_other(name: str) -> None:
    layer = make(name).eval()
    torch.manual_seed(1)
    x_NCHW, order = torch.randn(4, C, 4, 3), torch.randperm(4)
    torch.testing.assert_close(layer(x_NCHW[order]), layer(x_NCHW)[order])


@pytest.mark.parametrize("name", POSITION_EQUIVARIANT)
def test_permuted_positions_permute_the_output(name: str) -> None:
    layer = make(name).eval()
    torch.manual_seed(1)
    x_NCHW, order = torch.randn(2, C, 4, 3), torch.randperm(12)

    def move(map_NCHW: Tensor) -> Tensor:
        return map_NCHW.flatten(2)[:, :, order].reshape(map_NCHW.shape)

    torch.testing.assert_close(layer(move(x_NCHW)), move(layer(x_NCHW)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["se_var1", "simam"])
def test_methods_without_parameters_are_equivariant_to_channel_order(name: str) -> None:
    torch.manual_seed(1)
    layer, x_NCHW, order = make(name), torch.randn(2, C, 4, 3), torch.randperm(C)
    torch.testing.assert_close(layer(x_NCHW[:, order]), layer(x_NCHW)[:, order])


def test_a_method_that_is_no_gate_says_so() -> None:
    assert set(NAMES) - set(GATES) == {"aa", "a2", "gc", "nl"}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cbam", {"kernel_size": "7"}),
        ("cbam", {"kernel_size": 10**10 + 1}),
        ("gsop", {"num_reduced": 10**10}),
        ("gsop", {"stride": 1.5}),
        ("aa", {"num_heads": "8"}),
        ("aa", {"map_size_px": 10**15}),
        ("se", {"reduction": "4"}),
        ("nl", {"reduction": 2.0}),
    ],
)
def test_an_option_of_another_type_or_without_bounds_is_refused(name: str, options: dict[str, Any]) -> None:
    [(option, value)] = options.items()
    with pytest.raises(InvalidConfig, match=f"{option} is {value!r}; "):
        ATTENTIONS[name](C, **options)


@pytest.mark.parametrize("name", GATES)
def test_a_gate_shrinks_and_keeps_the_sign(name: str) -> None:
    layer, x_NCHW = make(name).eval(), torch.randn(2, C, 6, 6)
    y_NCHW = layer(x_NCHW)
    assert (y_NCHW.abs() <= x_NCHW.abs()).all()
    assert (y_NCHW * x_NCHW >= 0).all()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "eca" else [pytest.mark.slow]) for name in NAMES],
)
def test_a_method_can_be_exported(name: str) -> None:
    layer, x_NCHW = make(name).eval(), torch.randn(2, C, 4, 4)
    exported = torch.export.export(layer, (x_NCHW,)).module()
    torch.testing.assert_close(exported(x_NCHW), layer(x_NCHW))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # the compiler's own
@pytest.mark.parametrize("name", NAMES)
def test_a_method_can_be_compiled(name: str) -> None:
    torch.compiler.reset()
    layer, x_NCHW = make(name), torch.randn(2, C, 4, 4)
    expected = torch.autograd.grad(layer(x_NCHW.requires_grad_()).square().sum(), x_NCHW)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(x_NCHW).square().sum(), x_NCHW), expected)
