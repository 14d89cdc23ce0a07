"""Detections are in pixels of the image as it is displayed, whatever it is given as and however large it is."""

import copy
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import eca_hub
from eca_hub.detector import Detection, Detector, encode_prediction
from eca_hub.errors import BadImage, InvalidConfig, NonFiniteScores
from eca_hub.images.decode import DecodedImage, decode_reduced
from eca_hub.images.rle import decode_mask
from eca_hub.models.detectors import create_detector
from tests.conftest import make_image

LABELS = ("bar", "disk")


@pytest.fixture(scope="module")
def detector(detector_package: Path) -> Detector:
    """Loaded in one line."""
    loaded = eca_hub.Detector.from_pretrained(detector_package)
    assert isinstance(loaded, Detector)
    return loaded


def test_a_path_its_bytes_and_a_pil_image_have_the_same_detections(detector: Detector, tmp_path: Path) -> None:
    data = make_image(120, 90)
    (tmp_path / "x.png").write_bytes(data)
    ways: list[Any] = [str(tmp_path / "x.png"), tmp_path / "x.png", data, Image.open(io.BytesIO(data))]
    first, *others = [detector.predict(way, min_score=0.05) for way in ways]
    assert first
    for other in others:
        assert [(each.label, each.score, each.box) for each in other] == [
            (each.label, each.score, each.box) for each in first
        ]


def test_detections_are_ordered_and_inside_the_image(detector: Detector) -> None:
    found = detector.predict(make_image(200, 80), min_score=0.05)
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    for each in found:
        left, top, right, bottom = each.box
        assert 0 <= left <= right <= 200
        assert 0 <= top <= bottom <= 80
        assert each.label == LABELS[each.index]
        assert each.mask is not None
        assert each.mask.to_array().shape == (80, 200)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("retinanet", "backbone.body.bn1.running_var", -1.0),
        ("faster_rcnn", "roi_heads.box_predictor.cls_score.bias", 3e38),
        ("mask_rcnn", "roi_heads.mask_predictor.mask_fcn_logits.bias", float("nan")),
    ],
)
def test_outputs_that_are_not_finite_are_an_error_and_not_an_empty_list(kind: Any, name: str, value: float) -> None:
    torch.manual_seed(0)
    small: dict[str, Any] = {"min_side_px": 32, "max_side_px": 48, "max_detections": 4}
    model = create_detector(kind, backbone="resnet18", num_classes=2, min_score=0.001, **small)
    dict(model.state_dict())[name].fill_(value)
    if name.endswith("cls_score.bias"):
        dict(model.state_dict())["roi_heads.box_predictor.cls_score.weight"].fill_(3e38)
    config: Any = model.config
    damaged = Detector(model.eval(), config, model_id="acme/damaged", revision="0" * 40)
    with pytest.raises(NonFiniteScores, match="The network of acme/damaged gives no finite scores for this image"):
        damaged.predict(make_image(60, 48))


def test_score_and_number_are_limited(detector: Detector) -> None:
    image = make_image(200, 80)
    everything = detector.predict(image, min_score=0.05)
    middle = everything[len(everything) // 2].score
    assert len(detector.predict(image, min_score=middle)) < len(everything)
    assert [each.box for each in detector.predict(image, min_score=0.05, max_detections=1)] == [everything[0].box]
    with pytest.raises(InvalidConfig, match=r"it is 0\.05 to 1"):
        detector.predict(image, min_score=0.01)
    with pytest.raises(InvalidConfig, match="max_detections is 0"):
        detector.predict(image, max_detections=0)


def test_several_images_have_a_list_each_and_progress_is_reported(detector: Detector) -> None:
    progress: list[tuple[int, int]] = []
    found = detector.predict(
        [make_image(), make_image(50, 60)],
        min_score=0.05,
        on_progress=lambda done, total: progress.append((done, total)),
    )
    assert len(found) == 2
    assert progress == [(1, 2), (2, 2)]
    assert detector.predict([]) == []


def test_a_bad_image_is_named(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="absent"):
        detector.predict(str(tmp_path / "absent.png"))
    with pytest.raises(BadImage):
        detector.predict(b"no image")


def test_boxes_of_a_reduced_image_are_brought_to_full_size(detector: Detector) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (1600, 1203), (200, 30, 30)).save(buffer, format="JPEG")
    decoded = decode_reduced(buffer.getvalue(), min_side_px=64)
    assert decoded.image.width < 1600
    image = detector.prepare(decoded)
    scale = image.pixels.shape[2] / 1600
    [box] = image.to_full_size(torch.tensor([[160.0, 80.0, 800.0, 400.0]]) * scale).tolist()
    assert box == pytest.approx([160, 80, 800, 400], rel=0.01)
    [outside] = image.to_full_size(torch.tensor([[-5.0, -5.0, 9999.0, 9999.0]])).tolist()
    assert outside == [0, 0, 1600, 1203]


