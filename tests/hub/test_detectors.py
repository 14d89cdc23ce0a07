"""A detector is a package like a classifier: saved, published, pulled and checked; each task refuses the other's."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import eca_hub
from eca_hub.errors import CheckpointMismatch, EcaHubError, InvalidConfig, InvalidPackage
from eca_hub.hub.card.edit import read_metadata
from eca_hub.hub.package import Package, read_folder
from eca_hub.hub.pretrained import read_detector, save_detector
from eca_hub.hub.pull import pull, pull_to
from eca_hub.hub.push import push_folder
from eca_hub.models.detectors import create_detector
from tests.localhub.hub_process import Hub

LABELS = ("bar", "disk")


@pytest.fixture(scope="session")
def detector_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RetinaNet on an ECA-ResNet-18 with random weights."""
    torch.manual_seed(0)
    model = create_detector("retinanet", backbone="resnet18", num_classes=2, min_side_px=64, max_side_px=96)
    return save_detector(model, tmp_path_factory.mktemp("detector"), labels=LABELS)


@pytest.fixture(scope="session")
def read_package(detector_package: Path) -> Package:
    """Its files, read once."""
    return read_folder(detector_package)


@pytest.fixture
def copy(detector_package: Path, tmp_path: Path) -> Path:
    return shutil.copytree(detector_package, tmp_path / "copy")


def changed(package: Package, **values: Any) -> Package:
    document = json.loads(package.config_bytes)
    document.update(values)
    return dataclasses.replace(package, config_bytes=json.dumps(document).encode())


def test_a_detector_that_is_no_longer_built_is_named(read_package: Package) -> None:
    with pytest.raises(
        InvalidPackage, match="detector that this eca-hub does not build: gsop_resnet18 has maps of"
    ) as old:
        read_detector(changed(read_package, attention="gsop", attention_args={}))
    assert "Train it again" in old.value.hint


