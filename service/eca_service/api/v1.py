"""POST /v1/classify and POST /v1/explain."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.routing import Match, Route
from starlette.types import Scope

from eca_hub import EcaHubError
from eca_service.api.images import parse_body, respond
from eca_service.api.schemas import (
    IMAGES_BODY,
    BatchResponse,
    ClassifyQuery,
    ClassifyResponse,
    ExplainQuery,
    ExplainResponse,
    error_responses,
    image_responses,
)
from eca_service.errors import InvalidRequest, Overloaded
from eca_service.http.body import cancel_on_disconnect
from eca_service.http.dependencies import AppState, StateDep, get_state, reject_repeated_parameters, require_api_key
from eca_service.http.responses import json_response, route_path
from eca_service.http.uploads import num_json_bytes, parse_images
from eca_service.inference.model import ServedModel
from eca_service.inference.tasks import Classification

if TYPE_CHECKING:
    from eca_hub import Prediction

router = APIRouter(
    dependencies=[Depends(require_api_key), Depends(reject_repeated_parameters)], responses=error_responses(401)
)


@router.post(
    "/v1/classify",
    summary="Classify one or more images",
    response_model=None,
    responses=image_responses(ClassifyResponse | BatchResponse),
    openapi_extra={"requestBody": IMAGES_BODY},
)
async def classify(request: Request, state: StateDep, query: Annotated[ClassifyQuery, Query()]) -> Response:
    """Send the bytes of an image, files named `file` in a form, or base64 in JSON.

    One image gives one result. Several give `results` in their order, where a bad image fails alone; the status is an
    error only if all of them are bad.
    """
    return await respond(request, state, query.model, Classification(query.top_k), _predictions)


def _predictions(predictions: "Sequence[Prediction]") -> dict[str, Any]:
    return {"predictions": [{"label": one.label, "index": one.index, "score": one.score} for one in predictions]}


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


def refuse_early(state: AppState, scope: Scope) -> EcaHubError | None:
    """Return the error of a POST to /v1/classify that the only model has no capacity for, before it is routed.

    Under overload most requests are refused, in time that the engines need, and routing one takes longer than the
    refusal itself. What has another error is left to the route.
    """
    if scope["method"] != "POST" or scope["query_string"] or route_path(scope) != plain_classify_route.path:
        return None
    try:
        state.check_api_key(scope["headers"])
        state.registry.find(None).batcher.check_capacity()
    except Overloaded as error:
        scope["route"] = plain_classify_route
        state.metrics.rejected.labels(error.code).inc()
        return error
    except EcaHubError:
        pass
    return None


@router.post(
    "/v1/explain",
    summary="Explain the classification of an image",
    response_model=None,
    responses=image_responses(ExplainResponse),
    openapi_extra={"requestBody": IMAGES_BODY},
)
async def explain(request: Request, state: StateDep, query: Annotated[ExplainQuery, Query()]) -> Response:
    """Send one image. The response has the gates of every attention and a Grad-CAM map of the evidence.

    The map covers what the network sees: the center of the image after resize and crop. Costs several classifications;
    the operator enables it with --explain.
    """
    content_type = request.headers.get("content-type", "")
    async with state.read_body(request, query.model, content_type) as body:
        num_json = num_json_bytes(body, content_type)
        images = await parse_body(request, state, num_json, parse_images, body, content_type, state.limits)
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
            "name": gate.name,
            "stage": gate.stage,
            "num_channels": len(gate.values),
            "mean": gate.mean,
            "std": gate.std,
            "min": min(gate.values),
            "max": max(gate.values),
        }
        | ({"values": [round(value, 5) for value in gate.values]} if with_values else {})
        for gate in explanation.gates
    ]
    prediction = explanation.prediction
    return {
        "model": model.model_id,
        "revision": model.info.revision,
        "prediction": {"label": prediction.label, "index": prediction.index, "score": prediction.score},
        "gates": gates,
        "heat": [[round(value, 4) for value in row] for row in explanation.heatmap],
    }
