"""The shapes of requests and answers: they drive /openapi.json and nothing else.

Answers are built as plain dictionaries, which is faster; a test holds them against these classes.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from eca_service.api.open_inference_codec import InferBody
from eca_service.http.strict_json import LoadBody, PicturesBody, TaskBody
from eca_service.models.registry import State


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ClassifyQuery(_Shape):
    """Options of a classification."""

    model: Annotated[
        str | None, Field(max_length=512, description="Id of a running model; may be left out when one runs.")
    ] = None
    top_k: Annotated[int | None, Field(ge=1, le=100_000, description="How many classes to name; five unless told.")] = (
        None
    )


class ExplainQuery(_Shape):
    """Options of an explanation."""

    model: Annotated[
        str | None, Field(max_length=512, description="Id of a running model; may be left out when one runs.")
    ] = None
    class_index: Annotated[
        int | None, Field(ge=0, le=100_000, description="Which class to explain; the likeliest unless told.")
    ] = None
    gates: Annotated[bool, Field(description="Whether to name the gate of every channel.")] = False


class PredictionShape(_Shape):
    """One class and how likely it is."""

    label: Annotated[str, Field(description="Name of the class.", examples=["tabby"])]
    index: Annotated[int, Field(description="Its place among the network's outputs.", examples=[281])]
    score: Annotated[float, Field(description="Probability, 0 to 1.", examples=[0.8127])]


class TimingShape(_Shape):
    """Where the time went, in milliseconds."""

    decode: Annotated[float, Field(description="Decoding, resizing and cropping.", examples=[4.1])]
    queue: Annotated[float, Field(description="Waiting for a decoder and for a batch.", examples=[2.7])]
    engine: Annotated[float, Field(description="The batch in the network.", examples=[6.0])]
    total: Annotated[float, Field(description="From the head of the request to this answer.", examples=[13.2])]


class PictureAnswer(_Shape):
    """What is in one picture."""

    predictions: Annotated[list[PredictionShape], Field(description="The likeliest classes, the likeliest first.")]
    timing_ms: TimingShape
    batch_size: Annotated[int, Field(description="Pictures that went through the network together.", examples=[7])]


class Classification(PictureAnswer):
    """The answer for a request with one picture."""

    model: Annotated[str, Field(description="Id of the model that answered.", examples=["acme/eca_resnet50"])]
    revision: Annotated[str, Field(description="Its commit, 40 hexadecimal digits.", examples=["3f9c1d2" + "0" * 33])]


class GatesShape(_Shape):
    """What one attention did to its channels."""

    name: Annotated[str, Field(description="Where it stands in the network.", examples=["layer2.0.se"])]
    stage: Annotated[int, Field(description="Which stage it belongs to, from 1.", examples=[2])]
    num_channels: Annotated[int, Field(examples=[512])]
    mean: Annotated[float, Field(description="By how much channels were multiplied, on average.", examples=[0.51])]
    std: float
    min: float
    max: float
    values: Annotated[list[float] | None, Field(description="By how much each was, if ?gates=true.")] = None


class ExplainAnswer(_Shape):
    """What a network looked at."""

    model: Annotated[str, Field(description="Id of the model that answered.", examples=["acme/eca_resnet50"])]
    revision: Annotated[str, Field(description="Its commit, 40 hexadecimal digits.", examples=["3f9c1d2" + "0" * 33])]
    prediction: Annotated[PredictionShape, Field(description="The class that is explained.")]
    gates: Annotated[list[GatesShape], Field(description="The attentions in the order in which they act.")]
    heat: Annotated[list[list[float]], Field(description="How much each place spoke for the class, 0 to 1.")]


class ErrorEntry(_Shape):
    """Why there is no answer."""

    code: Annotated[str, Field(description="A fixed word for programs.", examples=["too_many_pixels"])]
    message: Annotated[
        str, Field(description="What happened, and what is allowed.", examples=["The picture is 12000 x 9000."])
    ]
    hint: Annotated[str, Field(description="What to do next.", examples=["Shrink it."])]
    request_id: Annotated[str, Field(description="As in the X-Request-Id header.", examples=["5e2b"])]


class ErrorAnswer(_Shape):
    """The shape of every refusal."""

    error: ErrorEntry


class Classifications(_Shape):
    """The answer for a request with several pictures, in their order; a bad one fails alone."""

    model: Annotated[str, Field(description="Id of the model that answered.", examples=["acme/eca_resnet50"])]
    revision: Annotated[str, Field(description="Its commit, 40 hexadecimal digits.", examples=["3f9c1d2" + "0" * 33])]
    results: list[PictureAnswer | ErrorAnswer]


class TaskAnswer(_Shape):
    """One class and how likely it is, in Hugging Face's words."""

    label: Annotated[str, Field(description="Name of the class.", examples=["tabby"])]
    score: Annotated[float, Field(description="Probability, 0 to 1.", examples=[0.8127])]


