"""How many cores may be used, and which number formats the processor computes in."""

import os
from pathlib import Path

import pytest
import torch

from eca_hub.processor import has_instructions, num_usable_cores
from eca_hub.sweep.queue import threads_of_job
from eca_hub.train.environment import device_name


@pytest.mark.parametrize(
    ("capability", "bf16", "fp16", "fp16_for_matrices"),
    [
        ("avx2", False, False, False),
        ("avx512_bf16", True, False, False),
        ("avx512_fp16", False, True, False),
        ("amx_fp16", False, True, True),
        ("bf16", True, False, False),
    ],
)
def test_a_format_needs_instructions_of_its_own(
    capability: str, bf16: bool, fp16: bool, fp16_for_matrices: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True, "amx_tile": False})
    assert has_instructions("bf16") is bf16
    assert has_instructions("fp16") is fp16
    assert has_instructions("fp16", for_matrices=True) is fp16_for_matrices


def test_a_version_of_torch_without_get_capabilities_reports_no_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not has_instructions("bf16")


def test_only_cores_that_the_process_may_use_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_limit = tmp_path / "cpu.max"
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    assert num_usable_cores(no_limit) == 2
    assert threads_of_job(2) == 1
    # The machine of the test may have a CPU limit of its own.
    monkeypatch.setattr("eca_hub.train.environment.num_usable_cores", lambda: num_usable_cores(no_limit))
    assert "(2 cores" in device_name(torch.device("cpu"))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert num_usable_cores(no_limit) == 64


@pytest.mark.parametrize(
    ("limit", "num_cores"),
    [
        ("max 100000", 64),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("5000 100000", 1),
        ("9900000 100000", 64),
        ("", 64),
        (None, 64),
    ],
)
def test_the_cores_of_a_container_are_those_of_its_cpu_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, num_cores: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(64), raising=False)
    if limit is not None:
        (tmp_path / "cpu.max").write_text(f"{limit}\n")
    assert num_usable_cores(tmp_path / "cpu.max") == num_cores
