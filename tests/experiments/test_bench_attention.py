"""The attention bench predicts from the clocks of a GPU what its memory and its float32 units can do at most."""

from types import SimpleNamespace

import pytest
import torch

from experiments.bench.attention import Roofline


def test_the_roofline_of_a_gpu_is_that_of_its_data_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    # H200 SXM: 4.8 TB/s, 67 TFLOPS in float32 without tensor cores.
    gpu = SimpleNamespace(
        major=9, minor=0, multi_processor_count=132, clock_rate=1_980_000, memory_clock_rate=3_201_000,
        memory_bus_width=6144,
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    roofline = Roofline.of("cuda")
    assert roofline is not None
    assert roofline.bytes_per_s == pytest.approx(4.8e12, rel=0.03)
    assert roofline.flops_per_s == pytest.approx(67e12, rel=0.01)


def test_a_processor_has_no_roofline() -> None:
    assert Roofline.of("cpu") is None
