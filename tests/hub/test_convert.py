"""Other people's weights: the outputs stay theirs, what does not fit is named, and nothing in a file is run."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn

from eca_hub import ImageConfig, create_model, load_pretrained
from eca_hub.commands.convert import main
from eca_hub.errors import CheckpointMismatch, InvalidConfig, InvalidUsage, UnknownName
from eca_hub.hub import convert
from eca_hub.hub.convert import convert_checkpoint
from eca_hub.hub.imagenet import imagenet_labels
from eca_hub.hub.package import FILES
from tests.hub import ecanet

Save = Callable[[object], Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write what torch.save writes."""

    def save_content(content: object) -> Path:
        path = tmp_path / "checkpoint.pth.tar"
        torch.save(content, path)
        return path

    return save_content


@pytest.fixture(scope="module")
def eca_resnet18() -> nn.Module:
    return ecanet.make("resnet18", num_classes=10)


def difference(one: nn.Module, other: nn.Module, side_px: int = 64) -> float:
    x_NCHW = torch.rand(2, 3, side_px, side_px, generator=torch.Generator().manual_seed(1)) - 0.5
    with torch.no_grad():
        expected, actual = one.eval()(x_NCHW), other.eval()(x_NCHW)
    assert expected.std() > 1e-3
    return float((expected - actual).abs().max())


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "resnet34", "resnet50", "mobilenet_v2"),
        pytest.param("resnet101", marks=pytest.mark.slow),
        pytest.param("resnet152", marks=pytest.mark.slow),
    ],
)
def test_official_weights_give_the_official_outputs(name: str, save: Save, tmp_path: Path) -> None:
    official = ecanet.make(name)
    model, config = convert_checkpoint(save(ecanet.released(official)), tmp_path / "package")
    sizes = list(ecanet.KERNEL_SIZES.get(name, (1, 1, 1, 1, 3, 3, 3)))
    assert (config.architecture, config.attention, config.attention_args) == (name, "eca", {"kernel_sizes": sizes})
    assert difference(official, model) <= 1e-6
    reloaded, reloaded_config = load_pretrained(tmp_path / "package")
    assert reloaded_config == config
    assert difference(official, reloaded) <= 1e-6


def test_mobilenet_weights_from_before_july_2020_have_other_kernels(save: Save) -> None:
    official = ecanet.randomize(ecanet.MobileNetV2(num_classes=4, wide_from=97))
    model, config = convert_checkpoint(save(official.state_dict()))
    assert config.attention_args == {"kernel_sizes": [1, 1, 1, 1, 1, 3, 3]}
    assert difference(official, model) <= 1e-6


@pytest.mark.parametrize("box", ["bare", "state_dict", "model", "wrapped twice"])
def test_weights_are_found_wherever_scripts_put_them(box: str, eca_resnet18: nn.Module, save: Save) -> None:
    weights = eca_resnet18.state_dict()
    content: object = {
        "bare": weights,
        "state_dict": {"state_dict": weights, "epoch": 3},
        "model": {"model": weights},
        "wrapped twice": {f"module._orig_mod.{name}": tensor for name, tensor in weights.items()},
    }[box]
    model, _ = convert_checkpoint(save(content))
    assert difference(eca_resnet18, model) <= 1e-6


def test_safetensors_and_half_precision_are_read(eca_resnet18: nn.Module, tmp_path: Path) -> None:
    halves = {name: t.half() if t.is_floating_point() else t for name, t in eca_resnet18.state_dict().items()}
    path = tmp_path / "weights.bin"
    safetensors.torch.save_file(halves, path)
    model, _ = convert_checkpoint(path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert difference(eca_resnet18, model) < 0.05


def test_old_files_without_counters_are_read(eca_resnet18: nn.Module, save: Save) -> None:
    weights = {name: t for name, t in eca_resnet18.state_dict().items() if "num_batches" not in name}
    model, _ = convert_checkpoint(save(weights))
    assert difference(eca_resnet18, model) <= 1e-6


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "mobilenet_v2"])
def test_torchvision_weights_give_the_same_outputs(name: str, save: Save) -> None:
    theirs = ecanet.randomize(torchvision.models.get_model(name, num_classes=7))
    model, config = convert_checkpoint(save(theirs.state_dict()))
    assert (config.architecture, config.attention, config.num_classes) == (name, "none", 7)
    assert difference(theirs, model) <= 1e-6


@pytest.mark.parametrize(
    ("name", "options", "attention"),
    [
        ("seresnet18", {}, "se"),
        ("seresnet50", {}, "se"),
        ("resnet18", {"block_args": {"attn_layer": "eca"}}, "eca"),
        ("resnet34", {}, "none"),
    ],
)
def test_timm_weights_of_known_backbones_need_no_name(
    name: str, options: dict[str, Any], attention: str, save: Save
) -> None:
    theirs = ecanet.randomize(timm.create_model(name, num_classes=6, **options))
    model, config = convert_checkpoint(save(theirs.state_dict()))
    assert (config.architecture, config.attention) == (name.removeprefix("se"), attention)
    assert difference(theirs, model) <= 1e-6


