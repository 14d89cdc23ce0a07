"""The Open Inference Protocol, version 2, which clients of KServe and Triton speak: /v2/...

Its errors are `{"error": "<sentence>"}`, as the protocol defines, with code, hint and request id beside it.
`open_inference_codec` parses and writes the tensors.
"""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fastapi import APIRouter, Depends, Request, Response

from eca_hub import EcaHubError, __version__
from eca_service.api.images import parse_body
from eca_service.api.open_inference_codec import (
    InferRequest,
    classes_output,
    json_length,
    parse_infer_request,
    scores_output,
)
from eca_service.api.schemas import (
    INFER_BODY,
    InferResponse,
    V2Model,
    V2Server,
    V2State,
    describe_response,
    v2_error_responses,
)
from eca_service.errors import NotReady
from eca_service.http.body import cancel_on_disconnect
from eca_service.http.dependencies import AppState, StateDep, reject_parameters, require_api_key
from eca_service.http.responses import json_response
from eca_service.http.strict_json import Buffer, MarkCounts
from eca_service.http.uploads import check_image_size
from eca_service.inference.model import ServedModel
from eca_service.inference.tasks import Classification
from eca_service.inference.types import ImageResult

LENGTH_HEADER = "inference-header-content-length"

open_router = APIRouter(prefix="/v2", dependencies=[Depends(reject_parameters)], responses=v2_error_responses(422))
"""Routes without a key."""

router = APIRouter(
    prefix="/v2",
    dependencies=[Depends(require_api_key), Depends(reject_parameters)],
    responses=v2_error_responses(401, 422),
)
"""Routes with a key."""


@open_router.get("", summary="Describe this server", response_model=None, responses={200: describe_response(V2Server)})
async def describe_server() -> Response:
    """Name, version and extensions."""
    return json_response(
        {"name": "eca-hub", "version": __version__, "extensions": ["binary_tensor_data", "classification"]}
    )


@open_router.get(
    "/health/live", summary="Is the process alive", response_model=None, responses={200: describe_response(V2State)}
)
async def is_live() -> Response:
    """As /healthz."""
    return json_response({"live": True})


@open_router.get(
    "/health/ready",
    summary="Is the service ready",
    response_model=None,
    responses={200: describe_response(V2State), **v2_error_responses(503)},
)
async def is_ready(state: StateDep) -> Response:
    """As /readyz."""
    if state.registry.is_draining or not state.registry.is_ready:
        raise NotReady("The service is not ready.", retry_after_s=2)
    return json_response({"ready": True})


Function = TypeVar("Function", bound=Callable[..., Any])


def _model_route(method: str, ending: str, summary: str, **options: Any) -> Callable[[Function], Function]:
    """Add a function as a route below a model, and as one below a commit of a model.

    A model id may have any number of parts, so the longer of two paths must be matched first.
    """

    def add(function: Function) -> Function:
        for version, name in (("/versions/{version}", "this commit of a model"), ("", "this model")):
            path = f"/models/{{model_id:path}}{version}{ending}"
            router.add_api_route(
                path, function, methods=[method], summary=summary.format(name), response_model=None, **options
            )
        return function

    return add


@_model_route(
    "GET", "/ready", "Is {} ready", responses={200: describe_response(V2State), **v2_error_responses(404, 422, 503)}
)
async def is_model_ready(state: StateDep, model_id: str, version: str | None = None) -> Response:
    """Whether the model is loaded and its engines respond."""
    model = state.registry.find(model_id, version)
    if not model.is_healthy:
        raise NotReady("An engine of the model does not respond.", retry_after_s=2)
    return json_response({"name": model.model_id, "ready": True})


@_model_route(
    "POST",
    "/infer",
    "Classify images by {}",
    responses={
        200: describe_response(InferResponse),
        **v2_error_responses(400, 404, 408, 413, 415, 422, 429, 503, 504),
    },
    openapi_extra={"requestBody": INFER_BODY},
)
async def infer(request: Request, state: StateDep, model_id: str, version: str | None = None) -> Response:
    """Send encoded images as the input `image`, in base64 in the JSON or as bytes behind it, or `pixels`.

    The output `scores` has a probability for each class. One bad image fails the request, because the protocol has no
    partial responses.
    """
    received_at_s = time.perf_counter()
    header_length = request.headers.get(LENGTH_HEADER)
    # Its bodies are as large as JSON may be, whatever their type says.
    async with state.read_body(request, model_id, "application/json", commit=version) as body:
        with state.registry.acquire(model_id, version) as model:
            model.check_supports(Classification)
            num_json = json_length(header_length, len(body))
            infer_request = await parse_body(request, state, num_json, _parse, body, header_length, model, state)
            task = Classification(len(model.info.labels))
            work = model.run(task, infer_request.images, received_at_s=received_at_s)
            results = await cancel_on_disconnect(request.receive, work)
    state.record_metrics(model, results)
    return _infer_response(model, infer_request, results)


def _parse(
    body: Buffer,
    header_length: str | None,
    model: ServedModel[Any, Any],
    state: AppState,
    mark_counts: MarkCounts | None,
) -> InferRequest:
    infer_request = parse_infer_request(
        body,
        header_length,
        image_shape=(model.info.num_channels, model.info.height_px, model.info.width_px),
        max_images=state.limits.max_images,
        mark_counts=mark_counts,
    )
    for image in infer_request.images:
        if isinstance(image, bytes) and isinstance(refusal := check_image_size(image, state.limits), EcaHubError):
            raise refusal
    return infer_request


def _infer_response(
    model: ServedModel[Any, Any], asked: InferRequest, results: Sequence[ImageResult[Any] | EcaHubError]
) -> Response:
    ranked = []
    for result in results:
        if isinstance(result, EcaHubError):
            raise result
        ranked.append(result.value)
    if asked.num_classes:
        words = [[f"{one.score:.6f}:{one.index}:{one.label}" for one in row[: asked.num_classes]] for row in ranked]
        output, raw = classes_output(words, binary=asked.wants_binary)
    else:
        scores = [[one.score for one in sorted(row, key=lambda one: one.index)] for row in ranked]
        output, raw = scores_output(scores, binary=asked.wants_binary)
    document: dict[str, Any] = {"model_name": model.model_id, "model_version": model.info.revision}
    if asked.request_id:
        document["id"] = asked.request_id
    document["outputs"] = [output]
    if not asked.wants_binary:
        return json_response(document)
    head = json.dumps(document, separators=(",", ":")).encode()
    return Response(head + raw, headers={LENGTH_HEADER: str(len(head))}, media_type="application/octet-stream")


# After the other routes below a model, because their paths are longer.
@_model_route(
    "GET",
    "",
    "Describe {}",
    responses={200: describe_response(V2Model), **v2_error_responses(404, 422, 503)},
)
async def describe_model(state: StateDep, model_id: str, version: str | None = None) -> Response:
    """Inputs and outputs. Instead of `image`, `pixels` may be sent: UINT8, N x C x height x width.

    C is 3, red first, or 1 for a model of gray images.
    """
    model = state.registry.find(model_id, version)
    model.check_supports(Classification)
    info = model.info
    return json_response(
        {
            "name": model.model_id,
            "versions": [info.revision],
            "platform": "pytorch",
            "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, len(info.labels)]}],
        }
    )
