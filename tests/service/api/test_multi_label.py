"""A model of several labels an image answers with sigmoid scores on every route; a real network, over ASGI."""

import base64
import dataclasses
from collections.abc import Iterator

import pytest
import torch
from starlette.testclient import TestClient

import eca_hub
from eca_service.app import create_app
from eca_service.http.auth import ApiKeys
from eca_service.models.loader import ModelLoader
from eca_service.models.registry import Registry
from eca_service.models.source import ModelSource
from tests.conftest import TINY, make_image
from tests.service.app_fixtures import settings_with, wait_until_ready

ID = "acme/several"
IMAGE = make_image()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, problem_type="multi_label_classification")
    model = eca_hub.create_model("eca_resnet20", num_classes=3)
    return str(eca_hub.save_pretrained(model, tmp_path_factory.mktemp("several"), config=config))


@pytest.fixture(scope="module")
def client(folder: str) -> Iterator[TestClient]:
    settings = settings_with(folder, precision="fp32", num_engines=1, device="cpu")
    loader = ModelLoader(settings)
    registry = Registry([ModelSource(folder, None, ID)], loader.open)
    try:
        with TestClient(create_app(settings, registry, ApiKeys(()), ApiKeys(()))) as client:
            wait_until_ready(client, registry)
            yield client
    finally:
        loader.close()


@pytest.fixture(scope="module")
def expected(folder: str) -> dict[str, float]:
    """The sigmoid of the logits, which does not sum to 1."""
    classifier = eca_hub.Classifier.from_pretrained(folder)
    pixels = classifier.transform.resize_and_crop(classifier.transform.decode(IMAGE))[None]
    with torch.inference_mode():
        scores = classifier.model(classifier.transform.normalize(pixels)).sigmoid()[0].tolist()
    assert abs(sum(scores) - 1) > 0.1
    return dict(zip(classifier.config.labels, scores, strict=True))


def test_v1_classify(client: TestClient, expected: dict[str, float]) -> None:
    response = client.post("/v1/classify", content=IMAGE, headers={"content-type": "image/png"})
    assert response.status_code == 200, response.text
    scores = {each["label"]: each["score"] for each in response.json()["predictions"]}
    assert scores == pytest.approx(expected, abs=1e-5)
    assert client.get("/v1/models").json()["models"][0]["activation"] == "sigmoid"


def test_hugging_faces_shape_and_its_own_choice(client: TestClient, expected: dict[str, float]) -> None:
    response = client.post(f"/models/{ID}", content=IMAGE, headers={"content-type": "image/png"})
    assert {each["label"]: each["score"] for each in response.json()} == pytest.approx(expected, abs=1e-5)
    body = {"inputs": base64.b64encode(IMAGE).decode(), "parameters": {"function_to_apply": "softmax"}}
    shares = [each["score"] for each in client.post(f"/models/{ID}", json=body).json()]
    assert sum(shares) == pytest.approx(1)


def test_the_open_inference_protocol(client: TestClient, expected: dict[str, float]) -> None:
    data = [base64.b64encode(IMAGE).decode()]
    body = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": data}]}
    (output,) = client.post(f"/v2/models/{ID}/infer", json=body).json()["outputs"]
    assert output["data"] == pytest.approx(list(expected.values()), abs=1e-5)
