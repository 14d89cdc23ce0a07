"""Read a safetensors file as tensors that are views of its bytes.

The safetensors library copies every tensor, which takes longer than reading the file. The rules of the format, all
checked before a tensor is created:

    8 bytes         length of the header, little-endian
    the header      JSON: name -> dtype, shape, data_offsets; no duplicate names; `__metadata__` holds strings
    the data        tensor after tensor, each as long as its dtype and shape say, without gaps or overlaps, to the end

Source: https://github.com/huggingface/safetensors#format
"""

import json
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor

MAX_HEADER_BYTES = 16 << 20
_MAX_DIMS = 64
_MAX_ELEMENTS = 2**48

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_tensors(content: bytes | memoryview) -> dict[str, Tensor]:
    """Return the tensors of a file that is in memory.

    Args:
        content: The file. The tensors share its memory; read-only content is copied.

    Raises:
        ValueError: the file breaks a rule of the format, or has a dtype or shape that is not supported; says which.
    """
    header, start = _read_header(content)
    memory = memoryview(bytearray(content)) if memoryview(content).readonly else memoryview(content)
    spans = {name: _Span(name, entry) for name, entry in header.items() if name != "__metadata__"}
    ends = sorted((span.first, span.last) for span in spans.values())
    if any(after[0] != before[1] for before, after in pairwise([(0, 0), *ends, (len(memory) - start, 0)])):
        raise ValueError("its tensors do not fill the data without gaps and overlaps")
    return {name: span.tensor(memory, start) for name, span in spans.items()}


def _read_header(content: bytes | memoryview) -> tuple[dict[str, Any], int]:
    """Return the header and where the data begin."""
    start = 8 + int.from_bytes(content[:8], "little")
    if len(content) < 8 or start > len(content):
        raise ValueError("it ends within its header")
    if start > MAX_HEADER_BYTES:
        raise ValueError(f"its header has more than {MAX_HEADER_BYTES} bytes")
    try:
        header = json.loads(bytes(content[8:start]).decode(), object_pairs_hook=_reject_duplicate_keys)
    except RecursionError:
        header = None
    if not isinstance(header, dict) or content[8:9] != b"{":
        raise ValueError("its header is not a JSON object")
    return header, start


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse duplicate names: readers differ in which of the two they use."""
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("a name occurs twice in its header")
    return names


class _Span:
    """Position, dtype and shape of one tensor."""

    def __init__(self, name: str, entry: Any) -> None:
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{name[:100]!r} has other keys than dtype, shape and data_offsets")
        if not isinstance(entry["dtype"], str) or entry["dtype"] not in _DTYPES:
            raise ValueError(f"{name[:100]!r} has the dtype {str(entry['dtype'])[:20]!r}")
        self._dtype, self._shape = _DTYPES[entry["dtype"]], entry["shape"]
        offsets = entry["data_offsets"]
        if not _are_sizes(self._shape) or not _are_sizes(offsets) or len(offsets) != 2:
            raise ValueError(f"{name[:100]!r} has a shape or data_offsets that are not lists of sizes")
        self.first, self.last = offsets
        # The limits first: a product of many large sizes, one of them 0, would overflow inside torch.
        if (
            len(self._shape) > _MAX_DIMS
            or prod(size for size in self._shape if size) > _MAX_ELEMENTS
            or self.last - self.first != prod(self._shape) * self._dtype.itemsize
        ):
            raise ValueError(f"{name[:100]!r} has a shape that does not fit its {self.last - self.first} bytes")

    def tensor(self, memory: memoryview, start: int) -> Tensor:
        """Return the tensor: a view if its bytes are aligned, else a copy."""
        if self.first == self.last:
            return torch.empty(self._shape, dtype=self._dtype)
        offset = start + self.first
        if offset % self._dtype.itemsize:
            memory, offset = memoryview(bytearray(memory[offset : start + self.last])), 0
        count = prod(self._shape)
        return torch.frombuffer(memory, dtype=self._dtype, count=count, offset=offset).reshape(self._shape)


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 2**63 for number in value)
