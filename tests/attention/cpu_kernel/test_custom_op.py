"""The operator passes torch's own checks, and compiled networks call it."""

import pytest
import torch
from torch import Tensor

from eca_hub.attention.cpu_kernel import fused
from eca_hub.attention.cpu_kernel.custom_op import rescale_channels
from eca_hub.attention.eca import ECA


def by_equations(x_NCHW: Tensor, weight_11k: Tensor) -> Tensor:
    mean_N1C = x_NCHW.mean((2, 3)).unsqueeze(1)
    gate_N1C = torch.conv1d(mean_N1C, weight_11k, padding=weight_11k.shape[2] // 2).sigmoid()
    return x_NCHW * gate_N1C.squeeze(1)[:, :, None, None]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "memory_format"),
    [(torch.float32, torch.channels_last), (torch.float64, torch.contiguous_format)],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_schema_fake_and_gradients_pass_torchs_checks(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    x_NCHW = torch.randn(2, 8, 5, 4).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
    torch.library.opcheck(rescale_channels, (x_NCHW, torch.randn(1, 1, 3).to(dtype).requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_equations_and_their_gradients(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x_NCHW, weight_11k = torch.randn(2, 8, 5, 4, dtype=dtype), torch.randn(1, 1, 3, dtype=dtype)
    dy_NCHW = torch.randn_like(x_NCHW)
    results = []
    for compute in (lambda *args: rescale_channels(*args)[0], by_equations):
        leaves = [x_NCHW.clone().requires_grad_(), weight_11k.clone().requires_grad_()]
        y_NCHW = compute(*leaves)
        results.append((y_NCHW, *torch.autograd.grad(y_NCHW, leaves, dy_NCHW)))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("in_dims", [(0, None), (1, None), (0, 0), (None, 2)])
def test_vmap_gives_what_a_loop_gives(in_dims: tuple[int | None, int | None]) -> None:
    xs, weights = torch.randn(3, 2, 8, 5, 4), torch.randn(3, 1, 1, 3)
    x = xs[0] if in_dims[0] is None else xs.movedim(0, in_dims[0])
    weight = weights[0] if in_dims[1] is None else weights.movedim(0, in_dims[1])
    found = torch.vmap(lambda x, weight: rescale_channels(x, weight)[0], in_dims=in_dims)(x, weight)
    for index in range(3):
        expected = by_equations(xs[0 if in_dims[0] is None else index], weights[0 if in_dims[1] is None else index])
        torch.testing.assert_close(found[index], expected)


@pytest.mark.slow
@pytest.mark.skipif(not fused.is_built, reason="eca-hub was installed without a C compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # the compiler's own
def test_compiled_training_calls_the_operator_and_compiled_inference_and_exports_do_not() -> None:
    targets: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch.compiler.reset()
    layer, x_NCHW = ECA(8), torch.randn(2, 8, 4, 4)
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(x_NCHW), layer(x_NCHW))
    assert any("eca_hub.rescale_channels" in target for target in targets)
    targets.clear()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x_NCHW), layer(x_NCHW))
    assert targets
    assert not any("eca_hub" in target for target in targets)
    program = torch.export.export(layer, (x_NCHW,))
    assert not any("eca_hub" in str(node.target) for node in program.graph.nodes)