def test_a_large_image_has_boxes_in_its_own_pixels(detector: Detector) -> None:
    small = Image.open(io.BytesIO(make_image(96, 64)))
    large = small.resize((1536, 1024), Image.Resampling.BILINEAR)
    [first, *_] = detector.predict(small, min_score=0.05)
    [scaled, *_] = detector.predict(large, min_score=0.05)
    assert np.array(scaled.box) == pytest.approx(np.array(first.box) * 16, abs=40)
    assert scaled.mask is not None
    assert scaled.mask.to_array().shape == (1024, 1536)


def test_detections_of_a_gray_or_turned_image_are_those_of_the_displayed_one(detector: Detector) -> None:
    upright = Image.open(io.BytesIO(make_image(120, 90))).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(buffer, format="PNG", exif=exif)
    expected, found = (detector.predict(way, min_score=0.05) for way in (upright, buffer.getvalue()))
    assert [each.box for each in found] == [each.box for each in expected]


def test_what_is_prepared_before_the_network_is_what_its_own_transform_makes(detector: Detector) -> None:
    decoded = DecodedImage.of(Image.open(io.BytesIO(make_image(120, 90))).convert("RGB"))
    pixels = torch.from_numpy(np.array(decoded.image)).permute(2, 0, 1)
    prepared = detector.prepare(decoded)
    transform: Any = detector.model.transform
    images, _ = transform([pixels.float() / 255])
    [(height, width)] = images.image_sizes
    assert torch.allclose(prepared.pixels, images.tensors[0, :, :height, :width], atol=1e-5)
    [answer] = detector.detect([prepared])
    with torch.inference_mode():
        [expected] = detector.model([pixels.float() / 255])
    assert torch.allclose(answer["scores"][:5], expected["scores"][:5], atol=1e-4)
    assert torch.allclose(prepared.to_full_size(answer["boxes"][:1]), expected["boxes"][:1], atol=0.01)


@pytest.mark.parametrize(("width", "height"), [(5000, 1), (1, 5000)])
def test_an_image_of_one_row_or_column_has_at_least_one_pixel_a_side(
    width: int, height: int, detector: Detector
) -> None:
    thin = Image.new("RGB", (width, height))
    for each in detector.predict(thin, min_score=0.05):
        assert 0 <= each.box[0] <= each.box[2] <= width
        assert 0 <= each.box[1] <= each.box[3] <= height
    prepared = detector.prepare(DecodedImage.of(thin))
    transform: Any = detector.model.transform
    target = {"boxes": torch.tensor([[0.0, 0.0, width, height]]), "masks": torch.ones(1, height, width)}
    resized, target = transform.resize(torch.zeros(3, height, width), target)
    assert resized.shape == prepared.pixels.shape
    assert sorted(resized.shape[1:]) == [1, transform.max_size]
    assert target["boxes"].flatten().tolist() == pytest.approx([0, 0, resized.shape[2], resized.shape[1]])
    assert target["masks"].shape[1:] == resized.shape[1:]


@pytest.mark.parametrize("options", [{"max_detections": "3"}, {"max_detections": 2.5}, {"min_score": "0.5"}])
def test_an_option_of_another_type_is_refused(options: dict[str, Any], detector: Detector) -> None:
    with pytest.raises(InvalidConfig, match=f"{next(iter(options))} is "):
        detector.predict(make_image(), **options)


def sure_of_bars(detector: Detector) -> nn.Module:
    """A copy of the network that takes each region for a bar, with a score near 1."""
    model = copy.deepcopy(detector.model)
    model.get_parameter("roi_heads.box_predictor.cls_score.bias").data[1] += 8
    return model


def test_by_default_a_detector_that_returns_only_certain_objects_returns_all_of_them(detector: Detector) -> None:
    config = dataclasses.replace(detector.config, min_score=0.6)
    certain = Detector(sure_of_bars(detector), config, model_id="acme/certain", revision="0" * 40)
    found = certain.predict(make_image())
    assert found
    assert {each.label for each in found} == {"bar"}
    again = certain.predict(make_image(), min_score=0.6)
    assert [(each.score, each.box) for each in found] == [(each.score, each.box) for each in again]
    with pytest.raises(InvalidConfig, match=r"min_score is 0\.5"):
        certain.predict(make_image(), min_score=0.5)


def test_a_prediction_is_encoded_as_a_coco_result() -> None:
    output = {
        "boxes": torch.tensor([[2.0, 3.0, 10.0, 9.0]]),
        "labels": torch.tensor([1]),
        "scores": torch.tensor([0.75]),
        "masks": torch.ones(1, 1, 28, 28),
    }
    [(label, result)] = encode_prediction(output, 12, 20)
    assert label == 1
    assert result["bbox"] == [2, 3, 8, 6]
    assert result["score"] == 0.75
    mask_HW = decode_mask(result["segmentation"])
    assert mask_HW.shape == (12, 20)
    assert mask_HW[4:8, 3:9].all()
    assert not mask_HW[:2].any()


def test_a_detection_says_what_it_is() -> None:
    assert Detection("bar", 0, 0.5, (0, 0, 1, 1)).mask is None
    assert DecodedImage.of(Image.new("RGB", (4, 3))).full_size == (4, 3)
