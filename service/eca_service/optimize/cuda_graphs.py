"""A network on a GPU for one engine: a CUDA stream of its own, pinned memory, one CUDA graph for each batch size.

Two engines share a GPU: while one copies images and reads outputs, the other's batch is computed. A graph launches all
kernels of a network at once, where single launches from Python would leave a fast GPU idle. Batches are padded to the
next power of two, so that few graphs are captured.

`pytest -m gpu` compares it with the plain network.

Shapes: N images, H height, W width, F features or classes; 3 colors, red first.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from eca_service.optimize.compile import next_size

_NUM_WARM_UP_RUNS = 3

# Only one thread may capture at a time.
_capturing = threading.Lock()


@dataclass(frozen=True)
class _CapturedGraph:
    """A graph with the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    host_input: Tensor
    """Pixels (N, 3, H, W) in pinned memory of the host."""
    device_input: Tensor
    """The same on the device."""
    device_output: Tensor
    """(N, F) on the device."""
    host_output: Tensor
    """The same in pinned memory of the host."""


class CUDAGraphRunner:
    """Maps uint8 pixels (N, 3, H, W) to float32 (N, F), both on the host; for one thread at a time.

    Args:
        run: The same on the device, with outputs in any number format.
        device: Which GPU.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], device: torch.device) -> None:
        self._run = run
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._captured: dict[int, _CapturedGraph] = {}

    def __call__(self, pixels_N3HW: Tensor) -> Tensor:
        """Run one batch; the thread waits without holding the GIL."""
        num_images = len(pixels_N3HW)
        size = next_size(num_images)
        if size not in self._captured:
            self._captured[size] = self._capture(size, pixels_N3HW.shape[1:])
        captured = self._captured[size]
        captured.host_input[:num_images] = pixels_N3HW
        with torch.cuda.stream(self._stream):
            captured.device_input.copy_(captured.host_input, non_blocking=True)
            captured.graph.replay()
            captured.host_output.copy_(captured.device_output, non_blocking=True)
        self._stream.synchronize()
        return captured.host_output[:num_images].clone()

    def _capture(self, size: int, shape: torch.Size) -> _CapturedGraph:
        host_N3HW = torch.zeros((size, *shape), dtype=torch.uint8, pin_memory=True)
        with _capturing, torch.cuda.device(self._device):
            with torch.cuda.stream(self._stream):
                device_N3HW = host_N3HW.to(self._device, non_blocking=True)
                for _ in range(_NUM_WARM_UP_RUNS):
                    self._run(device_N3HW)
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            # Other engines keep running: only this thread must do nothing else.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                output_NF = self._run(device_N3HW).float()
        host_output_NF = torch.empty_like(output_NF, device="cpu").pin_memory()
        return _CapturedGraph(graph, host_N3HW, device_N3HW, output_NF, host_output_NF)
