"""A package on disk: three files that describe the network completely, and hostile values are refused."""

import errno
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from eca_hub import create_detector, create_model, export_to_timm, load_pretrained, save_pretrained
from eca_hub.errors import CheckpointMismatch, EcaHubError, InvalidConfig, InvalidPackage, UnknownName
from eca_hub.hub.hashes import read_and_hash
from eca_hub.hub.package import FILES, find_package, read_folder
from eca_hub.hub.pull import pull_to
from eca_hub.models.config import ModelConfig
from tests.conftest import LABELS, TINY


def edit_config(package: Path, **changes: Any) -> None:
    path = package / "config.json"
    document = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not ...}))


def edit_weights(package: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = package / "model.safetensors"
    weights = safetensors.torch.load(path.read_bytes())
    change(weights)
    path.write_bytes(safetensors.torch.save(weights))


def test_a_package_is_exactly_three_files(tiny_package: Path) -> None:
    assert {path.name for path in tiny_package.iterdir()} == set(FILES)


def test_a_saved_network_is_loaded_unchanged(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = create_model("eca_resnet20", num_classes=3).eval()
    loaded, config = load_pretrained(save_pretrained(model, tmp_path / "new" / "package", config=TINY))
    pixels = torch.randn(2, 3, 16, 16)
    assert torch.equal(model(pixels), loaded(pixels))
    assert config.labels == LABELS
    assert config.image == TINY.image
    assert config.attention_args == {"kernel_sizes": [3, 3, 3]}


@pytest.mark.parametrize("file", FILES)
def test_a_save_over_a_package_on_a_full_disk_leaves_the_package(
    file: str, tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_until_full(path: Path, content: bytes) -> None:
        path.write_bytes(content[:10])
        if file in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")

    folder = shutil.copytree(tiny_package, tmp_path / "package")
    network = create_model("eca_resnet20", num_classes=3)
    detector = create_detector("retinanet", backbone="resnet18", num_classes=3)
    monkeypatch.setattr("eca_hub.hub.pretrained.write_synced", write_until_full)
    for model in (network, detector):
        with pytest.raises(OSError, match="No space left"):
            save_pretrained(model, folder, labels=list(LABELS))
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            path.name: path.read_bytes() for path in tiny_package.iterdir()
        }


@pytest.mark.parametrize("file", FILES)
def test_a_save_over_a_package_that_is_killed_between_its_renames_leaves_no_package_of_old_and_new_files(
    file: str, tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Like a signal: no `except Exception` catches it."""

    def rename_until_killed(source: Path, target: Path) -> None:
        if target.name == file:
            raise Killed
        source.replace(target)

    folder = shutil.copytree(tiny_package, tmp_path / "package")
    monkeypatch.setattr("eca_hub.hub.pretrained.rename_synced", rename_until_killed)
    with pytest.raises(Killed):
        save_pretrained(create_model("eca_resnet20", num_classes=3), folder, labels=list(LABELS))
    with pytest.raises(InvalidPackage, match=r"has no config\.json"):
        find_package(folder)


@pytest.mark.parametrize("moment", FILES)
@pytest.mark.parametrize("is_renamed", [False, True])
def test_a_package_that_is_replaced_while_it_is_read_is_refused(
    moment: str, is_renamed: bool, tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny_package, tmp_path / "package")

    def read_during_a_save(path: Path, digest: Any) -> memoryview:
        if path.name == moment:
            (folder / "config.json").unlink()
        content = read_and_hash(path, digest)
        if path.name == moment and is_renamed:
            shutil.copy(tiny_package / "config.json", folder)
            edit_config(folder, attention="none")
        return content

    monkeypatch.setattr("eca_hub.hub.package.read_and_hash", read_during_a_save)
    with pytest.raises(InvalidPackage, match="was replaced while it was read"):
        read_folder(folder)


def test_a_package_that_is_looked_for_during_a_save_is_not_taken_for_weights_alone(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny_package, tmp_path / "package")
    hints: list[str] = []

    def find_then_rename(source: Path, target: Path) -> None:
        with pytest.raises(InvalidPackage) as refused:
            find_package(folder)
        hints.append(refused.value.hint)
        source.replace(target)

    monkeypatch.setattr("eca_hub.hub.pretrained.rename_synced", find_then_rename)
    save_pretrained(create_model("eca_resnet20", num_classes=3), folder, labels=list(LABELS))
    assert len(hints) == len(FILES)
    assert all("is being saved there" in hint for hint in hints)
    assert find_package(folder) == folder


def test_a_home_directory_is_expanded_where_a_package_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    model = create_model("eca_resnet18", num_classes=2)
    assert save_pretrained(model, "~/own", labels=["cat", "dog"]) == tmp_path / "own"
    assert export_to_timm(model, "~/timm", labels=["cat", "dog"]) == tmp_path / "timm"
    pull_to("~/own", "~/copy")
    assert {path.name for path in tmp_path.iterdir()} == {"own", "timm", "copy"}


def test_a_network_that_create_model_built_is_saved_with_its_labels(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = create_model("eca_resnet20", num_classes=3).eval()
    loaded, config = load_pretrained(save_pretrained(model, tmp_path / "first", labels=list(LABELS)))
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(pixels), loaded(pixels))
    assert (config.architecture, config.attention, config.labels) == ("resnet20", "eca", LABELS)
    # A loaded network has its labels too.
    _, again = load_pretrained(save_pretrained(loaded, tmp_path / "second"))
    assert again == config


@pytest.mark.parametrize(
    ("labels", "config", "message"),
    [
        (["cat", "dog"], None, "There are 2 labels, and the network has 3 outputs"),
        (None, None, "needs labels"),
        (["cat", "cat", "dog"], None, "occur more than once: cat"),
        (LABELS, ModelConfig("resnet32"), "The configuration describes another network"),
        (LABELS, ModelConfig("resnet20", "se"), "The configuration describes another network"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_anything_is_written(
    labels: list[str] | None, config: ModelConfig | None, message: str, tmp_path: Path
) -> None:
    model = create_model("eca_resnet20", num_classes=3)
    with pytest.raises(EcaHubError, match=message):
        save_pretrained(model, tmp_path / "package", labels=labels, config=config)
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_a_configuration_needs_one(tmp_path: Path) -> None:
    class Unnamed(torch.nn.Identity):
        def __init__(self, channels: int) -> None:
            super().__init__()

    model = create_model("resnet20", attention=Unnamed, num_classes=3)
    with pytest.raises(InvalidConfig, match="has no configuration"):
        save_pretrained(model, tmp_path / "package", labels=list(LABELS))


@pytest.mark.parametrize("name", ["eca_resnet20", "resnet18", "mobilenet_v2"])
def test_nan_weights_are_not_saved_whichever_network_they_are_in(name: str, tmp_path: Path) -> None:
    model = create_model(name, num_classes=3)
    next(model.parameters()).data.fill_(torch.nan)
    with pytest.raises(CheckpointMismatch, match="The network cannot be saved: 1 with NaN or infinity"):
        save_pretrained(model, tmp_path / "package", labels=list(LABELS))
    assert list(tmp_path.iterdir()) == []


def test_saving_again_replaces_the_package_and_leaves_no_other_file(package: Path) -> None:
    before = read_folder(package).revision
    save_pretrained(create_model("eca_resnet20", num_classes=3), package, config=TINY)
    assert {path.name for path in package.iterdir()} == set(FILES)
    assert read_folder(package).revision != before


def test_a_package_without_labels_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="needs labels"):
        save_pretrained(create_model("eca_resnet20"), tmp_path / "package", config=ModelConfig("resnet20"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("labels", [[0, 1, 2], ["a", "b", None], [["a"], ["b"], ["c"]], 3])
def test_labels_that_are_no_strings_are_refused(labels: Any, tmp_path: Path) -> None:
    networks = (
        create_model("resnet20", num_classes=3),
        create_detector(backbone="resnet18", num_classes=3),
    )
    for network in networks:
        with pytest.raises(InvalidConfig, match=r"each label is a string|must be a list of class names"):
            save_pretrained(network, tmp_path / "package", labels=labels)
    assert not (tmp_path / "package").exists()


@pytest.mark.parametrize("name", ["file", "file/package"])
def test_a_package_is_not_saved_where_a_file_is(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidConfig, match=f"{name} cannot be written: "):
        save_pretrained(create_model("resnet20", num_classes=3), tmp_path / name, labels=LABELS)


def test_a_run_folder_is_identified_by_the_package_inside(package: Path) -> None:
    run = package.parent / "run"
    run.mkdir()
    shutil.copytree(package, run / "model")
    assert find_package(run) == run / "model"


def test_a_missing_file_is_named(package: Path) -> None:
    (package / "model.safetensors").unlink()
    with pytest.raises(InvalidPackage, match=r"has no model\.safetensors"):
        load_pretrained(package)


def test_weights_under_another_name_are_named_with_the_command(package: Path) -> None:
    (package / "model.safetensors").rename(package / "eca.safetensors")
    (package / "._model.safetensors").write_bytes(b"left by macOS")
    with pytest.raises(
        InvalidPackage, match=r"has no model\.safetensors, but eca\.safetensors\. mv .*eca\.safetensors"
    ):
        read_folder(package)


def test_weights_that_are_a_link_to_nothing_are_named(package: Path) -> None:
    (package / "model.safetensors").unlink()
    (package / "model.safetensors").symlink_to("/nowhere/model.safetensors")
    with pytest.raises(InvalidPackage, match=r"is a link to /nowhere/model\.safetensors, which does not exist"):
        read_folder(package)


def test_a_git_lfs_pointer_in_place_of_weights_is_named(package: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1155\n"
    (package / "model.safetensors").write_text(pointer)
    with pytest.raises(InvalidPackage, match="is a Git LFS pointer, not the file itself"):
        read_folder(package)


IMAGE = {"crop": 1.0, "crop_mode": "center", "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"library_name": "timm"}, "neither eca-hub's, which says library_name 'eca-hub', nor timm's"),
        ({"format": 2}, "has format 2; this eca-hub reads 1. Update eca-hub"),
        ({"num_classes": 10**9}, "num_classes is 1000000000 and there are 3 label_names"),
        ({"num_classes": -1}, "num_classes is -1"),
        ({"num_classes": ...}, "lacks 'num_classes'"),
        ({"label_names": [1, 2, 3]}, "label_names is not a list of strings"),
        ({"label_names": ["a", "a", "b"]}, "more than once: a"),
        ({"architecture": 5}, "architecture is not a string"),
        ({"architecture": "../resnet50"}, "architecture is '../resnet50'"),
        ({"stem": "huge"}, "stem is 'huge'; it must be one of default, small"),
        ({"image": {"height_px": 224}}, "lacks 'interpolation'"),
        ({"image": [224]}, "image is not an object"),
        ({"image": {**IMAGE, "size_px": 5}}, "image has the key 'size_px'; its keys are height_px, width_px"),
        ({"image": {**IMAGE, "mean": "123"}}, "mean is not a list of finite numbers"),
        ({"image": {**IMAGE, "std": [10**400, 1, 1]}}, "std is not a list of finite numbers"),
        ({"image": {**IMAGE, "crop": 10**400}}, "only finite numbers are allowed"),
        ({"attention_args": [1]}, "attention_args is not an object"),
    ],
)
def test_a_config_with_false_values_is_refused(package: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(package, **changes)
    with pytest.raises(InvalidPackage) as refusal:
        load_pretrained(package)
    assert message in str(refusal.value)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '"x"', "[" * 100_000, "\ufeff{}", "NaN"])
def test_a_config_that_is_not_an_object_is_refused(package: Path, text: str) -> None:
    (package / "config.json").write_text(text)
    with pytest.raises(InvalidPackage):
        load_pretrained(package)


def test_an_unknown_architecture_or_kernel_size_is_refused(package: Path) -> None:
    edit_config(package, architecture="resnet2000")
    with pytest.raises(UnknownName, match="resnet2000"):
        load_pretrained(package)
    for kernel_sizes in ([4, 4, 4], [0, 1, 1], [-3, 3, 3], "many", [3, 3], [[3], 3, 3]):
        edit_config(package, architecture="resnet20", attention_args={"kernel_sizes": kernel_sizes})
        with pytest.raises(EcaHubError):
            load_pretrained(package)


def test_weights_that_do_not_fit_are_named(package: Path) -> None:
    def damage(weights: dict[str, torch.Tensor]) -> None:
        weights["extra"] = weights.pop("fc.bias")
        weights["layer1.0.se.conv.weight"] = torch.zeros(1, 1, 5)

    edit_weights(package, damage)
    with pytest.raises(CheckpointMismatch) as refusal:
        load_pretrained(package)
    assert "1 missing (fc.bias)" in str(refusal.value)
    assert "1 unexpected (extra)" in str(refusal.value)
    assert "layer1.0.se.conv.weight is (1, 1, 5) in the file, (1, 1, 3) in the network" in str(refusal.value)


def test_weights_with_a_nan_are_refused(package: Path) -> None:
    edit_weights(package, lambda weights: weights["fc.weight"].fill_(torch.nan))
    with pytest.raises(CheckpointMismatch, match=r"1 with NaN or infinity in float32 \(fc\.weight\)"):
        load_pretrained(package)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:50], lambda data: b"", lambda data: data + b"x"]
)
def test_broken_weights_are_refused(package: Path, damage: Callable[[bytes], bytes]) -> None:
    path = package / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointMismatch, match="broken"):
        load_pretrained(package)


def test_overwriting_the_file_does_not_change_a_loaded_network(package: Path) -> None:
    model, _ = load_pretrained(package)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = package / "model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "fixture", sorted((Path(__file__).parent / "fixtures").glob("*.json")), ids=lambda path: path.stem
)
def test_packages_of_every_format_ever_written_keep_loading(fixture: Path, tmp_path: Path) -> None:
    """A fixture holds a config.json and the names and shapes of the weights beside it, as they were written once."""
    stored = json.loads(fixture.read_text())
    torch.manual_seed(0)
    weights = {name: torch.rand(shape) if shape else torch.tensor(1) for name, shape in stored["weights"].items()}
    if "eca_hub" in stored["config.json"]:
        for name, tensor in weights.items():
            if name.endswith(".se.conv.weight"):
                tensor[..., [0, -1]] *= tensor.shape[2] == 3
    (tmp_path / "config.json").write_text(json.dumps(stored["config.json"]))
    (tmp_path / "model.safetensors").write_bytes(safetensors.torch.save(weights))
    (tmp_path / "README.md").touch()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, config = load_pretrained(tmp_path)
    renamed = stored["config.json"].get("stem") == "own"
    assert [str(one.message).split(";")[0] for one in caught] == ["stem 'own' is now called 'default'"] * renamed
    assert config.labels == LABELS
    assert config.attention == "eca"
    assert model(torch.randn(1, 3, config.image.height_px, config.image.width_px)).shape == (1, 3)