@pytest.mark.slow
def test_a_loaded_detector_finds_what_the_saved_one_finds(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_detector("mask_rcnn", backbone="resnet18", num_classes=2, min_side_px=64, max_side_px=96).eval()
    loaded = read_detector(pull(save_detector(model, tmp_path, labels=LABELS)))
    assert loaded.config.labels == LABELS  # type: ignore[union-attr]
    image = torch.rand(3, 70, 90)
    with torch.inference_mode():
        [expected], [found] = model([image]), loaded([image])
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_card_names_task_input_and_anchors(detector_package: Path) -> None:
    card = (detector_package / "README.md").read_bytes()
    assert read_metadata(card)["pipeline_tag"] == "object-detection"
    text = card.decode()
    assert "shorter side 64 px, longer side at most 96 px" in text
    assert "anchors: 32, 64, 128, 256, 512 px on the five levels" in text
    assert 'eca_hub.Detector.from_pretrained("OWNER/NAME")' in text
    document = json.loads((detector_package / "config.json").read_text())
    assert document["task"] == "object-detection"
    assert document["id2label"] == {"0": "bar", "1": "disk"}
    assert document["attention_args"] == {"kernel_sizes": [3, 5, 5, 5]}


@pytest.mark.slow
def test_a_detector_is_published_and_pulled(hub: Hub, detector_package: Path, model_id: str, tmp_path: Path) -> None:
    published = push_folder(detector_package, model_id, endpoint=hub.url, token=hub.token)
    package = pull(model_id, endpoint=hub.url)
    assert package.revision == published.revision
    assert package.weights_bytes == (detector_package / "model.safetensors").read_bytes()
    pull_to(model_id, tmp_path / "pulled", endpoint=hub.url)
    card = (tmp_path / "pulled/README.md").read_text()
    assert f'eca_hub.Detector.from_pretrained("{model_id}")' in card
    assert f"eca-hub detect street.jpg --model {model_id}" in card
    detector = eca_hub.Detector.from_pretrained(model_id, endpoint=hub.url)
    assert detector.config.labels == LABELS


@pytest.mark.slow
def test_a_network_is_published_without_a_folder(hub: Hub, model_id: str) -> None:
    model = eca_hub.create_detector("retinanet", backbone="resnet18", num_classes=2, min_side_px=64)
    eca_hub.push_to_hub(model, model_id, labels=LABELS, endpoint=hub.url, token=hub.token)
    loaded = eca_hub.Detector.from_pretrained(model_id, endpoint=hub.url).model
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.slow
def test_a_detector_without_a_card_is_published_with_one(hub: Hub, copy: Path, model_id: str, tmp_path: Path) -> None:
    (copy / "README.md").unlink()
    push_folder(copy, model_id, endpoint=hub.url, token=hub.token)
    pull_to(model_id, tmp_path / "pulled", endpoint=hub.url)
    assert "pipeline_tag: object-detection" in (tmp_path / "pulled/README.md").read_text()


def test_a_classifier_does_not_load_a_detector_nor_the_reverse(detector_package: Path, tiny_package: Path) -> None:
    with pytest.raises(InvalidPackage, match=r"is a detector, not a classifier\. Load it with eca_hub\.Detector"):
        eca_hub.Classifier.from_pretrained(detector_package)
    with pytest.raises(InvalidPackage, match=r"is a classifier, not a detector\. Load it with eca_hub\.Classifier"):
        eca_hub.Detector.from_pretrained(tiny_package)


HOSTILE: list[dict[str, Any]] = [
    {"detector": "yolo"},
    {"backbone": "../x"},
    {"backbone": 3},
    {"attention": "nothing_known"},
    {"attention_args": {"kernel_sizes": [4, 4, 4, 4]}},
    {"attention_args": []},
    {"label_names": ["bar", "bar"]},
    {"label_names": ["bar"]},
    {"label_names": ["bar", "\x1b[31m"]},
    {"label_names": "bar"},
    {"min_side_px": 10**9},
    {"min_side_px": 64.5},
    {"max_detections": 0},
    {"min_score": "high"},
    {"anchor_sizes_px": [1, 2]},
    {"anchor_sizes_px": [float("nan")] * 5},
    {"anchor_ratios": []},
    {"anchor_ratios": [1.0] * 10_000},
    {"mean": [1, 2]},
    {"std": [0, 1, 1]},
    {"head_norm": "batch"},
    {"format": 99},
    {"num_classes": 10**9},
]


@pytest.mark.parametrize("values", HOSTILE, ids=lambda values: str(values)[:40])
def test_a_value_that_cannot_be_used_is_refused(values: dict[str, Any], read_package: Package) -> None:
    with pytest.raises(EcaHubError):
        read_detector(changed(read_package, **values))


def test_a_missing_field_is_named(read_package: Package) -> None:
    document = json.loads(read_package.config_bytes)
    del document["nms_iou"]
    with pytest.raises(InvalidPackage, match="lacks 'nms_iou'"):
        read_detector(dataclasses.replace(read_package, config_bytes=json.dumps(document).encode()))


def test_weights_that_do_not_fit_are_named(read_package: Package) -> None:
    with pytest.raises(CheckpointMismatch, match="missing"):
        read_detector(changed(read_package, backbone="resnet34"))


def edit_weights(package: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = safetensors.torch.load_file(package / "model.safetensors")
    edit(weights)
    safetensors.torch.save_file(weights, package / "model.safetensors")


def test_weights_with_nan_are_refused(copy: Path) -> None:
    edit_weights(copy, lambda weights: weights["backbone.body.conv1.weight"].fill_(float("nan")))  # type: ignore[arg-type]
    with pytest.raises(CheckpointMismatch, match="NaN"):
        read_detector(pull(copy))


def test_labels_must_be_as_many_as_classes(tmp_path: Path) -> None:
    model = create_detector("faster_rcnn", backbone="resnet18", num_classes=3)
    with pytest.raises(InvalidConfig, match="2 labels, and the network has 3 classes"):
        save_detector(model, tmp_path, labels=LABELS)
    with pytest.raises(InvalidConfig, match="needs labels"):
        save_detector(model, tmp_path)
    with pytest.raises(InvalidConfig, match="is no detector"):
        save_detector(torch.nn.Linear(1, 1), tmp_path, labels=LABELS)
    assert not any(tmp_path.iterdir())
