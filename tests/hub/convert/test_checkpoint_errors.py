"""Checkpoints that cannot be converted: what does not fit is named, no code of the file runs, no files are left."""

import errno
import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from eca_hub.commands.convert import main
from eca_hub.errors import CheckpointMismatch, InvalidConfig, InvalidUsage, UnknownName
from eca_hub.hub.convert import checkpoint
from eca_hub.hub.convert.checkpoint import convert_checkpoint
from eca_hub.hub.package import FILES
from tests.hub.conftest import Save


class Evil:
    """Leaves a mark when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_needs_code_is_refused_and_not_run(zipped: bool, tmp_path: Path) -> None:
    path, mark = tmp_path / "evil.pth", tmp_path / "mark"
    torch.save({"state_dict": {}, "x": Evil(mark)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointMismatch, match="would run code from the file") as refusal:
        convert_checkpoint(path, tmp_path / "package")
    assert "\n" not in str(refusal.value)
    assert not mark.exists()
    assert not (tmp_path / "package").exists()


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"PK\x03\x04junk", b"\x80\x04\x95", b"\x10" + bytes(7) + b"{junk in here"]
)
def test_a_broken_file_is_reported(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(InvalidConfig, match="safetensors"):
        convert_checkpoint(path)


@pytest.mark.parametrize(
    ("dtype", "shape", "num_bytes", "message"),
    [
        ("F4", [4], 2, r"is not read: 'a' has the dtype 'F4'; supported are F64, F32, "),
        ("F8_E4M3", [2], 2, r"is not read: 'a' has the dtype 'F8_E4M3'; supported are F64, F32, "),
        ("U16", [2], 4, r"is not read: 'a' has the dtype 'U16'; supported are F64, F32, "),
        ("C64", [2], 16, r"is not read: 'a' has the dtype 'C64'; supported are F64, F32, "),
        ("F32", [0, 2**62, 2**62], 0, r"is a broken safetensors file: 'a' has a shape"),
    ],
)
def test_a_safetensors_file_of_a_dtype_or_shape_that_is_not_supported_is_reported(
    dtype: str, shape: list[int], num_bytes: int, message: str, tmp_path: Path
) -> None:
    header = json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, num_bytes]}}).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(num_bytes))
    with pytest.raises(InvalidConfig, match=rf"odd\.safetensors {message}"):
        convert_checkpoint(path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, {"state_dict": {"a": 1}}, torch.zeros(2)])
def test_a_file_without_weights_is_refused(content: object, save: Save) -> None:
    with pytest.raises(CheckpointMismatch, match="holds"):
        convert_checkpoint(save(content))


@pytest.mark.parametrize(
    "strange",
    [
        torch.zeros(64, device="meta"),
        torch.zeros(64).to_sparse(),
        torch.zeros(64, dtype=torch.complex64),
    ],
)
def test_tensors_that_are_not_plain_are_refused(strange: Tensor, eca_resnet18: nn.Module, save: Save) -> None:
    with pytest.raises(CheckpointMismatch, match=r"holds bn1\.bias, which are not plain tensors"):
        convert_checkpoint(save(change(eca_resnet18.state_dict(), bn1__bias=strange)))


@pytest.mark.slow
def test_a_tensor_larger_than_its_file_costs_nothing(eca_resnet18: nn.Module, save: Save) -> None:
    huge = torch.zeros(1, dtype=torch.half).expand(10**11)
    with pytest.raises(CheckpointMismatch, match=r"bn1\.bias is \(100000000000,\) in the file"):
        convert_checkpoint(save(change(eca_resnet18.state_dict(), bn1__bias=huge)))
    many_classes = torch.zeros(1, 1).expand(10**9, 512)
    with pytest.raises(CheckpointMismatch, match="1000000000 outputs"):
        convert_checkpoint(save(change(eca_resnet18.state_dict(), fc__weight=many_classes)))


@pytest.mark.slow
def test_tensors_that_share_memory_are_copied(eca_resnet18: nn.Module, save: Save, tmp_path: Path) -> None:
    weights = eca_resnet18.state_dict()
    weights["layer1.0.bn1.weight"] = weights["bn1.weight"]
    model, _ = convert_checkpoint(save(weights), tmp_path / "package")
    assert model.get_parameter("bn1.weight").data_ptr() != model.get_parameter("layer1.0.bn1.weight").data_ptr()


def change(weights: dict[str, Tensor], **changes: Tensor | None) -> dict[str, Tensor]:
    merged = {**weights, **{name.replace("__", "."): tensor for name, tensor in changes.items()}}
    return {name: tensor for name, tensor in merged.items() if tensor is not None}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bn1__weight": None, "fc__bias": None}, "2 missing (bn1.weight, fc.bias)"),
        ({"extra": torch.zeros(1)}, "1 unexpected (extra)"),
        ({"bn1__bias": torch.zeros(7)}, "bn1.bias is (7,) in the file, (64,) in the network"),
        ({"bn1__bias": torch.full((64,), torch.nan)}, "1 with NaN or infinity in float32 (bn1.bias)"),
        ({"layer1__0__eca__conv__weight": torch.zeros(1, 1, 9)}, "The kernels of stage 1 have sizes 9 and 3"),
        ({"layer1__0__eca__conv__weight": None}, "1 missing (layer1.0.se.conv.weight)"),
        ({"layer1__0__eca__mlp__weight": torch.zeros(2)}, "The attention in layer1.0.se cannot be converted"),
    ],
)
def test_what_does_not_fit_is_named(
    changes: dict[str, Any], words: str, eca_resnet18: nn.Module, save: Save, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointMismatch) as mismatch:
        convert_checkpoint(save(change(eca_resnet18.state_dict(), **changes)), tmp_path / "package")
    assert words in str(mismatch.value)
    assert not (tmp_path / "package").exists()


def test_a_checkpoint_of_another_architecture_names_the_first_five_of_each(eca_resnet18: nn.Module, save: Save) -> None:
    with pytest.raises(CheckpointMismatch) as mismatch:
        convert_checkpoint(save(eca_resnet18.state_dict()), architecture="resnet50")
    message = str(mismatch.value)
    assert "do not fit eca_resnet50" in message
    assert "missing (layer1.0.bn3.bias, " in message
    assert "of another shape (layer1.0.conv1.weight is (64, 64, 3, 3) in the file" in message
    assert message.count(" in the file, ") == 5


def test_the_given_architecture_must_match_the_file(eca_resnet18: nn.Module, save: Save) -> None:
    path = save(eca_resnet18.state_dict())
    assert convert_checkpoint(path, architecture="eca_resnet18")[1].attention == "eca"
    with pytest.raises(CheckpointMismatch, match="holds resnet18 with attention 'eca', not se_resnet18"):
        convert_checkpoint(path, architecture="se_resnet18")
    with pytest.raises(CheckpointMismatch, match="holds resnet18 with attention 'eca', not ceca_resnet18"):
        convert_checkpoint(path, architecture="ceca_resnet18")


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ("eca_resnet188", "eca_resnet18"),
        ("resnet18.a1_in2k", "'resnet18.a1_in1k'"),
        ("eca_resnet18.a1_in1k", "no architecture 'eca_resnet18.a1_in1k'"),
    ],
)
def test_an_unknown_architecture_or_tag_is_refused_before_the_file_is_read(
    architecture: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "no_checkpoint.pth"
    path.touch()
    with pytest.raises(UnknownName, match=words):
        convert_checkpoint(path, architecture=architecture)
    with pytest.raises(UnknownName, match=words):
        main([str(path), "--to", str(tmp_path / "package"), "--architecture", architecture])


def test_the_nearest_backbone_is_named_when_a_relative_does_not_fit(save: Save) -> None:
    deep_stem = timm.create_model("resnet26d", num_classes=2).state_dict()
    with pytest.raises(CheckpointMismatch, match=r"do not fit resnet50: .* unexpected \(conv1\.0\.weight, "):
        convert_checkpoint(save(deep_stem), architecture="resnet50")
    model, _ = convert_checkpoint(save(deep_stem), architecture="resnet26d")
    assert model.num_classes == 2


def test_weights_of_an_unknown_network_are_refused(save: Save) -> None:
    with pytest.raises(CheckpointMismatch, match="belong to none of resnet18"):
        convert_checkpoint(save({"a": torch.zeros(2), "b": torch.zeros(3)}))


def test_labels_of_deeply_nested_json_are_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text("[" * 99_999)
    with pytest.raises(InvalidConfig, match=r"labels\.json is neither UTF-8 text nor JSON"):
        main([__file__, "--to", str(tmp_path / "x"), "--labels", str(tmp_path / "labels.json")])


@pytest.mark.parametrize("tensor", [torch.tensor(1.0), torch.zeros(1), torch.zeros(1, 1)])
@pytest.mark.parametrize("name", ["se.conv.weight", "se.fc1.weight"])
def test_attention_of_another_shape_is_refused(name: str, tensor: Tensor, save: Save) -> None:
    weights = timm.create_model("resnet18", num_classes=2).state_dict()
    added = {f"layer1.0.{name}": tensor} | ({"layer1.0.se.fc2.weight": tensor} if "fc1" in name else {})
    with pytest.raises(CheckpointMismatch):
        convert_checkpoint(save(weights | added))


def test_a_folder_is_written_completely_or_not_at_all(
    eca_resnet18: nn.Module, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(eca_resnet18.state_dict())
    convert_checkpoint(path, tmp_path / "package")
    assert {file.name for file in (tmp_path / "package").iterdir()} == set(FILES)
    with pytest.raises(InvalidConfig, match="not empty"):
        convert_checkpoint(path, tmp_path / "package")

    def fail(model: nn.Module, folder: Path, **_: object) -> None:
        (folder / "README.md").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_pretrained", fail)
    with pytest.raises(InvalidConfig, match="other cannot be written: No space left on device"):
        convert_checkpoint(path, tmp_path / "other")
    assert {file.name for file in tmp_path.iterdir()} == {"checkpoint.pth.tar", "package"}


def test_errors_of_the_file_system_are_reported(eca_resnet18: nn.Module, save: Save, tmp_path: Path) -> None:
    path = save(eca_resnet18.state_dict())
    for folder, words in {path / "package": "Not a directory", tmp_path / ("x" * 300): "File name too long"}.items():
        with pytest.raises(InvalidConfig, match=rf"^{re.escape(str(folder))} cannot be written: {words}\."):
            convert_checkpoint(path, folder)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["nowhere.pth", "--to", "x"], InvalidUsage),
        (["nowhere.pth"], InvalidUsage),
        (["acme/model", "--to", "x", "--format", "timm", "--architecture", "resnet18"], InvalidUsage),
        (["acme/model", "--to", "x", "--format", "timm", "--image.crop", "1"], InvalidUsage),
        ([__file__, "--to", "x", "--image.crop_mode", "round"], InvalidUsage),
        ([__file__, "--to", "x", "--image.height_px", "big"], InvalidUsage),
        ([__file__, "--to", "x", "--labels", "nowhere.txt"], InvalidConfig),
        ([__file__, "--to", "x"], InvalidConfig),
        ([__file__, "--to", ""], InvalidUsage),
        (["x" * 300, "--to", "x"], InvalidUsage),
        ([__file__, "--to", "x", "--labels", "x" * 300], InvalidConfig),
        ([__file__, "--to", "x" * 300], InvalidConfig),
        ([__file__, "--to", "."], InvalidConfig),
        (["~no_such_user/model", "--to", "x", "--format", "timm"], InvalidConfig),
    ],
)
def test_mistakes_on_the_command_line_are_refused(
    argv: list[str], error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        main(argv)
    assert not list(tmp_path.iterdir())
