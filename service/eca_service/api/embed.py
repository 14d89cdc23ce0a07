"""POST /v1/embed: the pooled features of images, for search and clustering."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from eca_service.api.schemas import CLASSIFY_BODY, ErrorResponse, TimingInfo, error_responses
from eca_service.api.v1 import images_response, parse_body
from eca_service.http.body import cancel_on_disconnect
from eca_service.http.dependencies import StateDep, require_api_key
from eca_service.http.responses import request_id_of
from eca_service.http.uploads import parse_images
from eca_service.inference.tasks import Embedding

router = APIRouter(dependencies=[Depends(require_api_key)], responses=error_responses(401))


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class EmbedQuery(_Schema):
    """Options of an embedding."""

    model: Annotated[
        str | None, Field(max_length=512, description="Id of a loaded model; may be omitted when only one is loaded.")
    ] = None
    normalize: Annotated[bool, Field(description="Whether to scale each embedding to an L2 norm of 1.")] = False


class EmbeddingInfo(_Schema):
    """The result for one image."""

    embedding: Annotated[
        list[float], Field(description="Features in front of the network's last layer.", examples=[[0.12, 0.0, 1.7]])
    ]
    timing_ms: TimingInfo
    batch_size: Annotated[int, Field(description="Images in the same batch.", examples=[7])]


class EmbedResponse(EmbeddingInfo):
    """Response to a request with one image."""

    model: Annotated[str, Field(description="Id of the model.", examples=["acme/eca_resnet50"])]
    revision: Annotated[str, Field(description="Commit of the model, 40 hex digits.", examples=["3f9c1d2" + "0" * 33])]


class EmbedBatchResponse(_Schema):
    """Response to a request with several images, in their order; a bad image fails alone."""

    model: Annotated[str, Field(description="Id of the model.", examples=["acme/eca_resnet50"])]
    revision: Annotated[str, Field(description="Commit of the model, 40 hex digits.", examples=["3f9c1d2" + "0" * 33])]
    results: list[EmbeddingInfo | ErrorResponse]


@router.post(
    "/v1/embed",
    summary="Embed one or more images",
    response_model=None,
    responses={
        200: {"model": EmbedResponse | EmbedBatchResponse},
        **error_responses(400, 404, 408, 413, 415, 422, 429, 503, 504),
    },
    openapi_extra={"requestBody": CLASSIFY_BODY},
)
async def embed(request: Request, state: StateDep, query: Annotated[EmbedQuery, Query()]) -> Response:
    """Send images as for /v1/classify. The embedding is what the network's last layer reads: similar images are close.

    With `normalize=true` the dot product of two embeddings is their cosine similarity.
    """
    received_at_s = time.perf_counter()
    content_type = request.headers.get("content-type", "")
    async with state.read_body(request, query.model, content_type) as body:
        images = await parse_body(parse_images, body, content_type, state.limits)
        with state.registry.acquire(query.model) as model:
            work = model.run(Embedding(query.normalize), images, received_at_s=received_at_s)
            results = await cancel_on_disconnect(request.receive, work)
    state.record_metrics(model, results)
    return images_response(model, results, request_id_of(request), _embedding)


def _embedding(features: list[float]) -> dict[str, Any]:
    return {"embedding": features}
