"""Liveness, readiness, metrics and the documentation page."""

from collections.abc import Callable, Iterator
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from eca_service.api.docs import ApiDescription
from eca_service.api.schemas import HealthResponse, describe_response, error_responses
from eca_service.errors import NotReady
from eca_service.http.body import BodyReader
from eca_service.http.dependencies import StateDep, reject_parameters, require_api_key
from eca_service.http.responses import json_response
from eca_service.inference.model import ServedModel
from eca_service.metrics import CONTENT_TYPE
from eca_service.models.registry import Registry

router = APIRouter()


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """Show this API as a page."""
    description: ApiDescription = request.app.state.description
    return HTMLResponse(description.to_html(str(request.base_url).rstrip("/")))


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> Response:
    """Describe this API for programs."""
    description: ApiDescription = request.app.state.description
    root_path = str(request.scope.get("root_path", "")).rstrip("/")
    return Response(description.to_json(root_path), media_type="application/json")


@router.get(
    "/healthz",
    summary="Is the process alive",
    response_model=None,
    dependencies=[Depends(reject_parameters)],
    responses={200: describe_response(HealthResponse), **error_responses(422)},
)
async def healthz() -> Response:
    """Returns 200 as long as the process responds, whatever the state of its models."""
    return json_response({"status": "ok"})


@router.get(
    "/readyz",
    summary="Is the service ready",
    response_model=None,
    dependencies=[Depends(reject_parameters)],
    responses={200: describe_response(HealthResponse), **error_responses(422, 503)},
)
async def readyz(state: StateDep) -> Response:
    """Returns 200 when every model is loaded, optimized and warm and the process is not draining."""
    if state.registry.is_draining:
        raise NotReady("The service is shutting down.", retry_after_s=5)
    if not state.registry.entries:
        raise NotReady("No model is loaded.", retry_after_s=2)
    if not state.registry.is_ready:
        raise NotReady(f"Waiting for {', '.join(state.registry.pending()) or 'an engine'}.", retry_after_s=2)
    return json_response({"status": "ready"})


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    dependencies=[Depends(require_api_key), Depends(reject_parameters)],
    response_class=PlainTextResponse,
    responses=error_responses(401, 422),
)
async def metrics(state: StateDep) -> PlainTextResponse:
    """Needs a key where keys are required."""
    return PlainTextResponse(state.metrics.render(), media_type=CONTENT_TYPE)


def measure(registry: Registry, bodies: BodyReader) -> Iterator[Metric]:
    """Measure what /metrics shows beside counters and histograms."""
    models = [entry.model for entry in registry.entries if entry.model]
    load_s = {entry.model: entry.load_s for entry in registry.entries if entry.model}
    yield GaugeMetricFamily("eca_models", "Models that are loaded or loading.", len(registry.entries))
    yield GaugeMetricFamily("eca_models_ready", "Models that are ready.", sum(model.is_healthy for model in models))
    yield GaugeMetricFamily("eca_weights_bytes", "Weights of all models.", registry.weights_bytes)
    yield GaugeMetricFamily(
        "eca_weights_bytes_limit", "Limit of eca_weights_bytes; 0: none.", registry.max_weights_bytes
    )
    yield GaugeMetricFamily("eca_body_bytes", "Memory of request bodies.", bodies.total_bytes)
    yield GaugeMetricFamily("eca_body_bytes_limit", "Limit of eca_body_bytes.", bodies.max_total_bytes)
    decode_wait = GaugeMetricFamily(
        "eca_decode_wait_seconds", "Expected wait of a new image for a decoder, by its cost.", labels=["lane"]
    )
    for model in models[:1]:
        for lane, wait_s in model.decode_waits_s().items():
            decode_wait.add_metric([lane], wait_s)
        yield GaugeMetricFamily(
            "eca_decode_wait_seconds_limit", "Limit of eca_decode_wait_seconds.", model.batcher.max_queue_delay_s
        )
    yield decode_wait
    info = GaugeMetricFamily("eca_model_info", "1 for each model that is loaded.", labels=["model", "revision"])
    for model in models:
        info.add_metric([model.model_id, model.info.revision], 1)
    yield info

    def gauge(name: str, about: str, value: Callable[[ServedModel[Any, Any]], float]) -> Metric:
        family = GaugeMetricFamily(name, about, labels=["model"])
        for model in models:
            family.add_metric([model.model_id], value(model))
        return family

    yield gauge("eca_model_load_seconds", "How long the last load of a model took.", lambda model: load_s[model])
    yield gauge(
        "eca_parity_rejected_formats",
        "Faster number formats that failed the parity check of a model; it runs in a slower one.",
        lambda model: len(model.info.parity.rejected),
    )
    yield gauge(
        "eca_images_in_flight", "Images being decoded, queued or in an engine.", lambda model: model.batcher.num_items
    )
    yield gauge("eca_images_in_flight_limit", "Limit of eca_images_in_flight.", lambda model: model.batcher.max_items)
    yield gauge("eca_wait_seconds", "Expected wait of a new image.", lambda model: model.batcher.expected_wait_s)
    yield gauge("eca_wait_seconds_limit", "Limit of eca_wait_seconds.", lambda model: model.batcher.max_queue_delay_s)
    yield gauge("eca_explanations_in_flight", "Explanations in flight.", lambda model: model.num_explanations)
    yield gauge(
        "eca_explanations_in_flight_limit",
        "Limit of eca_explanations_in_flight; 0 without --explain.",
        lambda model: model.max_explanations,
    )
    yield gauge("eca_queue_depth", "Decoded images that wait for an engine.", lambda model: model.batcher.queue_depth)
    yield gauge(
        "eca_last_batch_age_seconds", "Time since the last batch ended.", lambda model: model.batcher.last_batch_age_s
    )
    cancelled = CounterMetricFamily(
        "eca_images_cancelled",
        "Images that were not run because their client had disconnected or their deadline had passed.",
        labels=["model"],
    )
    for model in models:
        cancelled.add_metric([model.model_id], model.batcher.num_cancelled)
    yield cancelled
