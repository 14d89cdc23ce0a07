"""Explanations over HTTP: gates and Grad-CAM maps."""

import asyncio
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient
from torch import Tensor

import eca_hub
from eca_hub import Explanation, explain_image
from eca_service.api.schemas import ExplainResponse
from eca_service.app import create_app
from eca_service.errors import Overloaded
from eca_service.http.auth import ApiKeys
from eca_service.inference.explainer import Explainer
from eca_service.models.loader import ModelLoader
from eca_service.models.registry import Registry
from eca_service.models.source import ModelSource
from eca_service.optimize.optimize import release_memory
from eca_service.settings import Settings
from tests.service.app_fixtures import app_with, refusal, wait_until_ready
from tests.service.fakes import png
from tests.service.server_process import save_tiny_package

IMAGE = png(40, 30, "teal")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_package(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def client(package: Path) -> Iterator[TestClient]:
    settings = Settings(
        model=(str(package),), explain=True, num_engines=1, max_batch=2, precision="fp32", allowed_hosts="*"
    )
    loader = ModelLoader(settings)
    registry = Registry([ModelSource(str(package))], loader.open)
    with TestClient(create_app(settings, registry, ApiKeys()), raise_server_exceptions=False) as client:
        wait_until_ready(client, registry)
        yield client
    loader.close()


def test_the_result_equals_the_librarys(client: TestClient, package: Path) -> None:
    expected = explain_image(eca_hub.Classifier.from_pretrained(package), IMAGE)
    response = client.post("/v1/explain?gates=true", content=IMAGE)
    assert response.status_code == 200, response.text
    ExplainResponse.model_validate(response.json())
    body = response.json()
    assert body["prediction"]["label"] == expected.prediction.label
    assert body["prediction"]["score"] == pytest.approx(expected.prediction.score, abs=1e-4)
    assert [gates["name"] for gates in body["gates"]] == [gates.name for gates in expected.gates]
    for found, gates in zip(body["gates"], expected.gates, strict=True):
        assert found["values"] == pytest.approx(gates.values, abs=1e-4)
        assert found["min"] <= found["mean"] <= found["max"]
    assert torch.allclose(torch.tensor(body["heat"]), torch.tensor(expected.heatmap), atol=1e-3)


def test_a_class_may_be_named_and_gates_are_only_listed_when_asked_for(client: TestClient) -> None:
    body = client.post("/v1/explain?class_index=3", content=IMAGE).json()
    assert body["prediction"]["label"] == "digit 3"
    assert "values" not in body["gates"][0]
    refusal(client.post("/v1/explain?class_index=10", content=IMAGE), 422, "invalid_request")
    refusal(client.post("/v1/explain?class_index=-1", content=IMAGE), 422, "invalid_request")


def test_one_valid_image_is_required(client: TestClient) -> None:
    refusal(client.post("/v1/explain", content=b"broken"), 422, "not_an_image")
    files = [("file", ("a.png", IMAGE, "image/png"))]
    assert client.post("/v1/explain", files=files).status_code == 200
    refusal(client.post("/v1/explain", files=files * 2), 422, "invalid_request")
    refusal(client.post("/v1/explain", json={"images": ["?"]}), 422, "invalid_request")


def test_the_limit_of_explanations_has_a_metric(client: TestClient) -> None:
    text = client.get("/metrics").text
    for name, value in (("eca_explanations_in_flight", 0), ("eca_explanations_in_flight_limit", 4)):
        assert re.search(rf"^{name}{{[^}}]*}} {value}\.0$", text, re.MULTILINE)


def test_what_is_classified_is_the_same_before_and_after(client: TestClient) -> None:
    before = client.post("/v1/classify", content=IMAGE).json()["predictions"]
    client.post("/v1/explain", content=IMAGE)
    assert client.post("/v1/classify", content=IMAGE).json()["predictions"] == before


def test_it_is_off_unless_switched_on() -> None:
    with TestClient(app_with("acme/digits")) as client:
        refusal(client.post("/v1/explain", content=b"7"), 404, "not_found")


def test_few_may_be_in_flight() -> None:
    gate = threading.Event()

    def slow(classifier: Any, pixels: Tensor, index: int | None) -> Explanation:
        assert gate.wait(60)
        return Explanation(eca_hub.Prediction("a", 0, 1.0), (), ())

    async def scene() -> None:
        explainer = Explainer(None, slow)  # type: ignore[arg-type]

        async def send() -> Explanation:
            with explainer.reserve():
                return await explainer.explain(torch.zeros(1), None)

        requests = [asyncio.create_task(send()) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await send()
        gate.set()
        assert len(await asyncio.gather(*requests)) == 4
        explainer.close(lambda: None)

    asyncio.run(scene())


def test_a_network_is_freed_after_the_explanation_that_reads_it(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_begun, gate, has_ended = threading.Event(), threading.Event(), threading.Event()
    sizes: list[int] = []

    def slow(classifier: eca_hub.Classifier, pixels: Tensor, *, class_index: int | None) -> None:
        has_begun.set()
        assert gate.wait(60)
        sizes.extend(parameter.numel() for parameter in classifier.model.parameters())

    def release(module: torch.nn.Module) -> None:
        release_memory(module)
        if threading.current_thread().name.startswith("explainer"):
            has_ended.set()

    monkeypatch.setattr("eca_service.inference.explainer.explain_image", slow)
    monkeypatch.setattr("eca_service.optimize.optimize.release_memory", release)

    async def scene() -> None:
        loader = ModelLoader(Settings(model=(str(package),), explain=True, num_engines=1, precision="fp32"))
        model = await loader.open(ModelSource(str(package)))
        explaining = asyncio.create_task(model.explain(IMAGE, None))
        assert await asyncio.to_thread(has_begun.wait, 60)
        explaining.cancel()
        await model.close()
        gate.set()
        assert await asyncio.to_thread(has_ended.wait, 60)
        loader.close()

    asyncio.run(scene())
    assert sizes
    assert all(sizes)
