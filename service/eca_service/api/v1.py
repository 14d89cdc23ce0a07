"""POST /v1/classify, POST /v1/explain and POST /models/{model_id}, the shape of Hugging Face."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, TypeVarTuple

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.routing import Match, Route
from starlette.types import Scope

from eca_hub import EcaHubError
from eca_service.api.schemas import (
    CLASSIFY_BODY,
    HF_BODY,
    BatchResponse,
    ClassifyQuery,
    ClassifyResponse,
    ExplainQuery,
    ExplainResponse,
    HFOutput,
    error_responses,
)
from eca_service.errors import InvalidRequest
from eca_service.http.body import cancel_on_disconnect
from eca_service.http.dependencies import StateDep, get_state, require_api_key
from eca_service.http.responses import error_body, json_response, request_id_of
from eca_service.http.strict_json import Buffer
from eca_service.http.uploads import parse_hf_request, parse_images
from eca_service.inference.model import ServedModel
from eca_service.inference.tasks import Classification
from eca_service.inference.types import ImageResult

if TYPE_CHECKING:
    from eca_hub import Prediction

Parsed = TypeVar("Parsed")
Rest = TypeVarTuple("Rest")

_LARGE_BODY_BYTES = 2**20

router = APIRouter(dependencies=[Depends(require_api_key)], responses=error_responses(401))


@router.post(
    "/v1/classify",
    summary="Classify one or more images",
    response_model=None,
    responses={
        200: {"model": ClassifyResponse | BatchResponse},
        **error_responses(400, 404, 408, 413, 415, 422, 429, 503, 504),
    },
    openapi_extra={"requestBody": CLASSIFY_BODY},
)
async def classify(request: Request, state: StateDep, query: Annotated[ClassifyQuery, Query()]) -> Response:
    """Send the bytes of an image, files named `file` in a form, or base64 in JSON.

    One image gives one result. Several give `results` in their order, where a bad image fails alone; the status is an
    error only if all of them are bad.
    """
    received_at_s = time.perf_counter()
    content_type = request.headers.get("content-type", "")
    async with state.read_body(request, query.model, content_type) as body:
        images = await parse_body(parse_images, body, content_type, state.limits)
        # Looked up again: another commit may have replaced the model while the body arrived.
        with state.registry.acquire(query.model) as model:
            work = model.run(Classification(query.top_k), images, received_at_s=received_at_s)
            results = await cancel_on_disconnect(request.receive, work)
    state.record_metrics(model, results)
    return images_response(model, results, request_id_of(request), _predictions)


async def parse_body(parse: Callable[[Buffer, *Rest], Parsed], body: Buffer, *args: *Rest) -> Parsed:
    """Parse a body; a large one in a thread, so that the event loop stays free."""
    if len(body) > _LARGE_BODY_BYTES:
        return await asyncio.to_thread(parse, body, *args)
    return parse(body, *args)


def images_response(
    model: ServedModel[Any, Any],
    results: Sequence[ImageResult[Any] | EcaHubError],
    request_id: str,
    describe: Callable[[Any], dict[str, Any]],
) -> Response:
    """Respond with one result, or with `results` for several images.

    Args:
        model: The model that was run.
        results: The result for each image.
        request_id: Id of the request, for the errors.
        describe: Maps the value of a result to fields of the response.

    Raises:
        EcaHubError: the first error, if no image has a result.
    """
    successful = [result for result in results if isinstance(result, ImageResult)]
    if not successful:
        raise next(result for result in results if isinstance(result, EcaHubError))

    def body_of(result: ImageResult[Any]) -> dict[str, Any]:
        timing_ms = {name: round(value, 3) for name, value in _timings(result).items()}
        return {**describe(result.value), "timing_ms": timing_ms, "batch_size": result.batch_size}

    common = {"model": model.info.model_id, "revision": model.info.revision}
    if len(results) == 1:
        headers = {"server-timing": _server_timing(successful[0])}
        return json_response(common | body_of(successful[0]), headers=headers)
    bodies = [
        body_of(result) if isinstance(result, ImageResult) else error_body(result, request_id) for result in results
    ]
    slowest = max(successful, key=lambda result: result.total_ms)
    return json_response(common | {"results": bodies}, headers={"server-timing": _server_timing(slowest)})


def _predictions(predictions: "Sequence[Prediction]") -> dict[str, Any]:
    return {"predictions": [{"label": one.label, "index": one.index, "score": one.score} for one in predictions]}


def _timings(result: ImageResult[Any]) -> dict[str, float]:
    return {
        "decode": result.decode_ms,
        "queue": result.queue_ms,
        "engine": result.engine_ms,
        "total": result.total_ms,
    }


def _server_timing(result: ImageResult[Any]) -> str:
    return ", ".join(f"{name};dur={value:.1f}" for name, value in _timings(result).items())


async def _classify_without_query(request: Request) -> Response:
    await require_api_key(request)
    return await classify(request, await get_state(request), ClassifyQuery())


class _NoQueryRoute(Route):
    """A route that matches requests without a query string."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Leave requests with a query string to FastAPI."""
        if scope.get("query_string"):
            return Match.NONE, {}
        match, child_scope = super().matches(scope)
        # Another method is FastAPI's to refuse.
        return (match, {**child_scope, "route": self}) if match is Match.FULL else (Match.NONE, {})


