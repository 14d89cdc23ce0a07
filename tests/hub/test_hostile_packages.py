"""Repositories with false metadata: a typed error, nothing executed, nothing large allocated."""

import json
import os
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from eca_hub import Classifier
from eca_hub.errors import EcaHubError, InvalidPackage
from eca_hub.hub.pull import pull_to
from tests.hub.hostile import MODEL_ID, FaultyHub, files_of

Files = dict[str, bytes]
WEIGHTS, CONFIG = "model.safetensors", "config.json"


@pytest.fixture
def hub(tiny_package: Path) -> Iterator[FaultyHub]:
    with FaultyHub(files_of(tiny_package)).running() as running:
        yield running


def without(name: str) -> Callable[[Files], None]:
    return lambda files: files.__delitem__(name)


def with_weights(change: Callable[[bytes], bytes]) -> Callable[[Files], None]:
    return lambda files: files.update({WEIGHTS: change(files[WEIGHTS])})


def with_header(change: Callable[[dict[str, Any]], Any], spare_bytes: int = 0) -> Callable[[Files], None]:
    """Change the header and leave the numbers, with more bytes behind them where it claims more."""

    def rewrite(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        change(header)
        encoded = json.dumps(header).encode()
        return struct.pack("<Q", len(encoded)) + encoded + data[8 + length :] + bytes(spare_bytes)

    return with_weights(rewrite)


def with_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Files], None]:
    def rewrite(data: bytes) -> bytes:
        tensors = safetensors.torch.load(data)
        change(tensors)
        return safetensors.torch.save(tensors)

    return with_weights(rewrite)


def with_config(**changes: Any) -> Callable[[Files], None]:
    def rewrite(files: Files) -> None:
        document = {**json.loads(files[CONFIG]), **changes}
        files[CONFIG] = json.dumps({key: value for key, value in document.items() if value is not ...}).encode()

    return rewrite


def say_twice(data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].decode().rstrip()
    zeros = json.dumps(json.loads(header)["fc.bias"])
    twice = f'{header[:-1]},"fc.bias":{zeros}}}'.encode()
    return struct.pack("<Q", len(twice)) + twice + data[8 + length :]


def first_tensor(header: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = header["fc.bias"]
    return entry


IMAGE = {
    "height_px": 32,
    "width_px": 32,
    "crop": 1.0,
    "crop_mode": "center",
    "interpolation": "bicubic",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}


def with_timm_arguments(arguments: dict[str, Any]) -> Callable[[Files], None]:
    """A config.json of timm's with other arguments for its ResNet."""
    pretrained_cfg = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3}
    document = {"architecture": "resnet18", "num_classes": 3, "pretrained_cfg": pretrained_cfg, "model_args": arguments}
    return lambda files: files.update({CONFIG: json.dumps(document).encode()})


