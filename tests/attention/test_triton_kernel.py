"""The Triton kernel computes the equations and their gradients: in Triton's interpreter, and on a GPU."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_large_map_stays_within_the_grid_of_cuda(memory_format: torch.memory_format) -> None:
    from eca_hub.attention.triton_kernel import _Layout

    x_NCHW = torch.empty(2, 64, 1024, 1024, device="meta").contiguous(memory_format=memory_format)
    for grid in (_Layout(x_NCHW).sum_grid, _Layout(x_NCHW).write_grid):
        assert max(grid[1:]) <= 65_535


@pytest.mark.parametrize(("num_images", "num_channels"), [(70_000, 64), (2, 70_000)])
def test_more_images_or_channels_than_the_grid_of_cuda_has_blocks_are_left_to_torch(
    num_images: int, num_channels: int
) -> None:
    from eca_hub.attention.triton_kernel import is_supported

    weight_11k = torch.empty(1, 1, 3, device="meta")
    assert not is_supported(torch.empty(num_images, num_channels, 1, 1, device="meta"), weight_11k)
    assert is_supported(torch.empty(2, 64, 1, 1, device="meta"), weight_11k)


@pytest.mark.slow
def test_the_kernel_is_the_equations_in_tritons_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "tests.attention.check_triton"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "24\n"), done.stderr


@pytest.mark.gpu
def test_the_kernel_is_the_equations_on_a_gpu() -> None:
    from tests.attention.check_triton import check

    assert check("cuda") == 24


@pytest.mark.gpu
def test_a_network_on_a_gpu_gives_the_same_with_and_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import eca_hub
    from eca_hub.attention.cpu_kernel import dispatch

    model = eca_hub.create_model("eca_resnet18", num_classes=3).cuda().eval()
    x_N3HW = torch.randn(2, 3, 64, 64, device="cuda")
    expected_NK = model(x_N3HW)
    monkeypatch.setattr(dispatch, "use_triton", True)
    torch.testing.assert_close(model(x_N3HW), expected_NK, atol=1e-3, rtol=1e-3)
