"""Made-up state dicts with the names and shapes of mmdetection: every tensor is used, in the order of torchvision."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import eca_hub
from eca_hub.__main__ import main
from eca_hub.errors import CheckpointMismatch, InvalidConfig

NUM_CLASSES = 3
STAGES = (64, 128, 256, 512)
SLOW = pytest.mark.slow
LABELS = ("cat", "dog", "eel")


def layer(name: str, *shape: int) -> dict[str, Tensor]:
    """A weight, whose rows are numbered from 1, and a bias with the same numbers."""
    numbers = torch.arange(1.0, shape[0] + 1) / 100
    return {f"{name}.weight": numbers.view(-1, *[1] * (len(shape) - 1)).expand(shape).clone(), f"{name}.bias": numbers}


def backbone() -> dict[str, Tensor]:
    """An ECA-ResNet-18, whose attention the authors of ECA-Net call `eca`."""
    torch.manual_seed(0)
    weights = eca_hub.create_model("eca_resnet18", num_classes=5, kernel_sizes=(3, 3, 5, 7)).state_dict()
    return {
        f"backbone.{name.replace('.se.', '.eca.')}": tensor
        for name, tensor in weights.items()
        if not name.startswith("fc.")
    }


def pyramid(num_maps: int, num_more: int = 0) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for number, channels in enumerate(STAGES[-num_maps:]):
        found |= layer(f"neck.lateral_convs.{number}.conv", 256, channels, 1, 1)
        found |= layer(f"neck.fpn_convs.{number}.conv", 256, 256, 3, 3)
    for number in range(num_more):
        channels = 256 if number else STAGES[-1]
        found |= layer(f"neck.fpn_convs.{num_maps + number}.conv", 256, channels, 3, 3)
    return found


def two_stages(version: int, *, masks: bool) -> dict[str, Tensor]:
    """Version 1 counts the background among the classes of boxes and masks, version 2 does not."""
    prefix = "" if version == 1 else "roi_head."
    num_boxes = NUM_CLASSES + (version == 1)
    found = backbone() | pyramid(4)
    found |= layer("rpn_head.rpn_conv", 256, 256, 3, 3)
    found |= layer("rpn_head.rpn_cls", 3, 256, 1, 1) | layer("rpn_head.rpn_reg", 12, 256, 1, 1)
    found |= layer(f"{prefix}bbox_head.shared_fcs.0", 1024, 256 * 49) | layer(
        f"{prefix}bbox_head.shared_fcs.1", 1024, 1024
    )
    found |= layer(f"{prefix}bbox_head.fc_cls", NUM_CLASSES + 1, 1024)
    found |= layer(f"{prefix}bbox_head.fc_reg", 4 * num_boxes, 1024)
    if masks:
        for number in range(4):
            found |= layer(f"{prefix}mask_head.convs.{number}.conv", 256, 256, 3, 3)
        found |= layer(f"{prefix}mask_head.upsample", 256, 256, 2, 2)
        found |= layer(f"{prefix}mask_head.conv_logits", num_boxes, 256, 1, 1)
    return found


def one_stage() -> dict[str, Tensor]:
    found = backbone() | pyramid(3, 2)
    for number in range(4):
        found |= layer(f"bbox_head.cls_convs.{number}.conv", 256, 256, 3, 3)
        found |= layer(f"bbox_head.reg_convs.{number}.conv", 256, 256, 3, 3)
    return (
        found | layer("bbox_head.retina_cls", 9 * NUM_CLASSES, 256, 3, 3) | layer("bbox_head.retina_reg", 36, 256, 3, 3)
    )


def save(weights: dict[str, Tensor], path: Path) -> Path:
    """As mmdetection does: the weights beside what it knows of the run."""
    torch.save({"meta": {"epoch": 12, "CLASSES": LABELS}, "state_dict": weights, "optimizer": {}}, path)
    return path


def numbers_of(tensor: Tensor) -> list[int]:
    """The rows by the number that they had in mmdetection; 0 is an added row."""
    return [round(100 * float(row.flatten()[0])) for row in tensor]


@pytest.mark.parametrize(
    ("version", "masks"),
    [(1, False), (1, True), (2, False), (2, True)],
)
@SLOW
def test_a_detector_of_two_stages_has_the_background_first(version: int, masks: bool, tmp_path: Path) -> None:
    weights = two_stages(version, masks=masks)
    model, config = eca_hub.convert_detector(save(weights, tmp_path / "epoch_12.pth"), labels=LABELS)
    assert config.detector == ("mask_rcnn" if masks else "faster_rcnn")
    assert (config.backbone, config.attention) == ("resnet18", "eca")
    assert list(config.attention_args["kernel_sizes"]) == [3, 3, 5, 7]
    converted = model.state_dict()
    assert len(converted) == len(weights), "every tensor has its counterpart"
    classes = converted["roi_heads.box_predictor.cls_score.weight"]
    boxes = converted["roi_heads.box_predictor.bbox_pred.bias"]
    if version == 1:
        assert numbers_of(classes) == [1, 2, 3, 4]
        assert numbers_of(boxes) == list(range(1, 17))
    else:
        assert numbers_of(classes) == [4, 1, 2, 3]
        assert numbers_of(boxes) == [0, 0, 0, 0, *range(1, 13)]
    if masks:
        logits = converted["roi_heads.mask_predictor.mask_fcn_logits.weight"]
        assert numbers_of(logits) == ([1, 2, 3, 4] if version == 1 else [0, 1, 2, 3])
    assert torch.equal(converted["backbone.body.layer4.1.se.conv.weight"], weights["backbone.layer4.1.eca.conv.weight"])
    with torch.inference_mode():
        [found] = model([torch.rand(3, 64, 80)])
    assert set(found) >= {"boxes", "labels", "scores"}


def test_retinanet_has_its_two_upper_levels_and_a_package_that_detects(tmp_path: Path) -> None:
    weights = one_stage()
    file = save(weights, tmp_path / "retinanet.pth")
    model, config = eca_hub.convert_detector(file, tmp_path / "package", labels=LABELS)
    assert (config.detector, config.num_classes) == ("retinanet", NUM_CLASSES)
    converted = model.state_dict()
    assert len(converted) == len(weights)
    for level, name in ((3, "p6"), (4, "p7")):
        upper = converted[f"backbone.fpn.extra_blocks.{name}.weight"]
        assert torch.equal(upper, weights[f"neck.fpn_convs.{level}.conv.weight"])
    assert eca_hub.Detector.from_pretrained(tmp_path / "package").config.labels == LABELS
    card = (tmp_path / "package/README.md").read_text()
    assert "average precision that mmdetection reports does not carry over" in card


def test_the_command_converts_it_and_says_that_its_precision_must_be_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save(two_stages(2, masks=False), tmp_path / "faster.pth")
    assert main(["convert", str(file), "--to", str(tmp_path / "package")]) == 0
    said = capsys.readouterr().out
    assert "faster_rcnn_eca_resnet18" in said
    assert "measure it again" in said
    assert json.loads((tmp_path / "package/config.json").read_text())["label_names"] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"bbox_head.atss_cls.weight": torch.zeros(1)}, "1 tensors that are in no Faster R-CNN"),
        ({"neck.lateral_convs.0.conv.weight": torch.zeros(128, 64, 1, 1)}, "do not fit faster_rcnn_eca_resnet18"),
        pytest.param(
            {"rpn_head.rpn_cls.weight": torch.zeros(5, 256, 1, 1)},
            "do not fit faster_rcnn_eca_resnet18",
            marks=SLOW,
        ),
    ],
)
def test_what_is_another_detector_is_refused_by_name(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    file = save(two_stages(2, masks=False) | change, tmp_path / "other.pth")
    with pytest.raises(CheckpointMismatch, match=sentence):
        eca_hub.convert_detector(file, tmp_path / "package")
    assert not (tmp_path / "package").exists()


def test_another_backbone_is_refused_without_the_hint_of_an_option_for_classifiers(tmp_path: Path) -> None:
    heads = {name: t for name, t in two_stages(2, masks=False).items() if not name.startswith("backbone.")}
    file = save(heads | {"backbone.patch_embed.weight": torch.zeros(2)}, tmp_path / "swin.pth")
    with pytest.raises(CheckpointMismatch, match="Detectors with another backbone cannot be converted"):
        eca_hub.convert_detector(file)


@pytest.mark.parametrize("name", ["bbox_head.retina_cls.weight", "bbox_head.fc_cls.weight", "bbox_head.fc_reg.bias"])
def test_a_layer_of_one_number_is_refused(name: str, tmp_path: Path) -> None:
    file = save(two_stages(1, masks=False) | {name: torch.tensor(1.0)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointMismatch, match=f"has one number as {name}"):
        eca_hub.convert_detector(file, tmp_path / "package")


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    file = save(two_stages(2, masks=False), tmp_path / "faster.pth")
    with pytest.raises(InvalidConfig, match="There are 2 labels, and the detector in the file has 3 classes"):
        eca_hub.convert_detector(file, labels=("cat", "dog"))
    with pytest.raises(CheckpointMismatch, match="holds a detector of mmdetection, not a classifier"):
        eca_hub.convert_checkpoint(file)
    torch.save(eca_hub.create_model("eca_resnet20", num_classes=2).state_dict(), tmp_path / "classifier.pth")
    with pytest.raises(CheckpointMismatch, match="holds no detector of mmdetection"):
        eca_hub.convert_detector(tmp_path / "classifier.pth")
