"""Tensors as views of a file's bytes: what the library reads, and nothing that it would not read the same way."""

import json
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from eca_hub.errors import CheckpointMismatch
from eca_hub.hub.weights import build_and_load, read_tensors

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip


def example() -> dict[str, Tensor]:
    torch.manual_seed(0)
    tensors = {f"{index}.{dtype}": torch.rand(3, 5).mul(9).to(dtype) for index, dtype in enumerate(DTYPES)}
    return {**tensors, "scalar": torch.tensor(7), "empty": torch.empty(0, 4)}


def file_of(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    """Bit for bit: a float made of any bytes may be NaN."""
    return ours.keys() == theirs.keys() and all(
        (tensor.dtype, tensor.shape) == (theirs[name].dtype, theirs[name].shape)
        and bytes(tensor.flatten().view(torch.uint8).numpy()) == bytes(theirs[name].flatten().view(torch.uint8).numpy())
        for name, tensor in ours.items()
    )


def test_tensors_of_every_type_are_what_the_library_reads() -> None:
    content = safetensors.torch.save(example(), metadata={"format": "pt"})
    assert same(read_tensors(content), safetensors.torch.load(content))


def test_the_tensors_share_the_memory_of_the_bytes_and_read_only_bytes_are_copied() -> None:
    content = safetensors.torch.save({"a": torch.zeros(4)})
    memory = np.frombuffer(bytearray(content), np.uint8).data
    tensor = read_tensors(memory)["a"]
    memory[-4:] = np.float32(1.0).tobytes()
    assert tensor.tolist() == [0, 0, 0, 1]
    read_tensors(content)["a"].fill_(3)
    assert content == safetensors.torch.save({"a": torch.zeros(4)})


def test_unaligned_tensors_of_an_old_file_are_read() -> None:
    data = bytes(1) + torch.arange(3, dtype=torch.float32).numpy().tobytes()
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [3], "data_offsets": [1, 13]},
    }
    assert read_tensors(memoryview(bytearray(file_of(header, data))))["b"].tolist() == [0, 1, 2]


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ends within its header"),
        (file_of({"a": entry()}, bytes(8))[:20], "ends within its header"),
        ((2**63).to_bytes(8, "little") + b"{}", "ends within its header"),
        (file_of(b"{" + b" " * (17 << 20) + b"}"), "header has more than"),
        (file_of(b" {}"), "not a JSON object"),
        (file_of(b"[]"), "not a JSON object"),
        (file_of(b"{" + b'"a":{' * 100_000), "not a JSON object"),
        (file_of(b"\xff\xfe"), "decode"),
        (file_of(b'{"a": 1, "a": 2}'), "occurs twice"),
        (file_of({"a": entry(shape=[3])}, bytes(8)), "does not fit its"),
        (file_of({"a": entry(shape=[2.0])}, bytes(8)), "not lists of sizes"),
        (file_of({"a": entry(shape=[True, 2])}, bytes(8)), "not lists of sizes"),
        (file_of({"a": entry(shape=[-1, -2])}, bytes(8)), "not lists of sizes"),
        (file_of({"a": entry(data_offsets=[8, 0])}, bytes(8)), "does not fit its"),
        (file_of({"a": entry(data_offsets=[0, 8, 8])}, bytes(8)), "not lists of sizes"),
        (file_of({"a": entry(dtype="C64", shape=[1])}, bytes(8)), "has the dtype 'C64'"),
        (file_of({"a": entry(dtype=[])}, bytes(8)), "has the dtype '\\[\\]'"),
        (file_of({"a": entry(dtype={"a": 1})}, bytes(8)), "has the dtype"),
        (file_of({"a": entry(dtype=None)}, bytes(8)), "has the dtype"),
        (file_of({"a": entry(shape=[2**70])}, bytes(8)), "not lists of sizes"),
        (file_of({"a": entry(shape=[1] * 100, data_offsets=[0, 4])}, bytes(4)), "does not fit its"),
        (file_of({"a": entry(shape=[0, 2**40, 2**40], data_offsets=[0, 0])}), "does not fit its"),
        (file_of({"a": entry(more=1)}, bytes(8)), "other keys than dtype"),
        (file_of({"a": None}, bytes(8)), "other keys than dtype"),
        (file_of({"a": entry(shape=[0, 2**62], data_offsets=[0, 0])}), "does not fit its"),
        (file_of({"a": entry()}, bytes(9)), "do not fill the data"),
        (file_of({"a": entry()}, bytes(7)), "do not fill the data"),
        (file_of({"a": entry(data_offsets=[8, 16])}, bytes(16)), "do not fill the data"),
        (file_of({"a": entry(), "b": entry()}, bytes(8)), "do not fill the data"),
        (file_of({"a": entry(), "b": entry(data_offsets=[4, 12])}, bytes(12)), "do not fill the data"),
    ],
)
def test_a_broken_rule_of_the_format_is_named(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_tensors(content)


SIZES = st.lists(st.integers(-1, 6), max_size=3)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "I16", "BF16", "X"]),
        "shape": SIZES,
        "data_offsets": st.tuples(st.integers(-1, 40), st.integers(-1, 40)).map(list),
    }
)


@given(header=st.dictionaries(st.text(max_size=3), ENTRIES, max_size=3), data=st.binary(max_size=48))
def test_what_is_read_here_the_library_reads_the_same_way(header: dict[str, Any], data: bytes) -> None:
    content = file_of(header, data)
    try:
        ours = read_tensors(content)
    except ValueError:
        return
    assert same(ours, safetensors.torch.load(content))


@given(at=st.integers(0, 1_500), byte=st.integers(0, 255), cut=st.integers(0, 3))
def test_a_changed_byte_is_refused_or_read_as_the_library_reads_it(at: int, byte: int, cut: int) -> None:
    content = bytearray(safetensors.torch.save(example()))
    content[at % len(content)] = byte
    changed = bytes(content[: len(content) - cut])
    try:
        ours = read_tensors(changed)
    except ValueError:
        return
    assert same(ours, safetensors.torch.load(changed))


def test_finite_numbers_beyond_float32_are_refused_and_not_loaded_as_infinity() -> None:
    layer = nn.Linear(1, 1, bias=False)
    weights = {"weight": torch.tensor([[1e300]], dtype=torch.float64)}
    with pytest.raises(CheckpointMismatch, match=r"1 with NaN or infinity in float32 \(weight\)"):
        build_and_load(lambda: layer, weights, sentence="The weights do not fit")
    weights["weight"].fill_(1e30)
    loaded = build_and_load(lambda: layer, weights, sentence="The weights do not fit").state_dict()
    assert loaded["weight"].item() == pytest.approx(1e30)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_batch_counters_that_are_whole_floats_become_integers(dtype: torch.dtype) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in nn.BatchNorm2d(2).state_dict().items()}
    weights["num_batches_tracked"].fill_(256)
    loaded = build_and_load(lambda: nn.BatchNorm2d(2), weights, sentence="The weights do not fit").state_dict()
    assert loaded["num_batches_tracked"].dtype == torch.int64
    assert loaded["num_batches_tracked"].item() == 256
    for number in (0.5, float("inf"), float("nan")):
        weights["num_batches_tracked"].fill_(number)
        with pytest.raises(CheckpointMismatch, match="num_batches_tracked is torch"):
            build_and_load(lambda: nn.BatchNorm2d(2), weights, sentence="The weights do not fit")
