"""Whether the processor has instructions for bfloat16 and float16.

Without them each product is emulated: on a processor with AVX2, a matrix product of 1024 x 1024 in bfloat16 took 50
times as long as in float32.
"""

from typing import Any, Literal

import torch

_INSTRUCTIONS = {
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "fp16": ("avx512_fp16", "amx_fp16", "fp16"),
}
"""Number format to capabilities of x86 and Arm processors, by the names of `torch.cpu.get_capabilities`."""


def has_instructions(number_format: Literal["bf16", "fp16"], *, for_matrices: bool = False) -> bool:
    """Return whether the processor computes in a number format.

    Args:
        number_format: Its name.
        for_matrices: Whether only instructions that multiply matrices count.
    """
    # Older versions of torch that pyproject.toml allows have no get_capabilities.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    names = [name for name in _INSTRUCTIONS[number_format] if name.startswith("amx_") or not for_matrices]
    return any(capabilities.get(name) for name in names)
