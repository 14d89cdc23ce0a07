"""POST /v1/embed: the pooled features of images, for search and clustering."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field

from eca_service.api.images import respond
from eca_service.api.schemas import (
    IMAGES_BODY,
    ErrorResponse,
    ImageInfo,
    ModelQuery,
    ModelReference,
    error_responses,
    image_responses,
)
from eca_service.http.dependencies import StateDep, reject_repeated_parameters, require_api_key
from eca_service.inference.tasks import Embedding

router = APIRouter(
    dependencies=[Depends(require_api_key), Depends(reject_repeated_parameters)], responses=error_responses(401)
)


class EmbedQuery(ModelQuery):
    """Options of an embedding."""

    normalize: Annotated[bool, Field(description="Whether to scale each embedding to an L2 norm of 1.")] = False


class EmbeddingInfo(ImageInfo):
    """The result for one image."""

    embedding: Annotated[
        list[float], Field(description="Features in front of the network's last layer.", examples=[[0.12, 0.0, 1.7]])
    ]


class EmbedResponse(EmbeddingInfo, ModelReference):
    """Response to a request with one image."""


class EmbedBatchResponse(ModelReference):
    """Response to a request with several images, in their order; a bad image fails alone."""

    results: list[EmbeddingInfo | ErrorResponse]


@router.post(
    "/v1/embed",
    summary="Embed one or more images",
    response_model=None,
    responses=image_responses(EmbedResponse | EmbedBatchResponse),
    openapi_extra={"requestBody": IMAGES_BODY},
)
async def embed(request: Request, state: StateDep, query: Annotated[EmbedQuery, Query()]) -> Response:
    """Send images as for /v1/classify. The embedding is what the network's last layer reads: similar images are close.

    With `normalize=true` the dot product of two embeddings is their cosine similarity.
    """
    return await respond(request, state, query.model, Embedding(query.normalize), _embedding)


def _embedding(features: list[float]) -> dict[str, Any]:
    return {"embedding": features}
