"""Detectors: the parameters of the paper, the outputs of torchvision's own models, labels from 0, frozen stages."""

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign

from eca_hub.errors import CheckpointMismatch, InvalidConfig, UnknownName
from eca_hub.images.masks import InstanceMask
from eca_hub.models.build import count_parameters, create_model
from eca_hub.models.detector_config import DETECTORS, DetectorConfig
from eca_hub.models.detectors import build_detector, create_detector
from eca_hub.models.feature_pyramid import load_backbone, pyramid_of
from eca_hub.models.paper import compare, prints_as, published_rows

SMALL: dict[str, Any] = {"backbone": "resnet18", "num_classes": 3, "min_side_px": 64, "max_side_px": 96}


def targets_of_two_boxes() -> list[dict[str, Tensor]]:
    boxes_N4 = torch.tensor([[4.0, 6.0, 30.0, 40.0], [20.0, 10.0, 60.0, 50.0]])
    masks_NHW = torch.zeros(2, 64, 80, dtype=torch.uint8)
    for mask_HW, (x1, y1, x2, y2) in zip(masks_NHW, boxes_N4.int().tolist(), strict=True):
        mask_HW[y1:y2, x1:x2] = 1
    return [{"boxes": boxes_N4, "labels": torch.tensor([0, 2]), "masks": masks_NHW}]


