"""How many cores this process may use, and whether they have instructions for bfloat16 and float16.

Without these instructions each product is emulated: on a processor with AVX2, a matrix product of 1024 x 1024 in
bfloat16 took 50 times as long as in float32.
"""

import os
from typing import Any, Literal

_INSTRUCTIONS = {
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "fp16": ("avx512_fp16", "amx_fp16", "fp16"),
}
"""Number format to capabilities of x86 and Arm processors, by the names of `torch.cpu.get_capabilities`."""


def num_usable_cores() -> int:
    """Count the cores that this process may use, which a job of SLURM or a container can limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
