"""POST /v1/detect: the objects in images, with boxes and masks in pixels of the image as it was sent."""

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
    Schema,
    error_responses,
    image_responses,
)
from eca_service.http.dependencies import StateDep, reject_repeated_parameters, require_api_key
from eca_service.inference.tasks import DetectedObject, MaskFormat, ObjectDetection

router = APIRouter(
    dependencies=[Depends(require_api_key), Depends(reject_repeated_parameters)], responses=error_responses(401)
)


class DetectQuery(ModelQuery):
    """Options of a detection."""

    min_score: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="Leave out objects with a lower score; by default 0.5, or the model's min_score if higher.",
        ),
    ] = None
    max_detections: Annotated[int, Field(ge=1, le=10_000, description="Objects of an image at most.")] = 100
    masks: Annotated[
        MaskFormat | None,
        Field(description="rle, polygon or none; rle by default where the model finds masks."),
    ] = None


class BoxInfo(Schema):
    """A box in pixels of the image, upright."""

    xmin: Annotated[float, Field(description="Left edge.", examples=[48.2])]
    ymin: Annotated[float, Field(description="Upper edge.", examples=[30.9])]
    xmax: Annotated[float, Field(description="Right edge.", examples=[211.0])]
    ymax: Annotated[float, Field(description="Lower edge.", examples=[180.4])]


class RunLengthCode(Schema):
    """A mask of the whole image as COCO's run-length code."""

    size: Annotated[list[int], Field(description="Height and width of the image.", examples=[[480, 640]])]
    counts: Annotated[str, Field(description="Runs of 0 and 1 in turn, as pycocotools reads them.")]


class ObjectInfo(Schema):
    """One object."""

    label: Annotated[str, Field(description="Name of the class.", examples=["dog"])]
    index: Annotated[int, Field(description="Index of the class.", examples=[16])]
    score: Annotated[float, Field(description="Confidence, 0 to 1.", examples=[0.93])]
    box: BoxInfo
    mask: Annotated[
        RunLengthCode | list[list[float]] | None,
        Field(description="With masks=polygon outlines [x1, y1, x2, y2, ...], whose holes are filled."),
    ] = None


class DetectionInfo(ImageInfo):
    """The objects in one image."""

    detections: Annotated[list[ObjectInfo], Field(description="The most certain first.")]


class DetectResponse(DetectionInfo, ModelReference):
    """Response to a request with one image."""


class DetectBatchResponse(ModelReference):
    """Response to a request with several images, in their order; a bad image fails alone."""

    results: list[DetectionInfo | ErrorResponse]


@router.post(
    "/v1/detect",
    summary="Find the objects in one or more images",
    response_model=None,
    responses=image_responses(DetectResponse | DetectBatchResponse),
    openapi_extra={"requestBody": IMAGES_BODY},
)
async def detect(request: Request, state: StateDep, query: Annotated[DetectQuery, Query()]) -> Response:
    """Send images as for /v1/classify, to a model that is a detector.

    Boxes and masks are in pixels of the image as it is displayed, after its EXIF orientation.
    """
    task = ObjectDetection(query.min_score, query.max_detections, query.masks)
    return await respond(request, state, query.model, task, _detections)


def _detections(objects: list[DetectedObject]) -> dict[str, Any]:
    return {"detections": [_object(each) for each in objects]}


def _object(detected: DetectedObject) -> dict[str, Any]:
    detection = detected.detection
    box = dict(zip(("xmin", "ymin", "xmax", "ymax"), detection.box, strict=True))
    fields = {"label": detection.label, "index": detection.index, "score": detection.score, "box": box}
    return fields if detected.mask is None else {**fields, "mask": detected.mask}
