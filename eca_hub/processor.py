"""How many cores this process may use, and whether they have instructions for bfloat16 and float16.

Without these instructions each product is emulated: on a processor with AVX2, a matrix product of 1024 x 1024 in
bfloat16 took 50 times as long as in float32.
"""

import math
import os
from pathlib import Path
from typing import Any, Literal

_INSTRUCTIONS = {
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "fp16": ("avx512_fp16", "amx_fp16", "fp16"),
}
"""Number format to capabilities of x86 and Arm processors, by the names of `torch.cpu.get_capabilities`."""


def num_usable_cores(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Count the cores that this process may use: those of its affinity, or fewer if its container has a CPU limit.

    Args:
        quota_file: The limit by cgroup v2, as microseconds in each period: `200000 100000` is two cores. Without a
            limit it is `max 100000`, or there is no file.
    """
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota_us, period_us = map(int, quota_file.read_text().split())
    except (OSError, ValueError):
        return num_cores
    return max(1, min(num_cores, math.ceil(quota_us / period_us)))


def has_instructions(number_format: Literal["bf16", "fp16"], *, for_matrices: bool = False) -> bool:
    """Return whether the processor computes in a number format.

    Args:
        number_format: Its name.
        for_matrices: Whether only instructions that multiply matrices count.
    """
    # Not above: a sweep counts cores and needs no torch.
    import torch

    # Older versions of torch that pyproject.toml allows have no get_capabilities.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    names = [name for name in _INSTRUCTIONS[number_format] if name.startswith("amx_") or not for_matrices]
    return any(capabilities.get(name) for name in names)
