"""Read a safetensors file, and build a network around given weights: all of them, exactly, or none.

The safetensors library copies every tensor, which takes longer than reading the file; here tensors are views of its
bytes. The rules of the format, all checked before a tensor is created:

    8 bytes         length of the header, little-endian
    the header      JSON: name -> dtype, shape, data_offsets; no duplicate names; `__metadata__` holds strings
    the data        tensor after tensor, each as long as its dtype and shape say, without gaps or overlaps, to the end

Source: https://github.com/huggingface/safetensors#format

Weights that do not fit a network are refused by name: the first five of the missing, unexpected and misshapen ones.
"""

import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Size, Tensor, nn

from eca_hub.errors import CheckpointMismatch
from eca_hub.models.build import check_materialized
from eca_hub.models.weight_init import SkipRandomInit, on_meta_device

Shapes = Mapping[str, Size]
WeightsFor = Callable[[Shapes], Mapping[str, Tensor]]

_NUM_NAMED = 5
_MAX_COMPUTED_BYTES = 2**30
_MAX_EXACT_INTEGER = 2**53
"""Above it float64 does not hold every integer."""
_NUMPY_DTYPES = (torch.float32, torch.float16)

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


class UnsupportedDtype(ValueError):
    """A tensor has a dtype that no network here has, such as F8_E4M3, U16 or C64; says which."""


def read_tensors(content: bytes | memoryview) -> dict[str, Tensor]:
    """Return the tensors of a file that is in memory.

    Args:
        content: The file. The tensors share its memory; read-only content is copied.

    Raises:
        UnsupportedDtype: a tensor has a dtype that is not supported.
        ValueError: the file breaks a rule of the format, or has a shape that is not supported; says which.
    """
    header, start = _read_header(content)
    memory = memoryview(bytearray(content)) if memoryview(content).readonly else memoryview(content)
    spans = _spans_in(header, len(memory) - start)
    return {name: span.tensor(memory, start) for name, span in spans.items()}


def build_and_load(
    build: Callable[[], nn.Module], weights: Mapping[str, Tensor] | WeightsFor, *, sentence: str
) -> nn.Module:
    """Build a network with the tensors as its weights, without copying them.

    It is built on the meta device first, where nothing is allocated or initialized, so that a configuration with a
    false size costs nothing before the weights are compared with it. Networks with tensors outside their state dict
    (non-persistent buffers, such as the index tables of Swin) are then built once more on the CPU, which computes them.

    Args:
        build: Makes the network; called once or twice.
        weights: Name to tensor, on the CPU, or a function that returns them for the names and shapes of the network.
            Half precision is converted to float32, which loses nothing, and batch counters of batch norm to integers.
        sentence: What does not fit what, without a full stop: the start of the message.

    Raises:
        CheckpointMismatch: names, shapes or kinds of numbers differ, a number is NaN or infinite, or tensors outside
            the state dict are too large.
    """
    with on_meta_device():
        model = build()
    expected = model.state_dict()
    if callable(weights):
        weights = weights({name: tensor.shape for name, tensor in expected.items()})
    weights = _with_integer_counters(weights)
    check_fit(expected, weights, sentence=sentence)
    check_finite(weights, sentence=sentence)
    others = _tensors_outside_state_dict(model)
    if others:
        num_bytes = sum(tensor.nbytes for tensor in others.values())
        if num_bytes > _MAX_COMPUTED_BYTES:
            raise CheckpointMismatch(
                f"{sentence}: its index tables need {num_bytes} bytes; at most {_MAX_COMPUTED_BYTES} are allowed."
            )
        with SkipRandomInit():
            model = build()
    model.load_state_dict(_with_own_memory(weights), strict=True, assign=True)
    check_materialized(model)
    return model