@pytest.mark.parametrize("name", ["ecaresnet26t", "eca_resnext26ts", "seresnext26d_32x4d"])
def test_any_network_of_timm_converts_under_its_name(name: str, save: Save, tmp_path: Path) -> None:
    theirs = ecanet.randomize(timm.create_model(name, num_classes=5))
    model, config = convert_checkpoint(save(theirs.state_dict()), tmp_path / "package", architecture=name)
    assert (config.num_classes, config.image.interpolation) == (5, "bicubic")
    assert difference(theirs, model) <= 1e-6
    assert difference(theirs, load_pretrained(tmp_path / "package")[0]) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", timm.list_models(["ecaresnet*", "eca_*", "se*", "legacy_se*"]))
def test_every_network_of_timm_with_channel_attention_converts(name: str, save: Save) -> None:
    theirs = ecanet.randomize(timm.create_model(name, num_classes=5))
    model, _ = convert_checkpoint(
        save({f"module.{key}": t for key, t in theirs.state_dict().items()}), architecture=name
    )
    x_NCHW = torch.rand(2, *theirs.default_cfg["input_size"]) - 0.5  # type: ignore[index]
    with torch.inference_mode():
        expected_NK = theirs(x_NCHW)
        assert expected_NK.isfinite().all()
        torch.testing.assert_close(model(x_NCHW), expected_NK, rtol=1e-6, atol=1e-6)


def test_our_attention_in_a_network_of_timm_converts_under_both_names(save: Save) -> None:
    ours = ecanet.randomize(create_model("eca_resnet26d", num_classes=3))
    model, config = convert_checkpoint(save(ours.state_dict()), architecture="eca_resnet26d")
    assert (config.architecture, config.attention) == ("resnet26d", "eca")
    assert difference(ours, model) <= 1e-6


def test_a_tag_of_timm_brings_its_preprocessing(save: Save) -> None:
    weights = timm.create_model("resnet18", num_classes=5).state_dict()
    _, config = convert_checkpoint(save(weights), architecture="resnet18.a1_in1k")
    assert (config.image.crop, config.image.interpolation) == (0.95, "bicubic")
    _, config = convert_checkpoint(save(weights))
    assert (config.image.crop, config.image.interpolation) == (0.875, "bilinear")


def test_preprocessing_is_the_authors_but_for_what_the_user_says(save: Save, tmp_path: Path) -> None:
    path = save(timm.create_model("resnet18", num_classes=5).state_dict())
    options = ["--architecture", "resnet18.a1_in1k", "--image.height_px", "288", "--image.width_px=288"]
    assert main([str(path), "--to", str(tmp_path / "package"), *options, "--image.mean", "0.5", "0.5", "0.5"]) == 0
    image = load_pretrained(tmp_path / "package")[1].image
    assert (image.height_px, image.width_px, image.crop, image.interpolation) == (288, 288, 0.95, "bicubic")
    assert (image.mean, image.std) == ((0.5, 0.5, 0.5), (0.229, 0.224, 0.225))
    whole = ImageConfig(height_px=160, width_px=160)
    assert convert_checkpoint(path, architecture="resnet18.a1_in1k", image=whole)[1].image == whole
    with pytest.raises(InvalidConfig, match="Preprocessing has no size; it has height_px, width_px, crop,"):
        convert_checkpoint(path, image={"size": 288})


def test_labels_are_imagenets_for_1000_outputs_and_numbers_otherwise(eca_resnet18: nn.Module, save: Save) -> None:
    names = imagenet_labels()
    assert len(set(names)) == 1000
    assert (names[0], names[281], names[134]) == ("tench", "tabby", "crane (n02012849)")
    path = save(eca_resnet18.state_dict())
    assert convert_checkpoint(path)[1].labels == tuple("0123456789")
    assert convert_checkpoint(path, labels=list("abcdefghij"))[1].labels == tuple("abcdefghij")
    with pytest.raises(InvalidConfig, match="2 labels, and the network in the file has 10 outputs"):
        convert_checkpoint(path, labels=["a", "b"])


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
def test_a_broken_file_is_said_to_be_broken(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(InvalidConfig, match="safetensors"):
        convert_checkpoint(path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, {"state_dict": {"a": 1}}, torch.zeros(2)])
def test_a_file_without_weights_is_said_to_have_none(content: object, save: Save) -> None:
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
def test_tensors_that_hold_no_plain_numbers_are_refused(strange: Tensor, eca_resnet18: nn.Module, save: Save) -> None:
    with pytest.raises(CheckpointMismatch, match=r"holds bn1\.bias, which are no plain tensors"):
        convert_checkpoint(save(change(eca_resnet18.state_dict(), bn1__bias=strange)))


def test_a_tensor_larger_than_its_file_costs_nothing(eca_resnet18: nn.Module, save: Save) -> None:
    huge = torch.zeros(1, dtype=torch.half).expand(10**11)
    with pytest.raises(CheckpointMismatch, match=r"bn1\.bias is \(100000000000,\) in the file"):
        convert_checkpoint(save(change(eca_resnet18.state_dict(), bn1__bias=huge)))
    many_classes = torch.zeros(1, 1).expand(10**9, 512)
    with pytest.raises(CheckpointMismatch, match="1000000000 outputs"):
        convert_checkpoint(save(change(eca_resnet18.state_dict(), fc__weight=many_classes)))