REPOSITORIES: dict[str, Callable[[Files], None]] = {
    "weights without their last byte": with_weights(lambda data: data[:-1]),
    "weights of a header only": with_weights(lambda data: data[: 8 + int.from_bytes(data[:8], "little")]),
    "empty weights": with_weights(lambda data: b""),
    "weights with a byte behind them": with_weights(lambda data: data + b"x"),
    "weights with an archive behind them": with_weights(lambda data: data + b"PK\x05\x06" + bytes(18)),
    "a header of 2**63 bytes": with_weights(lambda data: struct.pack("<Q", 2**63) + data[8:]),
    "a header of 99 MB": with_weights(lambda data: struct.pack("<Q", 99_000_000) + data[8:]),
    "a header that is not UTF-8": with_weights(lambda data: data[:9] + b"\xff\xfe" + data[11:]),
    "a header that begins with a space": with_weights(lambda data: data[:8] + b" " + data[9:]),
    "a deep header": with_weights(lambda data: struct.pack("<Q", 200_000) + b"[" * 200_000),
    "a name that stands twice": with_weights(say_twice),
    "tensors that overlap": with_header(lambda header: first_tensor(header).update(data_offsets=[0, 12])),
    "a hole between tensors": with_header(lambda header: header.pop("fc.bias")),
    "a shape that overflows": with_header(lambda header: first_tensor(header).update(shape=[2**62, 2**62])),
    "a tensor of nothing": with_header(
        lambda header: header.update(x={"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]})
    ),
    "an unknown dtype": with_header(lambda header: first_tensor(header).update(dtype="F31")),
    "NaN": with_tensors(lambda tensors: tensors["fc.bias"].fill_(torch.nan)),
    "infinity": with_tensors(lambda tensors: tensors["fc.bias"].fill_(-torch.inf)),
    "a tensor too few": with_tensors(lambda tensors: tensors.pop("fc.bias")),
    "a tensor too many": with_tensors(lambda tensors: tensors.update(more=torch.zeros(1))),
    "a tensor of another shape": with_tensors(lambda tensors: tensors.update({"fc.bias": torch.zeros(4)})),
    "no weights": without(WEIGHTS),
    "no config": without(CONFIG),
    "a config that is no JSON": lambda files: files.update({CONFIG: b"<html>"}),
    "a config that is a list": lambda files: files.update({CONFIG: b"[]"}),
    "a config of NaN": lambda files: files.update({CONFIG: b"NaN"}),
    "a deep config": lambda files: files.update({CONFIG: b'{"a":' * 50_000}),
    **{
        f"{name} nested 600 deep": with_config(**{name: json.loads('{"a":' * 600 + "1" + "}" * 600)})
        for name in ("model_args", "attention_args", "image")
    },
    "timm's model_args nested 600 deep": with_config(
        library_name="timm", pretrained_cfg={}, eca_hub=..., model_args=json.loads('{"a":' * 600 + "1" + "}" * 600)
    ),
    "a config of 50 MB": lambda files: files.update({CONFIG: b" " * 50_000_000}),
    **{f"num_classes {value!r}": with_config(num_classes=value) for value in (10**9, -1, 0, "10", 2.5, True, None)},
    "no num_classes": with_config(num_classes=..., label_names=...),
    "an unknown architecture": with_config(architecture="resnet5000"),
    "an architecture that is a path": with_config(architecture="../../etc/passwd"),
    "an unknown attention": with_config(attention="os.system", eca_hub={"attention": "os.system", "format": 1}),
    **{
        f"kernel sizes {sizes}": with_config(attention_args={"kernel_sizes": sizes})
        for sizes in ([2, 2, 2], [0, 0, 0], [10**6 + 1] * 3, [-3, 3, 3], [3.5, 3, 3], {"a": 1})
    },
    "two classes of one name": with_config(label_names=["a", "a", "b"]),
    "a class less": with_config(label_names=["a", "b"]),
    "classes without a name": with_config(label_names=[None, 1, {}]),
    "a million classes": with_config(label_names=[str(index) for index in range(1_000_000)], num_classes=1_000_000),
    "an image of 10**9 pixels a side": with_config(
        image={"height_px": 10**9, "width_px": 10**9, "crop": 1.0, "crop_mode": "center", "interpolation": "bicubic"}
    ),
    "an image that is a text": with_config(image="224"),
    "a mean of NaN": with_config(image={**IMAGE, "mean": [float("nan"), 0.5, 0.5]}),
    "a std of infinity": with_config(image={**IMAGE, "std": [float("inf"), 0.5, 0.5]}),
    **{
        f"image {changes}": with_config(image={**IMAGE, **changes})
        for changes in (
            {"height_px": 32.0},
            {"width_px": True},
            {"in_chans": True},
            {"bit_depth": 12.5},
            {"crop": True},
            {"crop": float("nan")},
            {"mean": ["0.5", "x", "0.5"]},
            {"height_px": 10**4000},
        )
    },
    "a key that occurs twice": lambda files: files.update(
        {CONFIG: files[CONFIG].replace(b'"architecture"', b'"architecture": "resnet18", "architecture"', 1)}
    ),
    "a label of a megabyte": with_config(label_names=["x" * 10**6, "dog", "eel"]),
    "a label that controls the terminal": with_config(label_names=["\x1b]0;owned\x07", "dog", "eel"]),
    "a label that reverses the text around it": with_config(label_names=["\u202ecat", "dog", "eel"]),
    **{
        f"timm arguments {arguments}": with_timm_arguments(arguments)
        for arguments in ({"act_layer": "nope"}, {"block": 1}, {"layers": [6000, 1, 1, 1]}, {"layers": "many"})
    },
}


USUAL = {
    "weights without their last byte", "empty weights", "weights with an archive behind them",
    "a header of 2**63 bytes", "a deep header", "a name that stands twice", "tensors that overlap",
    "a shape that overflows", "NaN", "a tensor too few", "a tensor of another shape", "no weights", "no config",
    "a config that is no JSON", "a deep config", "timm's model_args nested 600 deep",
    "num_classes 1000000000", "num_classes '10'", "no num_classes",
    "an unknown architecture", "an architecture that is a path", "an unknown attention", "kernel sizes [0, 0, 0]",
    "two classes of one name", "a class less", "an image of 10**9 pixels a side", "a mean of NaN",
    "a label that controls the terminal", "timm arguments {'block': 1}",
}  # fmt: skip
"""One of each kind; the others are slow tests."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in USUAL else pytest.mark.slow) for name in REPOSITORIES]
)
def test_a_hostile_repository_is_refused_and_the_next_one_loads(name: str, hub: FaultyHub) -> None:
    good = dict(hub.files)
    REPOSITORIES[name](hub.files)
    with pytest.raises(EcaHubError) as refused:
        Classifier.from_pretrained(MODEL_ID, endpoint=hub.url)
    assert len(str(refused.value)) < 2000
    hub.files, hub.commit = good, "d" * 40
    assert Classifier.from_pretrained(MODEL_ID, endpoint=hub.url).config.labels == ("cat", "dog", "eel")


class Canary:
    """Runs when it is unpickled."""

    def __init__(self, nest: Path) -> None:
        self.nest = nest

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.nest),)


@pytest.mark.parametrize("is_beside_weights", [False, True])
@pytest.mark.parametrize("place", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_is_never_opened(place: str, is_beside_weights: bool, hub: FaultyHub, tmp_path: Path) -> None:
    nest = tmp_path / "hatched"
    if not is_beside_weights:
        hub.files.pop(WEIGHTS)
    hub.files[place] = pickle.dumps(Canary(nest))
    if place == "pytorch_model.bin" and is_beside_weights:
        Classifier.from_pretrained(MODEL_ID, endpoint=hub.url)
    else:
        with pytest.raises(EcaHubError):
            Classifier.from_pretrained(MODEL_ID, endpoint=hub.url)
    assert not nest.exists()
    assert not any("pytorch_model" in path for _, path, _ in hub.requests)


@pytest.mark.parametrize(
    "label", ["<script>alert(1)</script>", "two\nlines", "\u202eright to left", "NUL\x00", "\ud83d", "x" * 10_000]
)
def test_class_names_with_markup_stay_text(label: str, hub: FaultyHub) -> None:
    with_config(label_names=[label, "dog", "eel"])(hub.files)
    try:
        labels = Classifier.from_pretrained(MODEL_ID, endpoint=hub.url).config.labels
    except InvalidPackage:
        return
    assert labels[0] == label


@pytest.mark.parametrize(
    "card",
    [
        b"---\na: &a [x,x]\nb: &b [*a,*a]\n---\n",
        b"---\nx: !!python/object/apply:os.system ['touch /tmp/x']\n---\n",
        b"---\nnever closed",
        b"\xff\xfe",
        b"<script>",
    ],
)
def test_a_hostile_card_is_copied_and_not_parsed(card: bytes, hub: FaultyHub, tmp_path: Path) -> None:
    hub.files["README.md"] = card
    pull_to(MODEL_ID, tmp_path / "copy", endpoint=hub.url)
    assert (tmp_path / "copy" / "README.md").read_bytes() == card