@pytest.mark.parametrize("every", [20, pytest.param(1, marks=pytest.mark.slow)])
def test_the_parameters_of_table_5_counted_on_the_built_networks(every: int) -> None:
    rows = published_rows("5")
    assert len(rows) == 20
    for row in rows[::every]:
        config = DetectorConfig(row.detector, row.architecture, row.attention, dict(row.attention_args))  # type: ignore[arg-type]
        with torch.device("meta"):
            model = build_detector(config, num_classes=80)
        total = count_parameters(model)
        pyramid_of(model).freeze(1, norms=True)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        counted = {"trained": trained, "all": total}.get(row.parameters_counted, total)
        assert counted == compare(row).parameters, row
        # The paper prints one figure that its own layers do not give; its note says so.
        if row.method != "+ GC":
            assert prints_as(counted, row.parameters, 10**6), row


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "theirs", "options"),
    [
        ("faster_rcnn", "fasterrcnn_resnet50_fpn", {}),
        ("mask_rcnn", "maskrcnn_resnet50_fpn", {}),
        ("retinanet", "retinanet_resnet50_fpn_v2", {"head_norm": "group"}),
    ],
)
def test_with_the_weights_of_torchvision_the_outputs_are_its_own(name: Any, theirs: str, options: Any) -> None:
    torch.manual_seed(0)
    is_rcnn = name != "retinanet"
    reference = torchvision.models.get_model(
        theirs, weights=None, weights_backbone=None, num_classes=2 + is_rcnn, min_size=96, max_size=128
    ).eval()
    model = create_detector(
        name, attention="none", num_classes=2, min_side_px=96, max_side_px=128, max_detections=100, **options
    ).eval()
    model.load_state_dict(reference.state_dict())
    for each in (model, reference):
        each.get_submodule("roi_heads" if is_rcnn else "").detections_per_img = 30
        if not is_rcnn:
            # A fresh head gives every anchor about 0.01.
            each.score_thresh = 0.005
    images = [torch.rand(3, 90, 120), torch.rand(3, 100, 70)]
    with torch.inference_mode():
        answers, expected = model(list(images)), reference(list(images))
    for image, answer, right in zip(images, answers, expected, strict=True):
        assert len(right["boxes"]) > 0
        assert torch.equal(answer["boxes"], right["boxes"])
        assert torch.equal(answer["scores"], right["scores"])
        assert torch.equal(answer["labels"] + is_rcnn, right["labels"])
        if name == "mask_rcnn":
            height, width = image.shape[1:]
            x1, y1, x2, y2 = answer["boxes"][0].tolist()
            mask = InstanceMask(answer["masks"][0, 0].numpy(), (x1, y1, x2, y2), height, width)
            # Where a map of zeros and ones is resized, many pixels are 0.5 up to rounding.
            assert np.count_nonzero(mask.to_array() != (right["masks"][0, 0] > 0.5).numpy()) <= 5


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "faster_rcnn" else pytest.mark.slow) for name in DETECTORS]
)
def test_each_detector_learns_from_labels_from_0_and_from_images_without_objects(name: Any) -> None:
    torch.manual_seed(0)
    model = create_detector(name, rois_per_image=16, **SMALL).train()
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    empty["masks"] = torch.zeros(0, 64, 80, dtype=torch.uint8)
    losses = model([torch.rand(3, 64, 80), torch.rand(3, 64, 80)], [*targets_of_two_boxes(), empty])
    total = torch.stack(list(losses.values())).sum()
    assert bool(total.isfinite())
    torch.autograd.backward(total)
    assert all(
        parameter.grad is not None
        for name, parameter in model.named_parameters()
        if ".se." not in name or "conv" in name
    )
    with torch.inference_mode():
        [answer] = model.eval()([torch.rand(3, 64, 80)])
    assert set(answer) == {"boxes", "labels", "scores", *(["masks"] if name == "mask_rcnn" else [])}
    assert bool((answer["labels"] >= 0).all())
    assert bool((answer["labels"] < 3).all())
    assert "num_batches_tracked" not in " ".join(name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    "backbone", ["resnet18", "mobilenet_v2", pytest.param("resnext50_32x4d", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("attention", ["eca", *(pytest.param(name, marks=pytest.mark.slow) for name in ("none", "se"))])
def test_backbones_of_several_families_carry_a_pyramid(backbone: str, attention: str) -> None:
    model = create_detector(
        "retinanet", backbone=backbone, attention=attention, num_classes=2, min_side_px=64, max_side_px=64
    ).eval()
    with torch.inference_mode():
        levels = pyramid_of(model)(torch.rand(1, 3, 64, 64))
    assert [level.shape[-1] for level in levels.values()] == [8, 4, 2, 1, 1]
    assert {level.shape[1] for level in levels.values()} == {256}


def test_frozen_stages_and_norms_stay_as_they_are_in_training_mode() -> None:
    model = create_detector("faster_rcnn", frozen_stages=1, frozen_norms=True, rois_per_image=16, **SMALL).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.01)
    losses = model([torch.rand(3, 64, 80)], targets_of_two_boxes())
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    body = {name.removeprefix("backbone.body.") for name in changed if name.startswith("backbone.body.")}
    assert {name.partition(".")[0] for name in body} == {"layer2", "layer3", "layer4"}
    assert not any("running_" in name for name in changed)
    assert "layer2.0.bn1.weight" in body


def test_a_classifier_gives_its_weights_to_the_backbone() -> None:
    for backbone in ("resnet18", "mobilenet_v2"):
        classifier = create_model(backbone, attention="eca", num_classes=7)
        model = create_detector("retinanet", backbone=backbone, num_classes=2)
        load_backbone(model, classifier.state_dict(), origin="acme/seven")
        body = pyramid_of(model).body.state_dict()
        weights = classifier.state_dict()
        assert all(torch.equal(body[name], weights.get(name, weights.get(f"features.{name}"))) for name in body)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("classifier", "sentence"),
    [
        pytest.param(
            {"architecture": "resnet18", "attention": "none"},
            r"layer1\.0\.se\.conv\.weight is missing",
            marks=pytest.mark.slow,
        ),
        ({"architecture": "resnet18", "attention": "eca", "kernel_sizes": 9}, r"is \(1, 1, 9\) there"),
        pytest.param({"architecture": "resnet34", "attention": "eca"}, "is unexpected", marks=pytest.mark.slow),
    ],
)
def test_a_classifier_that_does_not_fit_is_refused_with_the_first_tensors(classifier: Any, sentence: str) -> None:
    model = create_detector("faster_rcnn", **SMALL)
    with pytest.raises(CheckpointMismatch, match=sentence):
        load_backbone(model, create_model(**classifier, num_classes=7).state_dict(), origin="acme/seven")


def test_custom_anchors_and_sizes_reach_the_network() -> None:
    model = create_detector(
        "retinanet", backbone="resnet18", num_classes=2, anchor_sizes_px=(8, 16, 32, 64, 128), min_side_px=128
    )
    [first, *_] = model.get_submodule("anchor_generator").cell_anchors  # type: ignore[misc]
    assert first.shape == (9, 4)
    assert (first[:, 2] - first[:, 0]).max() < 20
    assert model.get_submodule("transform").min_size == (128,)
    assert isinstance(model.config, DetectorConfig)
    assert model.config.attention_args == {"kernel_sizes": [3, 5, 5, 5]}


@pytest.mark.slow
def test_the_body_with_its_pyramid_exports() -> None:
    pyramid = pyramid_of(create_detector("faster_rcnn", **SMALL)).eval()
    x_N3HW = torch.rand(1, 3, 64, 96)
    exported = torch.export.export(pyramid, (x_N3HW,)).module()
    for ours, theirs in zip(exported(x_N3HW).values(), pyramid(x_N3HW).values(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"detector": "faster_rcn"}, UnknownName, "Did you mean 'faster_rcnn'"),
        ({"backbone": "resnet5"}, UnknownName, "Did you mean"),
        ({"backbone": "resnet20"}, InvalidConfig, "a detector needs 4, 8, 16, 32"),
        ({"attention": "aa"}, InvalidConfig, "position codes for one map size"),
        ({"attention": "gsop"}, InvalidConfig, "gsop_resnet18 has maps of stride 2, 4, 8, 16, 16 px; .* 4, 8, 16, 32"),
        ({"num_classes": 0}, InvalidConfig, "num_classes is 0"),
        ({"num_classes": "3"}, InvalidConfig, "num_classes is '3'"),
        ({"detector": None}, UnknownName, "no detector None"),
        ({"labels": "cat"}, InvalidConfig, "labels is 'cat'; give a list"),
        ({"min_side_px": 800.5}, InvalidConfig, "min_side_px is 800.5; it must be a whole number"),
        ({"max_side_px": "1333"}, InvalidConfig, "max_side_px is '1333'"),
        ({"max_detections": 1.5}, InvalidConfig, "max_detections is 1.5"),
        ({"nms_iou": "0.5"}, InvalidConfig, "nms_iou is '0.5'; only finite numbers"),
        ({"min_score": float("nan")}, InvalidConfig, "min_score is nan"),
        ({"max_detections": 0}, InvalidConfig, "max_detections is 0; it must be a whole number, 1 to 10000"),
        ({"attention_args": None}, InvalidConfig, "attention_args is None; it must have a value for each name"),
        ({"attention_args": [5], "kernel_sizes": 5}, InvalidConfig, r"attention_args is \[5\]"),
        ({"attention_args": {"kernel_sizes": 5}, "kernel_sizes": 3}, InvalidConfig, "args: kernel_sizes"),
        ({"anchor_sizes_px": (1e300,) * 5}, InvalidConfig, "sizes from 1 to 16384 px"),
        ({"mean": None}, InvalidConfig, "mean is None; only finite numbers"),
        ({"bit_depth": 12.0}, InvalidConfig, "bit_depth is 12.0"),
        ({"num_classes": 10**9}, InvalidConfig, "num_classes is 1000000000; it must be a whole number, 1 to 100000"),
        (
            {"backbone": "eca_resnet18", "attention": "se"},
            InvalidConfig,
            "names attention 'eca', but attention is 'se'",
        ),
        ({"rois_per_image": 0}, InvalidConfig, "rois_per_image is 0"),
        ({"frozen_stages": 5}, InvalidConfig, "frozen_stages is 5"),
        ({"min_side_px": 900, "max_side_px": 800}, InvalidConfig, "the first not above the second"),
        ({"anchor_sizes_px": (32,)}, InvalidConfig, "give 5 sizes"),
        ({"anchor_ratios": (0.0,)}, InvalidConfig, "numbers from 0.01 to 100"),
        ({"head_norm": "group"}, InvalidConfig, "group for retinanet"),
        ({"min_score": 1.0}, InvalidConfig, "min_score is 1.0"),
        ({"kernel_size": 3}, InvalidConfig, "does not take 'kernel_size'"),
        ({"std": (1.0, 0.0, 1.0)}, InvalidConfig, "three numbers, .* std from 1e-06"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(
    options: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    given: dict[str, Any] = {"detector": "faster_rcnn", "backbone": "resnet18", "num_classes": 2} | options
    with pytest.raises(error, match=sentence):
        create_detector(**given)


def test_options_of_the_attention_are_given_alone_or_together() -> None:
    alone = create_detector("faster_rcnn", attention="eca", kernel_sizes=5, **SMALL)
    together = create_detector("faster_rcnn", attention="eca", attention_args={"kernel_sizes": 5}, **SMALL)
    assert alone.config == together.config


def test_a_label_that_occurs_twice_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="occur more than once: cat"):
        dataclasses.replace(DetectorConfig(), labels=("cat", "dog", "cat"))


def test_the_network_is_one_module_with_standard_names() -> None:
    model = create_detector("mask_rcnn", **SMALL)
    assert isinstance(model, nn.Module)
    assert {"backbone", "rpn", "roi_heads", "transform"} == {name for name, _ in model.named_children()}


@pytest.mark.parametrize("name", ["faster_rcnn", pytest.param("mask_rcnn", marks=pytest.mark.slow)])
def test_what_is_found_in_an_image_does_not_depend_on_the_first_image(name: str) -> None:
    torch.manual_seed(3)
    options: dict[str, Any] = {"backbone": "resnet18", "num_classes": 2, "min_side_px": 32, "max_side_px": 128}
    model = create_detector(name, **options).eval()  # type: ignore[arg-type]
    other = copy.deepcopy(model)
    small, large = torch.rand(3, 40, 33), torch.rand(3, 32, 128)
    with torch.inference_mode():
        other([large])
        found, expected = model([small])[0], other([small])[0]
    assert len(found["boxes"])
    assert all(torch.equal(found[key], expected[key]) for key in found)
    pools = [each for each in model.modules() if isinstance(each, MultiScaleRoIAlign)]
    assert [pool.scales for pool in pools] == [[1 / 4, 1 / 8, 1 / 16, 1 / 32]] * (1 + (name == "mask_rcnn"))
