"""Which number formats of half the width the processor has instructions for; it emulates each product in the others.

A matrix product of 1024 x 1024 in bfloat16 took 50 times as long as in float32 on a processor with AVX2.
"""

from typing import Any, Literal

import torch

_INSTRUCTIONS = {
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "fp16": ("avx512_fp16", "amx_fp16", "fp16"),
}
"""Names of x86 and Arm, as torch has them."""


def has_instructions(number_format: Literal["bf16", "fp16"], *, for_matrices: bool = False) -> bool:
    """Return whether the processor computes in a number format.

    Args:
        number_format: Its name.
        for_matrices: Whether only instructions that multiply matrices count.
    """
    # Not in every version of torch that pyproject.toml allows.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    names = [name for name in _INSTRUCTIONS[number_format] if name.startswith("amx_") or not for_matrices]
    return any(capabilities.get(name) for name in names)