def test_names_that_share_memory_are_parted(eca_resnet18: nn.Module, save: Save, tmp_path: Path) -> None:
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
        ({"bn1__bias": torch.full((64,), torch.nan)}, "1 with NaN or infinity (bn1.bias)"),
        ({"layer1__0__eca__conv__weight": torch.zeros(1, 1, 9)}, "The kernels of stage 1 have 9 and 3 numbers"),
        ({"layer1__0__eca__conv__weight": None}, "1 missing (layer1.0.se.conv.weight)"),
        ({"layer1__0__eca__mlp__weight": torch.zeros(2)}, "The attention in layer1.0.se is none that can be converted"),
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


def test_what_the_user_said_must_be_what_the_file_holds(eca_resnet18: nn.Module, save: Save) -> None:
    path = save(eca_resnet18.state_dict())
    assert convert_checkpoint(path, architecture="eca_resnet18")[1].attention == "eca"
    with pytest.raises(CheckpointMismatch, match="holds resnet18 with attention 'eca', not se_resnet18"):
        convert_checkpoint(path, architecture="se_resnet18")
    with pytest.raises(UnknownName, match="eca_resnet18"):
        convert_checkpoint(path, architecture="eca_resnet188")


def test_the_nearest_backbone_is_named_when_a_relative_does_not_fit(save: Save) -> None:
    deep_stem = timm.create_model("resnet26d", num_classes=2).state_dict()
    with pytest.raises(CheckpointMismatch, match=r"do not fit resnet50: .* unexpected \(conv1\.0\.weight, "):
        convert_checkpoint(save(deep_stem), architecture="resnet50")
    model, _ = convert_checkpoint(save(deep_stem), architecture="resnet26d")
    assert model.num_classes == 2


def test_weights_of_no_known_network_are_refused(save: Save) -> None:
    with pytest.raises(CheckpointMismatch, match="look like none of resnet18"):
        convert_checkpoint(save({"a": torch.zeros(2), "b": torch.zeros(3)}))


def test_a_folder_is_written_whole_or_not_at_all(
    eca_resnet18: nn.Module, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(eca_resnet18.state_dict())
    convert_checkpoint(path, tmp_path / "package")
    assert {file.name for file in (tmp_path / "package").iterdir()} == set(FILES)
    with pytest.raises(InvalidConfig, match="not empty"):
        convert_checkpoint(path, tmp_path / "package")

    def fail(model: nn.Module, config: object, folder: Path, **_: object) -> None:
        (folder / "README.md").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(convert, "save_pretrained", fail)
    with pytest.raises(InvalidConfig, match="other cannot be written: No space left on device"):
        convert_checkpoint(path, tmp_path / "other")
    assert {file.name for file in tmp_path.iterdir()} == {"checkpoint.pth.tar", "package"}


def test_what_the_system_refuses_is_said(eca_resnet18: nn.Module, save: Save, tmp_path: Path) -> None:
    path = save(eca_resnet18.state_dict())
    for folder, words in {path / "package": "Not a directory", tmp_path / ("x" * 300): "File name too long"}.items():
        with pytest.raises(InvalidConfig, match=f"package|xxx cannot be written: {words}"):
            convert_checkpoint(path, folder)
    assert list(tmp_path.iterdir()) == [path]


def test_the_command_converts(
    eca_resnet18: nn.Module, save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, labels = save(ecanet.released(eca_resnet18)), tmp_path / "labels.txt"
    labels.write_text("\n".join("abcdefghij") + "\n")
    assert main([str(path), "--to", str(tmp_path / "one"), "--labels", str(labels)]) == 0
    printed = capsys.readouterr().out
    assert "eca_resnet18 (kernel_sizes = [3, 5, 7, 7]): 11," in printed
    assert f"Try: eca-hub classify picture.jpg --model {tmp_path / 'one'}" in printed
    assert main([str(path), "--to", str(tmp_path / "two"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_classes"] == 10
    assert load_pretrained(tmp_path / "one")[1].labels == tuple("abcdefghij")


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["nowhere.pth", "--to", "x"], InvalidUsage),
        (["nowhere.pth"], InvalidUsage),
        (["acme/model", "--to", "x", "--format", "timm", "--architecture", "resnet18"], InvalidUsage),
        (["acme/model", "--to", "x", "--format", "timm", "--image.crop", "1"], InvalidUsage),
        ([__file__, "--to", "x", "--image.crop_mode", "border"], InvalidUsage),
        ([__file__, "--to", "x", "--image.height_px", "big"], InvalidUsage),
        ([__file__, "--to", "x", "--labels", "nowhere.txt"], InvalidConfig),
        ([__file__, "--to", "x"], InvalidConfig),
    ],
)
def test_mistakes_on_the_command_line_are_said(
    argv: list[str], error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        main(argv)
    assert not list(tmp_path.iterdir())
