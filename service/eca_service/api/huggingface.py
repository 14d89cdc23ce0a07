"""POST /models/{model_id}, the shape of Hugging Face: what comes back depends on what the model is for."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from eca_hub import EcaHubError
from eca_service.api.images import parse_body, server_timing
from eca_service.api.schemas import HF_BODY, HFObject, HFOutput, error_responses, image_responses
from eca_service.errors import InvalidRequest
from eca_service.http.body import cancel_on_disconnect
from eca_service.http.dependencies import StateDep, reject_parameters, require_api_key
from eca_service.http.responses import json_response
from eca_service.http.strict_json import HFParameters
from eca_service.http.uploads import num_json_bytes, parse_hf_request
from eca_service.inference.tasks import Classification, ObjectDetection, Task
from eca_service.inference.types import ModelInfo

router = APIRouter(dependencies=[Depends(require_api_key), Depends(reject_parameters)], responses=error_responses(401))


@dataclass(frozen=True)
class _Shape:
    """How a task is asked for and answered."""

    parameters: frozenset[str]
    """Names of the options that it has."""
    task_of: Callable[[HFParameters, ModelInfo], Task[Any]]
    """Makes the task from the options."""
    describe: Callable[[Any], dict[str, Any]]
    """Maps one of the results to its fields."""


def _classification(parameters: HFParameters, info: ModelInfo) -> Classification:
    # More classes than there are means all of them, as in Hugging Face's pipelines.
    top_k = None if parameters.top_k is None else min(parameters.top_k, len(info.labels))
    return Classification(top_k, parameters.function_to_apply)


def _detection(parameters: HFParameters, info: ModelInfo) -> ObjectDetection:
    # A threshold below the model's own limit means all that it returns.
    threshold = None if parameters.threshold is None else max(parameters.threshold, info.min_score)
    return ObjectDetection(threshold, masks="none")


def _box(detection: Any) -> dict[str, int]:
    return dict(zip(("xmin", "ymin", "xmax", "ymax"), map(round, detection.box), strict=True))


_SHAPES = {
    Classification.name: _Shape(
        frozenset({"top_k", "function_to_apply"}),
        _classification,
        lambda one: {"label": one.label, "score": one.score},
    ),
    ObjectDetection.name: _Shape(
        frozenset({"threshold"}),
        _detection,
        lambda one: {"label": one.detection.label, "score": one.detection.score, "box": _box(one.detection)},
    ),
}
"""Name of the first task of a model to its shape."""


@router.post(
    "/models/{model_id:path}",
    summary="Classify one image or find its objects, in Hugging Face's shape",
    response_model=None,
    responses=image_responses(list[HFOutput] | list[HFObject]),
    openapi_extra={"requestBody": HF_BODY},
)
async def infer_hf(request: Request, state: StateDep, model_id: str) -> Response:
    """Send the bytes of an image, or JSON with options, as `huggingface_hub.InferenceClient(model=URL)` does.

    A classifier returns classes (`image_classification`), a detector boxes in whole pixels (`object_detection`).
    """
    received_at_s = time.perf_counter()
    content_type = request.headers.get("content-type", "")
    async with state.read_body(request, model_id, content_type) as body:
        num_json = num_json_bytes(body, content_type)
        hf_request = await parse_body(request, state, num_json, parse_hf_request, body, content_type, state.limits)
        with state.registry.acquire(model_id) as model:
            shape = _SHAPES[model.info.tasks[0]]
            _check_parameters(hf_request.parameters, shape, model.info)
            task = shape.task_of(hf_request.parameters, model.info)
            work = model.run(task, [hf_request.image], received_at_s=received_at_s)
            (result,) = await cancel_on_disconnect(request.receive, work)
    state.record_metrics(model, [result])
    if isinstance(result, EcaHubError):
        raise result
    return json_response(
        [shape.describe(one) for one in result.value], headers={"server-timing": server_timing(result)}
    )


def _check_parameters(parameters: HFParameters, shape: _Shape, info: ModelInfo) -> None:
    foreign = sorted(parameters.model_dump(exclude_none=True).keys() - shape.parameters)
    if foreign:
        raise InvalidRequest(
            f"{info.model_id} can {info.tasks[0]}, for which there is no parameter {foreign[0]}.",
            hint=f"Its parameters are {', '.join(sorted(shape.parameters))}.",
        )
