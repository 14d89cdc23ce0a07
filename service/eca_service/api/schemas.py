"""Schemas of requests and responses, for /openapi.json.

Responses are built as plain dictionaries, which is faster; tests validate them against these classes. Routes name the
class of a response by a reference, and `response_schemas` describes all of them when a client asks for the description:
FastAPI itself would make a validator for each response of each route at the start.
"""

from types import UnionType
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from eca_service.api.open_inference_codec import InferRequestBody
from eca_service.http.strict_json import HFRequestBody, ImagesRequest, LoadModelRequest
from eca_service.models.registry import State


class Schema(BaseModel):
    """Base of all: no field but those that it names."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ModelQuery(Schema):
    """Which model is asked."""

    model: Annotated[
        str | None,
        Field(
            max_length=512, description="Id of a loaded model; may be omitted where the service was started with one."
        ),
    ] = None


class ModelReference(Schema):
    """Which model answered."""

    model: Annotated[str, Field(description="Id of the model.", examples=["acme/eca_resnet50"])]
    revision: Annotated[str, Field(description="Commit of the model, 40 hex digits.", examples=["3f9c1d2" + "0" * 33])]


class ClassifyQuery(ModelQuery):
    """Options of a classification."""

    top_k: Annotated[int | None, Field(ge=1, le=100_000, description="Number of classes; five by default.")] = None


class ExplainQuery(ModelQuery):
    """Options of an explanation."""

    class_index: Annotated[
        int | None, Field(ge=0, le=100_000, description="Class to explain; the top class by default.")
    ] = None
    gates: Annotated[bool, Field(description="Whether to return the gate of every channel.")] = False


class PredictionInfo(Schema):
    """One class and its probability."""

    label: Annotated[str, Field(description="Name of the class.", examples=["tabby"])]
    index: Annotated[int, Field(description="Index of the network's output.", examples=[281])]
    score: Annotated[float, Field(description="Probability, 0 to 1.", examples=[0.8127])]


class TimingInfo(Schema):
    """Milliseconds of each step."""

    decode: Annotated[float, Field(description="Decoding, resizing and cropping.", examples=[4.1])]
    queue: Annotated[float, Field(description="Waiting for a decoder and for a batch.", examples=[2.7])]
    engine: Annotated[float, Field(description="The batch in the network.", examples=[6.0])]
    total: Annotated[float, Field(description="From the headers of the request to this response.", examples=[13.2])]


class ImageInfo(Schema):
    """What the result for one image has in every task."""

    timing_ms: TimingInfo
    batch_size: Annotated[int, Field(description="Images in the same batch.", examples=[7])]


class ClassificationInfo(ImageInfo):
    """The result for one image."""

    predictions: Annotated[list[PredictionInfo], Field(description="The top classes, best first.")]


class ClassifyResponse(ClassificationInfo, ModelReference):
    """Response to a request with one image."""


class GatesInfo(Schema):
    """Gates of one attention module."""

    name: Annotated[str, Field(description="Name of the module.", examples=["layer2.0.se"])]
    stage: Annotated[int, Field(description="Stage of the network, from 1.", examples=[2])]
    num_channels: Annotated[int, Field(examples=[512])]
    mean: Annotated[float, Field(description="Mean factor of the channels.", examples=[0.51])]
    std: float
    min: float
    max: float
    values: Annotated[list[float] | None, Field(description="Factor of each channel, with ?gates=true.")] = None


class ExplainResponse(ModelReference):
    """Explanation of a classification."""

    prediction: Annotated[PredictionInfo, Field(description="The class that is explained.")]
    gates: Annotated[list[GatesInfo], Field(description="Attention modules in the order in which they run.")]
    heat: Annotated[list[list[float]], Field(description="Grad-CAM: evidence for the class at each place, 0 to 1.")]


class ErrorInfo(Schema):
    """An error."""

    code: Annotated[str, Field(description="Code for programs.", examples=["too_many_pixels"])]
    message: Annotated[
        str, Field(description="What is wrong, and what is allowed.", examples=["The image is 12000 x 9000."])
    ]
    hint: Annotated[str, Field(description="What to do.", examples=["Shrink it."])]
    request_id: Annotated[str, Field(description="As in the X-Request-Id header.", examples=["5e2b"])]


class ErrorResponse(Schema):
    """The shape of every error."""

    error: ErrorInfo


class BatchResponse(ModelReference):
    """Response to a request with several images, in their order; a bad one fails alone."""

    results: list[ClassificationInfo | ErrorResponse]


class HFOutput(Schema):
    """One class and its probability, in Hugging Face's shape."""

    label: Annotated[str, Field(description="Name of the class.", examples=["tabby"])]
    score: Annotated[float, Field(description="Probability, 0 to 1.", examples=[0.8127])]


