"""Embeddings over HTTP, with a real network."""

import math
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from eca_service.api.embed import EmbedBatchResponse, EmbedResponse
from eca_service.app import create_app
from eca_service.http.auth import ApiKeys
from eca_service.models.loader import ModelLoader
from eca_service.models.registry import Registry
from eca_service.models.source import ModelSource
from tests.service.app_fixtures import app_with, refusal, settings_with, wait_until_ready
from tests.service.fakes import png
from tests.service.server_process import save_tiny_package


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    package = save_tiny_package(tmp_path_factory.mktemp("package"))
    settings = settings_with(str(package), num_engines=1)
    loader = ModelLoader(settings)
    registry = Registry([ModelSource(str(package))], loader.open)
    with TestClient(create_app(settings, registry, ApiKeys()), raise_server_exceptions=False) as client:
        wait_until_ready(client, registry)
        yield client
    loader.close()


def test_an_image_has_an_embedding_whose_norm_is_1_on_request(client: TestClient) -> None:
    plain = client.post("/v1/embed", content=png(40, 30, "teal"))
    assert plain.status_code == 200, plain.text
    EmbedResponse.model_validate(plain.json())
    scaled = client.post("/v1/embed?normalize=true", content=png(40, 30, "teal")).json()["embedding"]
    assert math.hypot(*scaled) == pytest.approx(1)
    norm = math.hypot(*plain.json()["embedding"])
    assert scaled == pytest.approx([value / norm for value in plain.json()["embedding"]], abs=1e-5)


def test_several_images_have_results_in_order_and_a_bad_one_fails_alone(client: TestClient) -> None:
    files = [("file", ("a.png", content, "image/png")) for content in (png(), b"broken", png(30, 30, "teal"))]
    response = client.post("/v1/embed", files=files)
    EmbedBatchResponse.model_validate(response.json())
    first, bad, last = response.json()["results"]
    assert bad["error"]["code"] == "not_an_image"
    assert first["embedding"] != last["embedding"]
    refusal(client.post("/v1/embed", content=b"broken"), 422, "not_an_image")


def test_a_network_that_cannot_embed_gets_an_error_with_its_tasks() -> None:
    with TestClient(app_with("acme/digits"), raise_server_exceptions=False) as client:
        error = refusal(client.post("/v1/embed", content=b"7"), 422, "invalid_request")
    assert error["message"] == "acme/digits cannot embed."
    assert "classify" in error["hint"]


def test_a_key_is_needed_where_there_are_keys() -> None:
    with TestClient(app_with("acme/digits", keys=["secret"]), raise_server_exceptions=False) as client:
        refusal(client.post("/v1/embed", content=b"7"), 401, "unauthorized")
