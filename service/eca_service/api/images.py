"""Run a task on the images of a request: the part that the routes of all tasks share."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, TypeVarTuple

from fastapi import Request, Response

from eca_hub import EcaHubError
from eca_service.http.body import cancel_on_disconnect
from eca_service.http.dependencies import AppState
from eca_service.http.responses import error_body, json_response, request_id_of
from eca_service.http.strict_json import Buffer, MarkCounts, count_marks, num_elements_of
from eca_service.http.uploads import num_json_bytes, parse_images
from eca_service.inference.model import ServedModel
from eca_service.inference.tasks import Task
from eca_service.inference.types import ImageResult
from eca_service.settings import JSON_COPIES

Parsed = TypeVar("Parsed")
Rest = TypeVarTuple("Rest")
Value = TypeVar("Value")

_LARGE_BODY_BYTES = 2**20
_MANY_ELEMENTS = 2_000
"""Parsing so many takes about a millisecond."""
_MAX_ELEMENTS = 1_100_000
"""A body with more is refused before it is parsed."""


async def respond(
    request: Request,
    state: AppState,
    model_id: str | None,
    task: Task[Value],
    describe: Callable[[Value], dict[str, Any]],
) -> Response:
    """Run a task on each image of a request.

    One image gives one result. Several give `results` in their order, where a bad image fails alone; the status is an
    error only if all of them are bad.

    Args:
        request: The request.
        state: The state of the app.
        model_id: Id of the model; None means the only one.
        task: What is asked for.
        describe: Maps the value of a result to fields of the response.
    """
    received_at_s = time.perf_counter()
    content_type = request.headers.get("content-type", "")
    async with state.read_body(request, model_id, content_type) as body:
        num_json = num_json_bytes(body, content_type)
        images = await parse_body(request, state, num_json, parse_images, body, content_type, state.limits)
        # Looked up again: another commit may have replaced the model while the body arrived.
        with state.registry.acquire(model_id) as model:
            work = model.run(task, images, received_at_s=received_at_s)
            results = await cancel_on_disconnect(request.receive, work)
    state.record_metrics(model, results)
    return _images_response(model, results, request_id_of(request), describe)


async def parse_body(
    request: Request,
    state: AppState,
    num_json: int,
    parse: Callable[[Buffer, *Rest, MarkCounts | None], Parsed],
    body: Buffer,
    *args: *Rest,
) -> Parsed:
    """Parse a body; in a thread if it is large or has many elements, so that the event loop stays free.

    Args:
        request: The request.
        state: The state of the app.
        num_json: How many bytes at its front are JSON.
        parse: Called with the body, `args`, and the counts of the marks of its JSON.
        body: All of it.
        args: What else the parser needs.

    Raises:
        BodyTooLarge, Overloaded, DeadlineExceeded, ClientDisconnected: as for `BodyReader.parse_elements`.
    """
    mark_counts: MarkCounts | None = None
    if num_json > _LARGE_BODY_BYTES:
        mark_counts = await asyncio.to_thread(count_marks, body, num_json)
    elif num_json:
        mark_counts = count_marks(body, num_json)
    num_elements = min(num_elements_of(mark_counts), _MAX_ELEMENTS) if mark_counts else 0
    if num_elements > _MANY_ELEMENTS:
        async with state.bodies.parse_elements(request.receive, JSON_COPIES * len(body), num_elements):
            return await asyncio.to_thread(parse, body, *args, mark_counts)
    if len(body) > _LARGE_BODY_BYTES:
        return await asyncio.to_thread(parse, body, *args, mark_counts)
    return parse(body, *args, mark_counts)


def _images_response(
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

    common = {"model": model.model_id, "revision": model.info.revision}
    if len(results) == 1:
        headers = {"server-timing": server_timing(successful[0])}
        return json_response(common | body_of(successful[0]), headers=headers)
    bodies = [
        body_of(result) if isinstance(result, ImageResult) else error_body(result, request_id) for result in results
    ]
    slowest = max(successful, key=lambda result: result.total_ms)
    return json_response(common | {"results": bodies}, headers={"server-timing": server_timing(slowest)})


def _timings(result: ImageResult[Any]) -> dict[str, float]:
    return {
        "decode": result.decode_ms,
        "queue": result.queue_ms,
        "engine": result.engine_ms,
        "total": result.total_ms,
    }


def server_timing(result: ImageResult[Any]) -> str:
    """Return the milliseconds of each step, as the Server-Timing header has them."""
    return ", ".join(f"{name};dur={value:.1f}" for name, value in _timings(result).items())
