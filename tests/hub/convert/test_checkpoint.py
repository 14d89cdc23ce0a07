"""Converted checkpoints keep their outputs, whatever dict, prefix and file name the training script used."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from eca_hub import ImageConfig, create_model, export_to_timm, load_pretrained
from eca_hub.commands.convert import main
from eca_hub.errors import CheckpointMismatch, InvalidConfig
from eca_hub.hub.convert import architecture, checkpoint
from eca_hub.hub.convert.checkpoint import convert_checkpoint
from eca_hub.hub.pretrained import imagenet_labels
from eca_hub.models.config import ModelConfig
from eca_hub.models.weight_init import on_meta_device
from tests.hub import ecanet
from tests.hub.conftest import Save


def difference(one: nn.Module, other: nn.Module, side_px: int = 64) -> float:
    x_NCHW = torch.rand(2, 3, side_px, side_px, generator=torch.Generator().manual_seed(1)) - 0.5
    with torch.no_grad():
        expected, actual = one.eval()(x_NCHW), other.eval()(x_NCHW)
    assert expected.std() > 1e-3
    return float((expected - actual).abs().max())


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("mobilenet_v2", "resnet34", "resnet50", "resnet101", "resnet152")
        ),
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
def test_weights_are_found_under_the_keys_of_training_scripts(box: str, eca_resnet18: nn.Module, save: Save) -> None:
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


@pytest.mark.parametrize("name", [pytest.param("resnet34", marks=pytest.mark.slow), "mobilenet_v2"])
def test_torchvision_weights_give_the_same_outputs(name: str, save: Save) -> None:
    theirs = ecanet.randomize(torchvision.models.get_model(name, num_classes=7))
    model, config = convert_checkpoint(save(theirs.state_dict()))
    assert (config.architecture, config.attention, config.num_classes) == (name, "none", 7)
    assert difference(theirs, model) <= 1e-6


@pytest.mark.parametrize(
    ("name", "options", "attention"),
    [
        ("seresnet18", {}, "se"),
        pytest.param("seresnet50", {}, "se", marks=pytest.mark.slow),
        ("resnet18", {"block_args": {"attn_layer": "eca"}}, "eca"),
        pytest.param("resnet34", {}, "none", marks=pytest.mark.slow),
    ],
)
def test_timm_weights_of_known_backbones_need_no_name(
    name: str, options: dict[str, Any], attention: str, save: Save
) -> None:
    theirs = ecanet.randomize(timm.create_model(name, num_classes=6, **options))
    model, config = convert_checkpoint(save(theirs.state_dict()))
    assert (config.architecture, config.attention) == (name.removeprefix("se"), attention)
    assert difference(theirs, model) <= 1e-6


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) for name in ("eca_resnext26ts", "ecaresnet26t", "seresnext26d_32x4d")],
)
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


def test_preprocessing_is_the_authors_except_for_given_fields(save: Save, tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    "text", [b'{"architectures": ["ViTForImageClassification"], "model_type": "vit"}', b"[]", b"\xff\xfe", b"[" * 99999]
)
def test_a_config_of_another_program_beside_the_file_is_ignored(
    text: bytes, eca_resnet18: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(eca_resnet18.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes(text)
    _, config = convert_checkpoint(tmp_path / "pytorch_model.bin")
    assert (config.architecture, config.attention) == ("resnet18", "eca")
    assert f"{tmp_path / 'config.json'} is not used: it is neither eca-hub's nor timm's." in caplog.messages


def test_a_config_of_timm_beside_the_file_is_used(eca_resnet18: nn.Module, tmp_path: Path) -> None:
    document = {"architecture": "resnet18", "num_classes": 1000, "pretrained_cfg": {}}
    torch.save(eca_resnet18.state_dict(), tmp_path / "pytorch_model.bin")
    safetensors.torch.save_file(eca_resnet18.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(document))
    for name in ("pytorch_model.bin", "model.safetensors"):
        with pytest.raises(CheckpointMismatch, match=r"do not fit resnet18, which the config\.json beside it names"):
            convert_checkpoint(tmp_path / name)


def test_the_license_of_the_package_around_the_file_is_that_of_the_new_one(
    eca_resnet18: nn.Module, tmp_path: Path
) -> None:
    source = tmp_path / "timm"
    export_to_timm(create_model("eca_resnet18", num_classes=2), source, labels=["cat", "dog"])
    document = json.loads((source / "config.json").read_text())
    del document["eca_hub"]
    document["pretrained_cfg"]["license"] = "cc-by-nc-4.0"
    (source / "config.json").write_text(json.dumps(document))
    (source / "README.md").unlink()
    assert main([str(source), "--to", str(tmp_path / "again"), "--format", "timm"]) == 0
    assert b"Of the weights: cc-by-nc-4.0." in (tmp_path / "again" / "README.md").read_bytes()
    (source / "README.md").write_text("---\nlicense: mit\n---\n")
    assert main([str(source / "model.safetensors"), "--to", str(tmp_path / "converted")]) == 0
    assert b"Of the weights: mit." in (tmp_path / "converted" / "README.md").read_bytes()
    torch.save(eca_resnet18.state_dict(), source / "other.pth")
    assert main([str(source / "other.pth"), "--to", str(tmp_path / "other"), "--architecture", "eca_resnet18"]) == 0
    assert b"Of the weights: mit." in (tmp_path / "other" / "README.md").read_bytes()


def test_other_networks_are_not_compared_where_the_architecture_is_given(
    eca_resnet18: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[ModelConfig] = []
    monkeypatch.setattr(checkpoint, "same_tensors", compared.append)
    torch.save(eca_resnet18.state_dict(), tmp_path / "weights.pth")
    convert_checkpoint(tmp_path / "weights.pth", architecture="eca_resnet18")
    assert compared == []
    convert_checkpoint(tmp_path / "weights.pth")
    assert len(compared) == 1


def test_networks_with_the_same_tensors_are_told_apart_by_config_or_option(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = timm.create_model("resnetblur18", num_classes=4)
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    assert convert_checkpoint(path)[1].architecture == "resnet18"
    [message] = caplog.messages
    assert message.startswith(f"{path} was taken for resnet18. Tensors of the same names and shapes")
    assert message.endswith(": resnetblur18, se_var1_resnet18, simam_resnet18. --architecture NAME decides.")
    caplog.clear()
    labels = ["a", "b", "c", "d"]
    image = {"mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 0.5}
    document = {"architecture": "resnetblur18", "num_classes": 4, "label_names": labels, "pretrained_cfg": image}
    (tmp_path / "config.json").write_text(json.dumps(document))
    converted, config = convert_checkpoint(path)
    assert (config.architecture, config.labels, config.image.crop) == ("resnetblur18", tuple(labels), 0.5)
    assert difference(model, converted) <= 1e-6
    assert caplog.messages == []
    assert convert_checkpoint(path, architecture="resnetblur18")[1].labels == tuple("0123")
    assert caplog.messages == [f"{tmp_path / 'config.json'} is not used: the architecture is given."]


@pytest.mark.parametrize(("name", "detected"), [("ceca_resnet20", "eca"), ("simam_resnet20", "none")])
def test_methods_with_the_same_tensors_are_named_and_decided_by_the_architecture(
    name: str, detected: str, save: Save, caplog: pytest.LogCaptureFixture
) -> None:
    ours = ecanet.randomize(create_model(name, num_classes=3))
    path = save(ours.state_dict())
    assert convert_checkpoint(path)[1].attention == detected
    assert name in caplog.text
    model, config = convert_checkpoint(path, architecture=name)
    assert (config.architecture, config.attention) == ("resnet20", name.partition("_")[0])
    assert difference(ours, model, 32) <= 1e-6


def test_a_small_stem_with_the_same_tensors_is_named(save: Save, caplog: pytest.LogCaptureFixture) -> None:
    convert_checkpoint(save(create_model("eca_mobilenet_v2", num_classes=3, stem="small").state_dict()))
    assert "default stem; a small stem has the same tensors" in caplog.text


@pytest.mark.parametrize(("name", "others"), architecture._SAME_TENSORS.items())
def test_networks_that_are_named_as_equal_have_the_same_tensors(name: str, others: tuple[str, ...]) -> None:
    with on_meta_device():
        shapes = [
            {key: tensor.shape for key, tensor in timm.create_model(each).state_dict().items()}
            for each in (name, *others)
        ]
    assert all(each == shapes[0] for each in shapes)


def test_the_weights_of_a_package_are_not_converted(tiny_package: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"is part of the package .*, which needs no conversion"):
        convert_checkpoint(tiny_package / "model.safetensors")


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema"])
def test_the_moving_average_is_read_before_the_weights_themselves(
    key: str, eca_resnet18: nn.Module, save: Save, caplog: pytest.LogCaptureFixture
) -> None:
    average = {f"module.{name}": tensor for name, tensor in eca_resnet18.state_dict().items()}
    raw = {name: torch.zeros_like(tensor) for name, tensor in eca_resnet18.state_dict().items()}
    model, _ = convert_checkpoint(save({"state_dict": raw, key: {**average, "n_averaged": torch.tensor(7)}}))
    assert difference(eca_resnet18, model) <= 1e-6
    assert f"holds {key} and state_dict: {key} was read" in caplog.text


def test_a_home_directory_is_expanded_in_every_path(
    eca_resnet18: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    torch.save(eca_resnet18.state_dict(), tmp_path / "w.pth")
    (tmp_path / "labels.txt").write_text("\n".join(f"class {index}" for index in range(10)))
    assert main(["~/w.pth", "--to=~/package", "--labels=~/labels.txt"]) == 0
    assert load_pretrained("~/package")[1].labels[1] == "class 1"
    assert not (tmp_path / "~").exists()


def test_labels_are_imagenets_for_1000_outputs_and_numbers_otherwise(eca_resnet18: nn.Module, save: Save) -> None:
    names = imagenet_labels()
    assert len(set(names)) == 1000
    assert (names[0], names[281], names[134]) == ("tench", "tabby", "crane (n02012849)")
    path = save(eca_resnet18.state_dict())
    assert convert_checkpoint(path)[1].labels == tuple("0123456789")
    assert convert_checkpoint(path, labels=list("abcdefghij"))[1].labels == tuple("abcdefghij")
    with pytest.raises(InvalidConfig, match="2 labels, and the network in the file has 10 outputs"):
        convert_checkpoint(path, labels=["a", "b"])


def test_the_command_reads_the_file_once(
    eca_resnet18: nn.Module, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, load = save(eca_resnet18.state_dict()), Mock(wraps=torch.load)
    monkeypatch.setattr(torch, "load", load)
    assert main([str(path), "--to", str(tmp_path / "package")]) == 0
    assert load.call_count == 1


def test_the_command_converts(
    eca_resnet18: nn.Module, save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, labels = save(ecanet.released(eca_resnet18)), tmp_path / "labels.txt"
    labels.write_text("\n".join("abcdefghij") + "\n")
    assert main([str(path), "--to", str(tmp_path / "one"), "--labels", str(labels)]) == 0
    printed = capsys.readouterr().out
    assert "eca_resnet18 (kernel_sizes = [3, 5, 7, 7]): 11," in printed
    assert f"Try: eca-hub classify image.jpg --model {tmp_path / 'one'}" in printed
    assert main([str(path), "--to", str(tmp_path / "two"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_classes"] == 10
    assert load_pretrained(tmp_path / "one")[1].labels == tuple("abcdefghij")
