"""Detections over HTTP, with real networks: exactly those of the library."""

import base64
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

import eca_hub
from eca_service.api.detect import DetectBatchResponse, DetectQuery, DetectResponse
from eca_service.api.schemas import HFObject, ModelsResponse
from eca_service.app import create_app
from eca_service.errors import InvalidRequest
from eca_service.http.auth import ApiKeys
from eca_service.inference.tasks import ObjectDetection
from eca_service.models.loader import ModelLoader
from eca_service.models.registry import Registry
from eca_service.models.source import ModelSource
from tests.conftest import make_image, save_tiny_detector
from tests.service.app_fixtures import app_with, refusal, settings_with, wait_until_ready
from tests.service.fakes import model_info
from tests.service.server_process import save_tiny_package

EVERYTHING = "min_score=0.05"


def turned() -> bytes:
    """An image that is stored on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.open(io.BytesIO(make_image(120, 90))).transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    return file.getvalue()


IMAGES = {
    "png": make_image(120, 90),
    "upright": make_image(50, 90),
    "gray": make_image(70, 70, mode="L"),
    "turned": turned(),
    "reduced": make_image(1600, 1203, file_format="JPEG"),
}


@pytest.fixture(scope="module")
def packages(detector_package: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packages")
    return {
        "masks": detector_package,
        "boxes": save_tiny_detector(folder / "boxes", "retinanet", side_px=32),
        "digits": save_tiny_package(folder / "digits"),
    }


@pytest.fixture(scope="module")
def client(packages: dict[str, Path]) -> Iterator[TestClient]:
    sources = [ModelSource.parse(f"acme/{name}={folder}") for name, folder in packages.items()]
    settings = settings_with(
        "acme/masks", num_engines=1, explain=True, deadline_ms=600_000, max_image_mib=0.5, max_request_mib=1
    )
    loader = ModelLoader(settings)
    registry = Registry(sources, loader.open)
    with TestClient(create_app(settings, registry, ApiKeys())) as client:
        wait_until_ready(client, registry)
        yield client
    loader.close()


def test_by_default_a_detector_that_answers_only_certain_objects_is_asked_for_all_of_them() -> None:
    info = replace(model_info(), min_score=0.6)
    query = DetectQuery()
    ObjectDetection(query.min_score, query.max_detections, query.masks).check(info)
    with pytest.raises(InvalidRequest, match=r"min_score must be 0\.6 to 1"):
        ObjectDetection(0.5).check(info)


def detect(client: TestClient, content: bytes, query: str = EVERYTHING, model: str = "acme/masks") -> Any:
    return client.post(f"/v1/detect?model={model}&{query}", content=content)


def expected_objects(detector: eca_hub.Detector, content: bytes, **options: Any) -> list[dict[str, Any]]:
    return [
        {
            "label": each.label,
            "index": each.index,
            "score": each.score,
            "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), each.box, strict=True)),
        }
        | ({"mask": each.mask.to_rle()} if each.mask else {})
        for each in detector.predict(content, **options)
    ]


@pytest.fixture(scope="module")
def detectors(packages: dict[str, Path]) -> dict[str, eca_hub.Detector]:
    """The same packages, opened by the library."""
    return {name: eca_hub.Detector.from_pretrained(packages[name]) for name in ("masks", "boxes")}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in ("turned", "reduced") else pytest.mark.slow) for name in IMAGES],
)
def test_an_image_has_exactly_the_detections_of_the_library(
    client: TestClient, detectors: dict[str, eca_hub.Detector], name: str
) -> None:
    for model, detector in detectors.items():
        least = detector.config.min_score
        response = detect(client, IMAGES[name], f"min_score={least}", f"acme/{model}")
        DetectResponse.model_validate(response.json())
        expected = expected_objects(detector, IMAGES[name], min_score=least)
        assert response.json()["detections"] == expected
        assert expected


def test_boxes_and_masks_of_a_turned_image_are_those_of_the_upright_one(client: TestClient) -> None:
    assert detect(client, IMAGES["turned"]).json()["detections"] == detect(client, IMAGES["png"]).json()["detections"]


def test_score_number_and_form_of_masks_are_options(client: TestClient) -> None:
    everything = detect(client, IMAGES["png"]).json()["detections"]
    middle = everything[len(everything) // 2]["score"]
    better = [each for each in everything if each["score"] >= middle]
    assert detect(client, IMAGES["png"], f"min_score={middle}").json()["detections"] == better
    assert detect(client, IMAGES["png"], f"{EVERYTHING}&max_detections=1").json()["detections"] == everything[:1]
    plain = detect(client, IMAGES["png"], f"{EVERYTHING}&masks=none").json()
    DetectResponse.model_validate(plain)
    assert all("mask" not in each for each in plain["detections"])
    outlined = detect(client, IMAGES["png"], f"{EVERYTHING}&masks=polygon").json()
    DetectResponse.model_validate(outlined)
    assert all(len(outline) >= 6 for each in outlined["detections"] for outline in each["mask"])
    assert detect(client, IMAGES["png"], "min_score=1").json()["detections"] == []


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("min_score=0.01", "min_score must be 0.05 to 1"),
        ("min_score=2", "min_score"),
        ("min_score=nan", "min_score"),
        ("max_detections=0", "max_detections"),
        ("masks=png", "masks"),
        ("top_k=3", "unknown parameter"),
    ],
)
def test_a_bad_option_is_refused(client: TestClient, query: str, sentence: str) -> None:
    error = refusal(detect(client, IMAGES["png"], query), 422, "invalid_request")
    assert sentence in error["message"]


def test_masks_of_a_model_without_masks_are_refused(client: TestClient) -> None:
    error = refusal(detect(client, IMAGES["png"], "masks=rle", "acme/boxes"), 422, "invalid_request")
    assert error["message"] == "This model finds boxes without masks."
    assert detect(client, IMAGES["png"], "masks=none", "acme/boxes").status_code == 200


def test_several_images_have_results_in_order_and_a_bad_one_fails_alone(client: TestClient) -> None:
    contents = [IMAGES["png"], b"broken", IMAGES["upright"]]
    files = [("file", ("a.png", content, "image/png")) for content in contents]
    response = client.post(f"/v1/detect?model=acme/masks&{EVERYTHING}", files=files)
    DetectBatchResponse.model_validate(response.json())
    first, bad, last = response.json()["results"]
    assert bad["error"]["code"] == "not_an_image"
    assert first["detections"] == detect(client, IMAGES["png"]).json()["detections"]
    assert last["detections"] == detect(client, IMAGES["upright"]).json()["detections"]
    refusal(detect(client, b"broken"), 422, "not_an_image")
    packed = {"images": [base64.b64encode(IMAGES["png"]).decode()]}
    assert client.post(f"/v1/detect?model=acme/masks&{EVERYTHING}", json=packed).json()["detections"]


def test_each_model_refuses_what_the_other_does_and_says_what_to_call(client: TestClient) -> None:
    image = IMAGES["png"]
    error = refusal(detect(client, image, "", "acme/digits"), 422, "invalid_request")
    assert (error["message"], error["hint"]) == (
        "acme/digits cannot detect.",
        "Send images for it to /v1/classify or /v1/embed.",
    )
    for path in ("/v1/classify?model=", "/v1/embed?model=", "/v1/explain?model="):
        error = refusal(client.post(f"{path}acme/masks", content=image), 422, "invalid_request")
        assert error["message"].startswith("acme/masks cannot ")
        assert error["hint"] == "Send images for it to /v1/detect."
    assert client.post("/v1/explain?model=acme/digits", content=image).status_code == 200


def test_the_open_inference_protocol_is_for_classifiers(client: TestClient) -> None:
    document = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["QQ=="]}]}
    for response in (
        client.post("/v2/models/acme/masks/infer", json=document),
        client.get("/v2/models/acme/masks"),
    ):
        assert response.status_code == 422
        assert response.json()["message"] == "acme/masks cannot classify."
    assert client.get("/v2/models/acme/masks/ready").status_code == 200


def test_hugging_faces_shape_has_boxes_in_whole_pixels(
    client: TestClient, detectors: dict[str, eca_hub.Detector]
) -> None:
    image = IMAGES["png"]
    body = {"inputs": base64.b64encode(image).decode(), "parameters": {"threshold": 0.05}}
    found = client.post("/models/acme/masks", json=body).json()
    expected = detectors["masks"].predict(image, min_score=0.05)
    assert len(found) == len(expected) > 0
    for each, right in zip(found, expected, strict=True):
        HFObject.model_validate(each)
        assert (each["label"], each["score"]) == (right.label, right.score)
        assert list(each["box"].values()) == [round(edge) for edge in right.box]
    body["parameters"] = {"threshold": 0}
    assert client.post("/models/acme/masks", json=body).json() == found
    body["parameters"] = {"top_k": 3}
    error = refusal(client.post("/models/acme/masks", json=body), 422, "invalid_request")
    assert error["message"] == "acme/masks can detect, for which there is no parameter top_k."
    body["parameters"] = {"threshold": 0.5}
    error = refusal(client.post("/models/acme/digits", json=body), 422, "invalid_request")
    assert "function_to_apply, top_k" in error["hint"]


def test_the_list_of_models_says_what_a_detector_is(client: TestClient) -> None:
    listed = client.get("/v1/models").json()
    ModelsResponse.model_validate(listed)
    masks, boxes, digits = listed["models"]
    assert (masks["tasks"], digits["tasks"]) == (["detect"], ["classify", "embed"])
    assert (masks["detector"], masks["has_masks"], boxes["has_masks"]) == ("mask_rcnn", True, False)
    assert (masks["min_side_px"], masks["max_side_px"], masks["labels"]) == (32, 48, ["bar", "disk"])
    assert (masks["precision"], masks["parity"]) == ("float32", None)
    assert digits["input_px"] == [32, 32]
    metrics = client.get("/metrics").text
    assert 'eca_engine_seconds_count{model="acme/masks"}' in metrics


def test_a_key_is_needed_where_there_are_keys() -> None:
    with TestClient(app_with("acme/digits", keys=["secret"]), raise_server_exceptions=False) as client:
        refusal(client.post("/v1/detect", content=b"7"), 401, "unauthorized")