class HFBox(Schema):
    """A box in whole pixels of the image, upright."""

    xmin: int
    ymin: int
    xmax: int
    ymax: int


class HFObject(HFOutput):
    """One object, in Hugging Face's shape."""

    box: HFBox


class ParityInfo(Schema):
    """The optimized network compared with the network that was loaded."""

    same_top1: Annotated[float, Field(description="Share of test images with the same top class.", examples=[1.0])]
    max_difference: Annotated[float, Field(description="Largest difference of a probability.", examples=[4e-7])]
    num_images: Annotated[int, Field(description="Number of test images.", examples=[8])]
    allowed_difference: Annotated[float, Field(description="Largest difference that is accepted.", examples=[0.02])]


class ModelResponse(Schema):
    """A model of this process."""

    id: Annotated[
        str,
        Field(
            description="Value of ?model=: owner/name, or owner/name@revision where several revisions are served.",
            examples=["acme/eca_resnet50"],
        ),
    ]
    state: Annotated[
        State,
        Field(description="`updating`: it serves as it was loaded, or an older commit, until a new form is ready."),
    ]
    revision: Annotated[str | None, Field(description="Commit of the model, 40 hex digits.")] = None
    architecture: Annotated[str | None, Field(examples=["resnet50"])] = None
    attention: Annotated[str | None, Field(examples=["eca"])] = None
    tasks: Annotated[
        list[str] | None,
        Field(description="What it can do, by /v1/TASK.", examples=[["classify", "embed"]]),
    ] = None
    labels: Annotated[list[str] | None, Field(description="Names of the classes.")] = None
    activation: Annotated[
        str | None,
        Field(description="softmax, or sigmoid: any number of classes applies to an image.", examples=["softmax"]),
    ] = None
    input_px: Annotated[
        list[int] | None, Field(description="Height and width of the network's input.", examples=[[224, 224]])
    ] = None
    crop: Annotated[float | None, Field(description="Share of the resized image that is kept.", examples=[0.95])] = None
    crop_mode: Annotated[str | None, Field(description="center; squash: the aspect ratio is not kept; border.")] = None
    detector: Annotated[str | None, Field(description="Kind of a detector.", examples=["mask_rcnn"])] = None
    min_side_px: Annotated[int | None, Field(description="Shorter side of the resized image, of a detector.")] = None
    max_side_px: Annotated[int | None, Field(description="Limit of its longer side.")] = None
    min_score: Annotated[float | None, Field(description="Lowest score that a detector answers.")] = None
    max_detections: Annotated[int | None, Field(description="Objects of an image at most, of a detector.")] = None
    has_masks: Annotated[bool | None, Field(description="Whether objects come with masks.")] = None
    num_parameters: int | None = None
    weights_bytes: Annotated[int | None, Field(description="Size of its weights in memory.")] = None
    device: Annotated[str | None, Field(examples=["cpu"])] = None
    precision: Annotated[str | None, Field(examples=["float32"])] = None
    parity: Annotated[ParityInfo | None, Field(description="null for a network that runs as it was loaded.")] = None


class ModelsResponse(Schema):
    """All models of this process."""

    models: list[ModelResponse]


class V2Error(Schema):
    """An error of the Open Inference Protocol."""

    error: Annotated[str, Field(description="What is wrong, and what to do.", examples=["The image is ..."])]
    code: Annotated[str, Field(description="Code for programs.", examples=["too_many_pixels"])]
    message: str
    hint: str
    request_id: str


class V2Server(Schema):
    """Server metadata of the Open Inference Protocol."""

    name: Annotated[str, Field(examples=["eca-hub"])]
    version: str
    extensions: list[str]