plain_classify_route = _NoQueryRoute("/v1/classify", _classify_without_query, methods=["POST"], include_in_schema=False)
"""POST /v1/classify without FastAPI's handling of dependencies and parameters; see `create_app`."""


@router.post(
    "/models/{model_id:path}",
    summary="Classify one image, in Hugging Face's shape",
    response_model=None,
    responses={200: {"model": list[HFOutput]}, **error_responses(400, 404, 408, 413, 415, 422, 429, 503, 504)},
    openapi_extra={"requestBody": HF_BODY},
)
async def classify_hf(request: Request, state: StateDep, model_id: str) -> Response:
    """Send the bytes of an image, or JSON with options, as `huggingface_hub.InferenceClient(model=URL)` does."""
    received_at_s = time.perf_counter()
    content_type = request.headers.get("content-type", "")
    async with state.read_body(request, model_id, content_type) as body:
        hf_request = await parse_body(parse_hf_request, body, content_type, state.limits)
        with state.registry.acquire(model_id) as model:
            # More classes than there are means all of them, as in Hugging Face's pipelines.
            top_k = None if hf_request.top_k is None else min(hf_request.top_k, len(model.info.labels))
            task = Classification(top_k, hf_request.activation)
            work = model.run(task, [hf_request.image], received_at_s=received_at_s)
            (result,) = await cancel_on_disconnect(request.receive, work)
    state.record_metrics(model, [result])
    if isinstance(result, EcaHubError):
        raise result
    predictions = [{"label": one.label, "score": one.score} for one in result.value]
    return json_response(predictions, headers={"server-timing": _server_timing(result)})


@router.post(
    "/v1/explain",
    summary="Explain the classification of an image",
    response_model=None,
    responses={200: {"model": ExplainResponse}, **error_responses(400, 404, 408, 413, 415, 422, 429, 503, 504)},
    openapi_extra={"requestBody": CLASSIFY_BODY},
)
async def explain(request: Request, state: StateDep, query: Annotated[ExplainQuery, Query()]) -> Response:
    """Send one image. The response has the gates of every attention and a Grad-CAM map of the evidence.

    The map covers what the network sees: the center of the image after resize and crop. Costs several classifications;
    the operator enables it with --explain.
    """
    content_type = request.headers.get("content-type", "")
    async with state.read_body(request, query.model, content_type) as body:
        images = await parse_body(parse_images, body, content_type, state.limits)
        if len(images) != 1:
            raise InvalidRequest("Only one image can be explained at a time.")
        if isinstance(images[0], EcaHubError):
            raise images[0]
        with state.registry.acquire(query.model) as model:
            explanation = await cancel_on_disconnect(request.receive, model.explain(images[0], query.class_index))
    return json_response(_explanation(model, explanation, with_values=query.gates))


def _explanation(model: ServedModel[Any, Any], explanation: Any, *, with_values: bool) -> dict[str, Any]:
    gates = [
        {
            "name": one.name,
            "stage": one.stage,
            "num_channels": len(one.values),
            "mean": one.mean,
            "std": one.std,
            "min": min(one.values),
            "max": max(one.values),
        }
        | ({"values": [round(value, 5) for value in one.values]} if with_values else {})
        for one in explanation.gates
    ]
    prediction = explanation.prediction
    return {
        "model": model.info.model_id,
        "revision": model.info.revision,
        "prediction": {"label": prediction.label, "index": prediction.index, "score": prediction.score},
        "gates": gates,
        "heat": [[round(value, 4) for value in row] for row in explanation.heatmap],
    }
