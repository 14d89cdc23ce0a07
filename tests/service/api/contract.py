"""The contract of the API: exchanges that hold on whatever serves it, one process or Ray.

The server has the package of `save_tiny_package` as its only model, key `sesame`, explanations, and two images in
flight at most.
"""

import base64
import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx2
from pydantic import BaseModel

from eca_service.api.embed import EmbedResponse
from eca_service.api.schemas import (
    BatchResponse,
    ClassifyResponse,
    ErrorResponse,
    ExplainResponse,
    HealthResponse,
    ModelsResponse,
    V2Model,
)
from tests.service.fakes import png

KEY = {"authorization": "Bearer sesame"}
MODEL = "acme/digits"
SETTINGS: dict[str, Any] = {"explain": True, "max_inflight_images": 2, "precision": "fp32"}
"""Of the server, beside model and keys."""

_NUM_CLIENTS = 32


@dataclass(frozen=True)
class Exchange:
    """A request and what every server responds."""

    about: str
    path: str
    status: int = 200
    schema: type[BaseModel] | None = None
    code: str = ""
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=lambda: KEY)
    options: dict[str, Any] = field(default_factory=dict)
    check: Callable[[Any], bool] = lambda body: True


def _in_json(*images: bytes) -> bytes:
    return json.dumps({"images": [base64.b64encode(image).decode() for image in images]}).encode()


def _form(*images: bytes) -> dict[str, Any]:
    return {"files": [("file", ("a.png", image, "image/png")) for image in images]}


_JSON = KEY | {"content-type": "application/json"}
EXCHANGES = [
    Exchange("an image", "/v1/classify", 200, ClassifyResponse, options={"content": png()}),
    Exchange(
        "three classes",
        "/v1/classify?top_k=3",
        200,
        ClassifyResponse,
        options={"content": png()},
        check=lambda body: len(body["predictions"]) == 3 and body["model"] == MODEL,
    ),
    Exchange("a form of two", "/v1/classify", 200, BatchResponse, options=_form(png(), b"broken")),
    Exchange("JSON", "/v1/classify", 200, ClassifyResponse, headers=_JSON, options={"content": _in_json(png())}),
    Exchange("no image", "/v1/classify", 422, ErrorResponse, "not_an_image", options={"content": b"broken"}),
    Exchange("no key", "/v1/classify", 401, ErrorResponse, "unauthorized", headers={}, options={"content": png()}),
    Exchange(
        "an unknown model", "/v1/classify?model=a/b", 404, ErrorResponse, "model_not_loaded", options={"content": png()}
    ),
    Exchange("no class", "/v1/classify?top_k=0", 422, ErrorResponse, "invalid_request", options={"content": png()}),
    Exchange("no JSON", "/v1/classify", 400, ErrorResponse, "bad_json", headers=_JSON, options={"content": b"{"}),
    Exchange(
        "a compressed body",
        "/v1/classify",
        415,
        ErrorResponse,
        "unsupported_type",
        headers=KEY | {"content-encoding": "gzip"},
        options={"content": png()},
    ),
    Exchange("a large body", "/v1/classify", 413, ErrorResponse, "too_large", options={"content": bytes(11 * 2**20)}),
    Exchange("another method", "/v1/classify", 405, ErrorResponse, "method_not_allowed", method="PUT"),
    Exchange("no route", "/nowhere", 404, ErrorResponse, "not_found", method="GET"),
    Exchange("an embedding", "/v1/embed", 200, EmbedResponse, options={"content": png()}),
    Exchange("an explanation", "/v1/explain", 200, ExplainResponse, options={"content": png()}),
    Exchange(
        "Hugging Face's shape",
        f"/models/{MODEL}",
        options={"content": png()},
        check=lambda body: set(body[0]) == {"label", "score"},
    ),
    Exchange("the models", "/v1/models", 200, ModelsResponse, method="GET"),
    Exchange("no admin", "/v1/models", 404, ErrorResponse, "not_found", options={"json": {"model": "acme/other"}}),
    Exchange("the model of v2", f"/v2/models/{MODEL}", 200, V2Model, method="GET"),
    Exchange("alive", "/healthz", 200, HealthResponse, method="GET", headers={}),
    Exchange("ready", "/readyz", 200, HealthResponse, method="GET", headers={}),
    Exchange("the description", "/openapi.json", method="GET", check=lambda body: "/v1/classify" in body["paths"]),
]


def hold(client: httpx2.Client, exchange: Exchange) -> None:
    """Send one request and check all of its response."""
    headers = exchange.headers | {"x-request-id": "of-the-test"}
    response = client.request(exchange.method, exchange.path, headers=headers, **exchange.options)
    assert response.status_code == exchange.status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"] == "of-the-test"
    assert response.headers["x-content-type-options"] == "nosniff"
    body = response.json()
    if exchange.schema is not None:
        exchange.schema.model_validate(body)
    if exchange.code:
        assert body["error"]["code"] == exchange.code
        assert body["error"]["request_id"] == "of-the-test"
    assert exchange.check(body), body


def flood(client: httpx2.Client) -> Counter[int]:
    """Send many requests at once; the statuses, of which those of 429 say when to come back."""

    def send(number: int) -> int:
        response = client.post("/v1/classify", content=png(400, 400), headers=KEY)
        if response.status_code == 429:
            assert int(response.headers["retry-after"]) >= 1
        return response.status_code

    with ThreadPoolExecutor(_NUM_CLIENTS) as clients:
        return Counter(clients.map(send, range(4 * _NUM_CLIENTS)))
