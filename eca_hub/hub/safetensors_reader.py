"""The tensors of a safetensors file, as views of its bytes.

The library copies every tensor out of the bytes, which takes longer than reading the file; here they stay where they
are. The rules of the format, all checked before a tensor is made:

    8 bytes         length of the header, little-endian
    the header      JSON: name -> dtype, shape, data_offsets; no name twice; `__metadata__` holds texts
    the data        tensor after tensor, each as long as its dtype and shape say, without a hole or an overlap, to the
                    end of the file

Source: https://github.com/huggingface/safetensors#format
"""

import json
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor

MAX_HEADER_BYTES = 16 << 20
_MAX_SIDE = 2**31

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
    """Make the tensors of a file that is in memory.

    Args:
        content: The file. The tensors are its own memory, so who changes one changes the other; what nobody may
            change is copied.

    Raises:
        ValueError: the file breaks a rule of the format, or holds what no network of ours has; says which.
    """
    header, start = _read_header(content)
    memory = memoryview(bytearray(content)) if memoryview(content).readonly else memoryview(content)
    spans = {name: _Span(name, entry) for name, entry in header.items() if name != "__metadata__"}
    ends = sorted((span.first, span.last) for span in spans.values())
    if any(after[0] != before[1] for before, after in pairwise([(0, 0), *ends, (len(memory) - start, 0)])):
        raise ValueError("its tensors do not fill the data from the first byte to the last, one after the other")
    return {name: span.tensor(memory, start) for name, span in spans.items()}


def _read_header(content: bytes | memoryview) -> tuple[dict[str, Any], int]:
    """Return the header and where the data begin."""
    start = 8 + int.from_bytes(content[:8], "little")
    if len(content) < 8 or start > len(content):
        raise ValueError("it ends within its header")
    if start > MAX_HEADER_BYTES:
        raise ValueError(f"its header has more than {MAX_HEADER_BYTES} bytes")
    try:
        header = json.loads(bytes(content[8:start]).decode(), object_pairs_hook=_without_twins)
    except RecursionError:
        header = None
    if not isinstance(header, dict) or content[8:9] != b"{":
        raise ValueError("its header is no JSON object")
    return header, start


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A name that stands twice would be read as its last meaning by some, and as its first by others."""
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("a name stands twice in its header")
    return names


class _Span:
    """Where one tensor lies in the data, and what it is."""

    def __init__(self, name: str, entry: Any) -> None:
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{name[:100]!r} has not just a dtype, a shape and data_offsets")
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{name[:100]!r} has the dtype {str(entry['dtype'])[:20]!r}")
        self._dtype, self._shape = _DTYPES[entry["dtype"]], entry["shape"]
        offsets = entry["data_offsets"]
        if not _are_sizes(self._shape) or not _are_sizes(offsets) or len(offsets) != 2:
            raise ValueError(f"{name[:100]!r} has a shape or data_offsets that are no lists of sizes")
        self.first, self.last = offsets
        if (
            self.last - self.first != prod(self._shape) * self._dtype.itemsize
            or max(self._shape, default=0) > _MAX_SIDE
        ):
            raise ValueError(f"{name[:100]!r} has other than the {self.last - self.first} bytes of its shape")

    def tensor(self, memory: memoryview, start: int) -> Tensor:
        """Return the tensor, as a view where its numbers lie as the processor wants them."""
        if self.first == self.last:
            return torch.empty(self._shape, dtype=self._dtype)
        offset = start + self.first
        if offset % self._dtype.itemsize:
            memory, offset = memoryview(bytearray(memory[offset : start + self.last])), 0
        count = prod(self._shape)
        return torch.frombuffer(memory, dtype=self._dtype, count=count, offset=offset).reshape(self._shape)


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)