def _with_integer_counters(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert batch counters that are whole floats, as after `.half()` of each tensor of a state dict, to integers."""
    return {
        name: tensor.long() if name.endswith("num_batches_tracked") and _is_integral(tensor) else tensor
        for name, tensor in weights.items()
    }


def _is_integral(tensor: Tensor) -> bool:
    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return False
    return bool(((tensor == tensor.round()) & (tensor.double().abs() < _MAX_EXACT_INTEGER)).all())


def check_finite(weights: Mapping[str, Tensor], *, sentence: str) -> None:
    """Refuse NaN and infinity, and float64 that becomes infinite in float32.

    Raises:
        CheckpointMismatch: a number is NaN or infinite; names the tensors.
    """
    broken = [name for name, tensor in weights.items() if not _is_finite(tensor)]
    if broken:
        raise CheckpointMismatch(f"{sentence}: {_count_and_name('with NaN or infinity in float32', broken, str)[0]}.")


def _spans_in(header: Mapping[str, Any], num_bytes: int) -> "dict[str, _Span]":
    spans = {name: _Span(name, entry) for name, entry in header.items() if name != "__metadata__"}
    ends = sorted((span.first, span.last) for span in spans.values())
    if any(after[0] != before[1] for before, after in pairwise([(0, 0), *ends, (num_bytes, 0)])):
        raise ValueError("its tensors do not fill the data without gaps and overlaps")
    return spans


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
            raise UnsupportedDtype(
                f"{name[:100]!r} has the dtype {str(entry['dtype'])[:20]!r}; supported are {', '.join(_DTYPES)}"
            )
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


def _tensors_outside_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return non-persistent buffers, and tensors that are plain attributes of a module."""
    saved = model.state_dict().keys()
    tensors = {name: buffer for name, buffer in model.named_buffers() if name not in saved}
    for module_name, module in model.named_modules():
        for name, value in vars(module).items():
            values = value if isinstance(value, list | tuple) else [value]
            tensors.update(
                (f"{module_name}.{name}.{index}", each) for index, each in enumerate(values) if isinstance(each, Tensor)
            )
    return tensors


def check_fit(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], *, sentence: str) -> None:
    """Compare names, shapes and kinds of numbers of weights with those of a network.

    Raises:
        CheckpointMismatch: they differ; names the tensors.
    """
    other_shapes = [name for name in weights if name in expected and weights[name].shape != expected[name].shape]

    def shapes(name: str) -> str:
        return f"{name} is {tuple(weights[name].shape)} in the file, {tuple(expected[name].shape)} in the network"

    other_kinds = [
        name
        for name in weights
        if name in expected and weights[name].is_floating_point() != expected[name].is_floating_point()
    ]

    def kinds(name: str) -> str:
        return f"{name} is {weights[name].dtype} in the file, {expected[name].dtype} in the network"

    problems = [
        *_count_and_name("missing", sorted(expected.keys() - weights.keys()), str),
        *_count_and_name("unexpected", sorted(weights.keys() - expected.keys()), str),
        *_count_and_name("of another shape", other_shapes, shapes),
        *_count_and_name("of another kind of number", other_kinds, kinds),
    ]
    if problems:
        raise CheckpointMismatch(f"{sentence}: {'; '.join(problems)}.")


def _is_finite(tensor: Tensor) -> bool:
    """Return whether no number is NaN or infinite: either makes the sum so, which is six times as fast to compute.

    numpy adds in this thread: waking torch's threads for each of some hundred small tensors costs more than adding.
    """
    if not tensor.is_floating_point():
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = (tensor if tensor.dtype in _NUMPY_DTYPES else tensor.float()).detach().numpy()
        return bool(np.isfinite(numbers.sum())) or bool(np.isfinite(numbers).all())


def _with_own_memory(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory: two names, or a name and the rest of a larger tensor, may do so in a file."""
    owned: dict[str, Tensor] = {}
    used: set[int] = set()
    for name, tensor in weights.items():
        wide = tensor.float() if tensor.is_floating_point() else tensor
        storage = wide.untyped_storage()
        if storage.data_ptr() in used or storage.nbytes() != wide.nbytes or not wide.is_contiguous():
            wide = wide.clone(memory_format=torch.contiguous_format)
        used.add(wide.untyped_storage().data_ptr())
        owned[name] = wide
    return owned


def _count_and_name(kind: str, names: list[str], describe: Callable[[str], str]) -> list[str]:
    """Return `N KIND (NAME, ...)` with the first five names; nothing if there are none."""
    return [f"{len(names)} {kind} ({', '.join(describe(name) for name in names[:_NUM_NAMED])})"] if names else []