class SelfTestShape(_Shape):
    """How the network that runs compares with the network that was loaded."""

    same_top1: Annotated[
        float, Field(description="Share of test pictures with the same likeliest class.", examples=[1.0])
    ]
    max_difference: Annotated[float, Field(description="How far a probability moved, at most.", examples=[4e-7])]
    num_images: Annotated[int, Field(description="Number of images that were compared.", examples=[8])]
    allowed_difference: Annotated[float, Field(description="Largest change that is accepted.", examples=[0.02])]


class ModelShape(_Shape):
    """A model of this process."""

    id: Annotated[str, Field(description="What to say in ?model=.", examples=["acme/eca_resnet50"])]
    state: State
    revision: Annotated[str | None, Field(description="Its commit, 40 hexadecimal digits.")] = None
    architecture: Annotated[str | None, Field(examples=["resnet50"])] = None
    attention: Annotated[str | None, Field(examples=["eca"])] = None
    labels: Annotated[list[str] | None, Field(description="Names of the classes.")] = None
    input_px: Annotated[
        list[int] | None, Field(description="Height and width of the network's input.", examples=[[224, 224]])
    ] = None
    num_parameters: int | None = None
    weights_bytes: Annotated[int | None, Field(description="Size of its weights in memory.")] = None
    device: Annotated[str | None, Field(examples=["cpu"])] = None
    precision: Annotated[str | None, Field(examples=["float32"])] = None
    parity: SelfTestShape | None = None


class ModelsAnswer(_Shape):
    """All models of this process."""

    models: list[ModelShape]


class ProtocolError(_Shape):
    """A refusal in the words of the Open Inference Protocol."""

    error: Annotated[str, Field(description="What happened, and what to do.", examples=["The picture is ..."])]
    code: Annotated[str, Field(description="A fixed word for programs.", examples=["too_many_pixels"])]
    message: str
    hint: str
    request_id: str


class ProtocolServer(_Shape):
    """This server, in the words of the Open Inference Protocol."""

    name: Annotated[str, Field(examples=["eca-hub"])]
    version: str
    extensions: list[str]


class ProtocolState(_Shape):
    """Whether something answers."""

    name: str | None = None
    live: bool | None = None
    ready: bool | None = None


class ProtocolTensor(_Shape):
    """A tensor that a model reads or writes; -1 stands for any length."""

    name: Annotated[str, Field(examples=["image"])]
    datatype: Annotated[str, Field(examples=["BYTES"])]
    shape: Annotated[list[int], Field(examples=[[-1]])]


class ProtocolModel(_Shape):
    """A model, in the words of the Open Inference Protocol."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[ProtocolTensor]
    outputs: list[ProtocolTensor]


class ProtocolOutput(_Shape):
    """Scores, or named classes."""

    name: Annotated[str, Field(examples=["scores"])]
    datatype: Annotated[str, Field(examples=["FP32"])]
    shape: Annotated[list[int], Field(examples=[[1, 1000]])]
    parameters: dict[str, int] | None = None
    data: list[float] | list[str] | None = None


class InferAnswer(_Shape):
    """The answer to a request for scores."""

    model_name: str
    model_version: Annotated[str, Field(description="The commit, 40 hexadecimal digits.")]
    id: str | None = None
    outputs: list[ProtocolOutput]


class Health(_Shape):
    """The process answers."""

    status: Annotated[str, Field(examples=["ok"])]


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """Put definitions where they are referred to: the schema will stand in the middle of a larger document."""
    definitions = schema.pop("$defs", {})

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return walk(definitions[node["$ref"].rsplit("/", 1)[-1]])
            return {key: walk(value) for key, value in node.items()}
        return [walk(one) for one in node] if isinstance(node, list) else node

    return walk(schema)  # type: ignore[no-any-return]


_PICTURE_BODY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}

CLASSIFY_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "image/*": _PICTURE_BODY,
        "application/octet-stream": _PICTURE_BODY,
        "application/json": {"schema": PicturesBody.model_json_schema()},
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
"""What /v1/classify reads, in OpenAPI's words: it reads the body itself, so FastAPI cannot tell."""

TASK_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "image/*": _PICTURE_BODY,
        "application/octet-stream": _PICTURE_BODY,
        "application/json": {"schema": _inlined(TaskBody.model_json_schema())},
    },
}
"""What /models/{owner}/{name} reads."""


LOAD_BODY: dict[str, Any] = {
    "required": True,
    "content": {"application/json": {"schema": LoadBody.model_json_schema()}},
}
"""What POST /v1/models reads."""


INFER_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {"schema": _inlined(InferBody.model_json_schema())},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}
"""What /v2/models/{id}/infer reads."""


def protocol_refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe these statuses as errors of the Open Inference Protocol."""
    return {status: {"model": ProtocolError} for status in statuses}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe these statuses as errors of the one shape."""
    return {status: {"model": ErrorAnswer} for status in statuses}
