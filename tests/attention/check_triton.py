"""Hold the Triton kernel against the equations; run with TRITON_INTERPRET=1 on a machine without a GPU."""

import itertools
import sys

import torch
from torch import Tensor

from eca_hub.attention import triton_kernel

SHAPES = [(1, 3, 1, 1), (2, 70, 5, 4), (1, 16, 33, 33)]


def by_equations(x_NCHW: Tensor, weight_11k: Tensor, shortcut_NCHW: Tensor | None) -> Tensor:
    mean_N1C = x_NCHW.mean((2, 3)).unsqueeze(1)
    gate_N1C = torch.conv1d(mean_N1C, weight_11k, padding=weight_11k.shape[2] // 2).sigmoid()
    y_NCHW = x_NCHW * gate_N1C.squeeze(1)[:, :, None, None]
    return y_NCHW if shortcut_NCHW is None else (y_NCHW + shortcut_NCHW).relu()


def check(device: str) -> int:
    """Compare results and gradients for every shape, memory format, dtype and with and without shortcut."""
    torch.manual_seed(0)
    formats, dtypes = (torch.contiguous_format, torch.channels_last), (torch.float32, torch.bfloat16)
    num_checked = 0
    for shape, memory_format, dtype, has_shortcut in itertools.product(SHAPES, formats, dtypes, (False, True)):
        x, shortcut, dy = (
            torch.randn(shape, device=device).to(dtype).contiguous(memory_format=memory_format) for _ in range(3)
        )
        weight = torch.randn(1, 1, 5, device=device)
        added = shortcut if has_shortcut else None
        assert triton_kernel.is_supported(x, weight, added)
        y, mean = triton_kernel.forward_with_saved(x, weight, added)
        leaves = [tensor.double().requires_grad_() for tensor in (x, weight, *([shortcut] if has_shortcut else []))]
        expected = by_equations(leaves[0], leaves[1], leaves[2] if has_shortcut else None)
        atol = rtol = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(y.double(), expected, atol=atol, rtol=rtol)
        dy = dy * ((y > 0) == (expected > 0)) if has_shortcut else dy
        dx, dweight, dshortcut = triton_kernel.backward(dy, x, weight, mean, y if has_shortcut else None)
        gradients = torch.autograd.grad(expected, leaves, dy.double())
        for found, other in zip([dx, dweight, *([dshortcut] if has_shortcut else [])], gradients, strict=True):
            assert found is not None
            torch.testing.assert_close(found.double(), other, atol=atol * 10, rtol=rtol * 10)
        if has_shortcut:
            norm = torch.rand(shape[1], device=device) + 0.5, torch.randn(shape[1], device=device)
            z_NCHW = x.double() * norm[0].double()[:, None, None] + norm[1].double()[:, None, None]
            y, _ = triton_kernel.forward_with_saved(x, weight, shortcut, norm)
            expected = by_equations(z_NCHW, weight.double(), shortcut.double())
            torch.testing.assert_close(y.double(), expected, atol=atol, rtol=rtol)
        num_checked += 1
    return num_checked


if __name__ == "__main__":
    sys.stdout.write(f"{check('cuda' if torch.cuda.is_available() else 'cpu')}\n")