class V2State(Schema):
    """Liveness or readiness."""

    name: str | None = None
    live: bool | None = None
    ready: bool | None = None


class V2Tensor(Schema):
    """An input or output of a model; -1 stands for any length."""

    name: Annotated[str, Field(examples=["image"])]
    datatype: Annotated[str, Field(examples=["BYTES"])]
    shape: Annotated[list[int], Field(examples=[[-1]])]


class V2Model(Schema):
    """Model metadata of the Open Inference Protocol."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[V2Tensor]
    outputs: list[V2Tensor]


class V2Output(Schema):
    """Scores, or named classes."""

    name: Annotated[str, Field(examples=["scores"])]
    datatype: Annotated[str, Field(examples=["FP32"])]
    shape: Annotated[list[int], Field(examples=[[1, 1000]])]
    parameters: dict[str, int] | None = None
    data: list[float] | list[str] | None = None


class InferResponse(Schema):
    """Response to an inference request."""

    model_name: str
    model_version: Annotated[str, Field(description="The commit, 40 hexadecimal digits.")]
    id: str | None = None
    outputs: list[V2Output]


class HealthResponse(Schema):
    """Liveness or readiness."""

    status: Annotated[str, Field(examples=["ok"])]


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """Inline the definitions, because the schema becomes part of a larger document."""
    definitions = schema.pop("$defs", {})

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return walk(definitions[node["$ref"].rsplit("/", 1)[-1]])
            return {key: walk(value) for key, value in node.items()}
        return [walk(one) for one in node] if isinstance(node, list) else node

    return walk(schema)  # type: ignore[no-any-return]


_IMAGE_BODY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}

IMAGES_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "image/*": _IMAGE_BODY,
        "application/octet-stream": _IMAGE_BODY,
        "application/json": {"schema": ImagesRequest.model_json_schema()},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1},
                },
            }
        },
    },
}
"""Body of the routes that take images, in OpenAPI: they parse it themselves, so that FastAPI cannot describe it."""

HF_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "image/*": _IMAGE_BODY,
        "application/octet-stream": _IMAGE_BODY,
        "application/json": {"schema": _inlined(HFRequestBody.model_json_schema())},
    },
}
"""Body of /models/{model_id}."""


LOAD_BODY: dict[str, Any] = {
    "required": True,
    "content": {"application/json": {"schema": LoadModelRequest.model_json_schema()}},
}
"""Body of POST /v1/models."""


INFER_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {"schema": _inlined(InferRequestBody.model_json_schema())},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}
"""Body of /v2/models/{id}/infer."""


_REFERENCE = "#/components/schemas/{model}"

_described: dict[str, type[BaseModel]] = {}
"""Name of a class to which a route refers -> the class."""


def describe_response(shape: Any) -> dict[str, Any]:
    """Describe a response by references to its classes; `shape` is a class, `One | Other` or `list[One]`."""
    return {"content": {"application/json": {"schema": _reference_to(shape)}}}


def _reference_to(shape: Any) -> dict[str, Any]:
    if get_origin(shape) is UnionType:
        return {"anyOf": [_reference_to(each) for each in get_args(shape)]}
    if get_origin(shape) is list:
        return {"type": "array", "items": _reference_to(get_args(shape)[0])}
    _described[shape.__name__] = shape
    return {"$ref": _REFERENCE.format(model=shape.__name__)}


def response_schemas() -> dict[str, Any]:
    """Return the schema of each class to which a route refers, and of those to which they refer, by their names."""
    _, schemas = models_json_schema([(each, "serialization") for each in _described.values()], ref_template=_REFERENCE)
    return dict(schemas["$defs"])


def v2_error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe these statuses as errors of the Open Inference Protocol."""
    return {status: describe_response(V2Error) for status in statuses}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe these statuses as errors in the one shape."""
    return {status: describe_response(ErrorResponse) for status in statuses}


def image_responses(model: Any) -> dict[int | str, dict[str, Any]]:
    """Describe the responses of a route that takes images: its result, and the errors that each of them may return."""
    return {200: describe_response(model), **error_responses(400, 404, 408, 413, 415, 422, 429, 503, 504)}
