"""The addresses of the Open Inference Protocol, version 2, as clients of KServe and Triton ask: /v2/...

Its errors are `{"error": "<sentence>"}`, as the protocol wants, with our code, hint and request id beside it. Never
sees a tensor; `tensors` reads and writes their bytes.
"""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fastapi import APIRouter, Depends, Request, Response

from eca_hub import EcaHubError, __version__
from eca_service.api.open_inference_codec import Inference, classes_output, inference_in, scores_output
from eca_service.api.schemas import (
    INFER_BODY,
    InferAnswer,
    ProtocolModel,
    ProtocolServer,
    ProtocolState,
    protocol_refusals,
)
from eca_service.api.v1 import unpack
from eca_service.errors import ModelNotLoaded, NotReady
from eca_service.http.body import unless_gone
from eca_service.http.dependencies import House, TheHouse, check_key
from eca_service.http.responses import json_answer
from eca_service.http.uploads import checked
from eca_service.inference.model import ServedModel
from eca_service.inference.tasks import Classification
from eca_service.inference.types import ImageResult

_LENGTH_HEADER = "inference-header-content-length"

open_router = APIRouter(prefix="/v2")
"""What needs no key."""

router = APIRouter(prefix="/v2", dependencies=[Depends(check_key)], responses=protocol_refusals(401))
"""What needs a key, when there are keys."""


@open_router.get("", summary="What this server speaks", response_model=None, responses={200: {"model": ProtocolServer}})
async def describe_server() -> Response:
    """Name, version and extensions."""
    return json_answer(
        {"name": "eca-hub", "version": __version__, "extensions": ["binary_tensor_data", "classification"]}
    )


@open_router.get(
    "/health/live", summary="Is the process alive", response_model=None, responses={200: {"model": ProtocolState}}
)
async def is_live() -> Response:
    """As /healthz."""
    return json_answer({"live": True})


@open_router.get(
    "/health/ready",
    summary="Can pictures be classified",
    response_model=None,
    responses={200: {"model": ProtocolState}, **protocol_refusals(503)},
)
async def is_ready(house: TheHouse) -> Response:
    """As /readyz."""
    if house.registry.is_draining or not house.registry.is_ready:
        raise NotReady("The service is not ready.", retry_after_s=2)
    return json_answer({"ready": True})


Function = TypeVar("Function", bound=Callable[..., Any])


def _below_a_model(method: str, ending: str, summary: str, **options: Any) -> Callable[[Function], Function]:
    """Give a function an address below a model, and one below a commit of a model.

    A model id may have any number of parts, so the longer of two addresses must be looked at first.
    """

    def add(function: Function) -> Function:
        for place, name in (("/versions/{version}", "this commit of a model"), ("", "this model")):
            path = f"/models/{{model_id:path}}{place}{ending}"
            router.add_api_route(
                path, function, methods=[method], summary=summary.format(name), response_model=None, **options
            )
        return function

    return add


@_below_a_model(
    "GET", "/ready", "Can {} answer", responses={200: {"model": ProtocolState}, **protocol_refusals(404, 422, 503)}
)
async def is_model_ready(house: TheHouse, model_id: str, version: str | None = None) -> Response:
    """Whether the model is loaded and its engines answer."""
    model = house.registry.find(model_id)
    _check_version(model, version)
    if not model.is_healthy:
        raise NotReady("An engine of the model does not answer.", retry_after_s=2)
    return json_answer({"name": model.info.model_id, "ready": True})


@_below_a_model(
    "POST",
    "/infer",
    "Scores of pictures, by {}",
    responses={200: {"model": InferAnswer}, **protocol_refusals(400, 404, 408, 413, 415, 422, 429, 503, 504)},
    openapi_extra={"requestBody": INFER_BODY},
)
async def infer(request: Request, house: TheHouse, model_id: str, version: str | None = None) -> Response:
    """Send encoded pictures as the input `image`, in base64 in the JSON or as bytes behind it, or `pixels`.

    The output `scores` has a probability for each class. One bad picture fails the request, as the protocol knows no
    answer in part.
    """
    received_at_s = time.perf_counter()
    header_length = request.headers.get(_LENGTH_HEADER)
    async with house.read(request, model_id, max_bytes=house.limits.max_request_bytes) as body:
        with house.registry.acquire(model_id) as model:
            _check_version(model, version)
            asked = await unpack(_asked_in, body, header_length, model, house)
            work = model.run(Classification(len(model.info.labels)), asked.pictures, received_at_s=received_at_s)
            outcomes = await unless_gone(request.receive, work)
    house.measure(model, outcomes)
    return _answer(model, asked, outcomes)


def _asked_in(body: bytes, header_length: str | None, model: ServedModel[Any, Any], house: House) -> Inference:
    asked = inference_in(
        body,
        header_length,
        height_px=model.info.height_px,
        width_px=model.info.width_px,
        max_images=house.limits.max_images,
    )
    for picture in asked.pictures:
        if isinstance(picture, EcaHubError):
            raise picture
        if isinstance(picture, bytes) and isinstance(refused := checked(picture, house.limits), EcaHubError):
            raise refused
    return asked


def _answer(
    model: ServedModel[Any, Any], asked: Inference, outcomes: Sequence[ImageResult[Any] | EcaHubError]
) -> Response:
    ranked = []
    for outcome in outcomes:
        if isinstance(outcome, EcaHubError):
            raise outcome
        ranked.append(outcome.value)
    if asked.num_classes:
        words = [[f"{one.score:.6f}:{one.index}:{one.label}" for one in row[: asked.num_classes]] for row in ranked]
        output, raw = classes_output(words, binary=asked.wants_binary)
    else:
        scores = [[one.score for one in sorted(row, key=lambda one: one.index)] for row in ranked]
        output, raw = scores_output(scores, binary=asked.wants_binary)
    document: dict[str, Any] = {"model_name": model.info.model_id, "model_version": model.info.revision}
    if asked.request_id:
        document["id"] = asked.request_id
    document["outputs"] = [output]
    if not asked.wants_binary:
        return json_answer(document)
    head = json.dumps(document, separators=(",", ":")).encode()
    return Response(head + raw, headers={_LENGTH_HEADER: str(len(head))}, media_type="application/octet-stream")


# After the other addresses below a model, because they are longer.
@_below_a_model(
    "GET",
    "",
    "What {} reads and writes",
    responses={200: {"model": ProtocolModel}, **protocol_refusals(404, 422, 503)},
)
async def describe_model(house: TheHouse, model_id: str, version: str | None = None) -> Response:
    """Inputs and outputs. In the place of `image`, `pixels` may be sent: UINT8, N x 3 x height x width, red first."""
    model = house.registry.find(model_id)
    _check_version(model, version)
    info = model.info
    return json_answer(
        {
            "name": info.model_id,
            "versions": [info.revision],
            "platform": "pytorch",
            "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, len(info.labels)]}],
        }
    )


def _check_version(model: ServedModel[Any, Any], version: str | None) -> None:
    if version not in (None, model.info.revision):
        raise ModelNotLoaded([f"{model.info.model_id} at {model.info.revision}"])
