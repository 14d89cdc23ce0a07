"""The addresses of the service: reads requests, asks a running model, writes answers.

Never sees a tensor or a pixel.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar, TypeVarTuple

from fastapi import APIRouter, Depends, Query, Request, Response

from eca_hub import EcaHubError
from eca_service.api.schemas import (
    CLASSIFY_BODY,
    TASK_BODY,
    Classification,
    Classifications,
    ClassifyQuery,
    ExplainAnswer,
    ExplainQuery,
    TaskAnswer,
    refusals,
)
from eca_service.errors import InvalidRequest
from eca_service.http.body import unless_gone
from eca_service.http.dependencies import TheHouse, check_key
from eca_service.http.responses import error_entry, json_answer, request_id_of
from eca_service.http.uploads import pictures_in, task_in
from eca_service.inference import tasks
from eca_service.inference.model import ServedModel
from eca_service.inference.types import ImageResult

Found = TypeVar("Found")
Rest = TypeVarTuple("Rest")

_LARGE_BODY_BYTES = 2**20

router = APIRouter(dependencies=[Depends(check_key)], responses=refusals(401))
"""What needs a key, when there are keys."""


@router.post(
    "/v1/classify",
    summary="Name what is in one or more pictures",
    response_model=None,
    responses={
        200: {"model": Classification | Classifications},
        **refusals(400, 404, 408, 413, 415, 422, 429, 503, 504),
    },
    openapi_extra={"requestBody": CLASSIFY_BODY},
)
async def classify(request: Request, house: TheHouse, query: Annotated[ClassifyQuery, Query()]) -> Response:
    """Send the bytes of a picture as they are, files named `file` in a form, or base64 in JSON.

    One picture gives one answer. Several give `results` in their order, where a bad picture fails alone; only if all
    are bad is the status an error.
    """
    received_at_s = time.perf_counter()
    content_type = request.headers.get("content-type", "")
    async with house.read(request, query.model, max_bytes=house.limits.max_body_bytes(content_type)) as body:
        pictures = await unpack(pictures_in, body, content_type, house.limits)
        # Found anew, because another commit may have taken its place while the body came.
        with house.registry.acquire(query.model) as model:
            outcomes = await unless_gone(
                request.receive, model.run(tasks.Classification(query.top_k), pictures, received_at_s=received_at_s)
            )
    house.measure(model, outcomes)
    return _answer(model, outcomes, request_id_of(request))


async def unpack(find: Callable[[bytes, *Rest], Found], body: bytes, *args: *Rest) -> Found:
    """Find what is in a body; in a large one beside the event loop, which others need meanwhile."""
    if len(body) > _LARGE_BODY_BYTES:
        return await asyncio.to_thread(find, body, *args)
    return find(body, *args)


def _answer(
    model: ServedModel[Any, Any], outcomes: Sequence[ImageResult[Any] | EcaHubError], request_id: str
) -> Response:
    answered = [outcome for outcome in outcomes if isinstance(outcome, ImageResult)]
    if not answered:
        raise _first_error(outcomes)
    head = {"model": model.info.model_id, "revision": model.info.revision}
    if len(outcomes) == 1:
        return json_answer(head | _picture_answer(answered[0]), headers={"server-timing": _server_timing(answered[0])})
    results = [
        _picture_answer(outcome) if isinstance(outcome, ImageResult) else error_entry(outcome, request_id)
        for outcome in outcomes
    ]
    slowest = max(answered, key=lambda outcome: outcome.total_ms)
    return json_answer(head | {"results": results}, headers={"server-timing": _server_timing(slowest)})


def _first_error(outcomes: Sequence[ImageResult[Any] | EcaHubError]) -> EcaHubError:
    return next(outcome for outcome in outcomes if isinstance(outcome, EcaHubError))


def _picture_answer(outcome: ImageResult[Any]) -> dict[str, Any]:
    return {
        "predictions": [{"label": one.label, "index": one.index, "score": one.score} for one in outcome.value],
        "timing_ms": {name: round(value, 3) for name, value in _timings(outcome).items()},
        "batch_size": outcome.batch_size,
    }


def _timings(outcome: ImageResult[Any]) -> dict[str, float]:
    return {
        "decode": outcome.decode_ms,
        "queue": outcome.queue_ms,
        "engine": outcome.engine_ms,
        "total": outcome.total_ms,
    }


def _server_timing(outcome: ImageResult[Any]) -> str:
    return ", ".join(f"{name};dur={value:.1f}" for name, value in _timings(outcome).items())


@router.post(
    "/models/{owner}/{name}",
    summary="The same in Hugging Face's shape",
    response_model=None,
    responses={200: {"model": list[TaskAnswer]}, **refusals(400, 404, 408, 413, 415, 422, 429, 503, 504)},
    openapi_extra={"requestBody": TASK_BODY},
)
async def classify_as_task(request: Request, house: TheHouse, owner: str, name: str) -> Response:
    """Send the bytes of a picture, or JSON with options, as `huggingface_hub.InferenceClient(model=<this>)` does."""
    received_at_s = time.perf_counter()
    model_id = f"{owner}/{name}"
    content_type = request.headers.get("content-type", "")
    async with house.read(request, model_id, max_bytes=house.limits.max_body_bytes(content_type)) as body:
        task = await unpack(task_in, body, content_type, house.limits)
        with house.registry.acquire(model_id) as model:
            # More classes than there are means all of them, as in Hugging Face's pipelines.
            top_k = None if task.top_k is None else min(task.top_k, len(model.info.labels))
            work = model.run(tasks.Classification(top_k, task.activation), [task.picture], received_at_s=received_at_s)
            (outcome,) = await unless_gone(request.receive, work)
    house.measure(model, [outcome])
    if isinstance(outcome, EcaHubError):
        raise outcome
    answer = [{"label": one.label, "score": one.score} for one in outcome.value]
    return json_answer(answer, headers={"server-timing": _server_timing(outcome)})


@router.post(
    "/v1/explain",
    summary="Show what a network looked at",
    response_model=None,
    responses={200: {"model": ExplainAnswer}, **refusals(400, 404, 408, 413, 415, 422, 429, 503, 504)},
    openapi_extra={"requestBody": CLASSIFY_BODY},
)
async def explain(request: Request, house: TheHouse, query: Annotated[ExplainQuery, Query()]) -> Response:
    """Send one picture. The answer has the gates of every attention and a map of where the evidence lies (Grad-CAM).

    The map covers what the network sees: the middle of the picture after resize and crop. Costs several
    classifications; the operator switches it on with --explain.
    """
    content_type = request.headers.get("content-type", "")
    async with house.read(request, query.model, max_bytes=house.limits.max_body_bytes(content_type)) as body:
        pictures = await unpack(pictures_in, body, content_type, house.limits)
        if len(pictures) != 1:
            raise InvalidRequest("One picture is explained at a time.")
        if isinstance(pictures[0], EcaHubError):
            raise pictures[0]
        with house.registry.acquire(query.model) as model:
            explanation = await unless_gone(request.receive, model.explain(pictures[0], query.class_index))
    return json_answer(_explanation(model, explanation, with_values=query.gates))


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
    named = explanation.prediction
    return {
        "model": model.info.model_id,
        "revision": model.info.revision,
        "prediction": {"label": named.label, "index": named.index, "score": named.score},
        "gates": gates,
        "heat": [[round(value, 4) for value in row] for row in explanation.heat],
    }
