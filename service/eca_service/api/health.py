"""Whether the service lives, whether it is ready, what it counts, and how it is used. Never sees a picture."""

from collections.abc import Iterator, Mapping

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse

from eca_service.api.docs import render_docs
from eca_service.api.schemas import Health, refusals
from eca_service.errors import NotReady
from eca_service.http.dependencies import House, TheHouse, check_key
from eca_service.http.responses import json_answer

router = APIRouter()


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """This API for people."""
    return HTMLResponse(render_docs(request.app.openapi(), str(request.base_url).rstrip("/")))


# Some load balancers ask for the head alone.
@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="Is the process alive", response_model=None, responses={200: {"model": Health}})
async def healthz() -> Response:
    """Answers as long as the process does, whatever the models do."""
    return json_answer({"status": "ok"})


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz",
    summary="Can pictures be classified",
    response_model=None,
    responses={200: {"model": Health}, **refusals(503)},
)
async def readyz(house: TheHouse) -> Response:
    """Green when every model is loaded and warm and the process is not about to end."""
    if house.registry.is_draining:
        raise NotReady("The service is shutting down.", retry_after_s=5)
    if not house.registry.is_ready:
        raise NotReady(f"Waiting for {', '.join(house.registry.pending()) or 'an engine'}.", retry_after_s=2)
    return json_answer({"status": "ready"})


@router.get(
    "/metrics",
    summary="What the service counts",
    dependencies=[Depends(check_key)],
    response_class=PlainTextResponse,
    responses=refusals(401),
)
async def metrics(house: TheHouse) -> PlainTextResponse:
    """For Prometheus; needs a key when there are keys."""
    return PlainTextResponse(house.metrics.render(_gauges(house)), media_type="text/plain; version=0.0.4")


def _gauges(house: House) -> Iterator[tuple[str, str, Mapping[str, str], float]]:
    entries = house.registry.entries
    models = [(entry.model.info.model_id, entry.model.batcher) for entry in entries if entry.model]
    yield "eca_models", "Models that were asked for.", {}, len(entries)
    yield "eca_models_ready", "Models that answer.", {}, sum(entry.model.is_healthy for entry in entries if entry.model)
    yield "eca_weights_bytes", "Size of the weights of all models.", {}, house.registry.weights_bytes
    yield "eca_weights_bytes_bound", "Size that they may have; 0 is no bound.", {}, house.registry.max_weights_bytes
    yield "eca_body_bytes", "Bytes of requests in memory.", {}, house.bodies.total_bytes
    yield "eca_body_bytes_bound", "Bytes of requests that may be.", {}, house.bodies.max_total_bytes
    for name, batcher in models:
        yield (
            "eca_images",
            "Pictures in the house: decoding, waiting or in an engine.",
            {"model": name},
            batcher.num_items,
        )
    for name, batcher in models:
        yield "eca_images_bound", "Pictures that may be.", {"model": name}, batcher.max_items
    for name, batcher in models:
        yield "eca_wait_seconds", "What the engines need for them.", {"model": name}, batcher.expected_wait_s
    for name, batcher in models:
        yield "eca_wait_seconds_bound", "What they may need.", {"model": name}, batcher.max_queue_delay_s
    for name, batcher in models:
        yield "eca_queue_depth", "Decoded pictures that wait for an engine.", {"model": name}, batcher.queue_depth
    for name, batcher in models:
        yield "eca_gone_images", "Pictures that were not run, as nobody waited.", {"model": name}, batcher.num_cancelled
    for name, batcher in models:
        yield "eca_last_batch_age_seconds", "Since the last batch ended.", {"model": name}, batcher.last_batch_age_s
