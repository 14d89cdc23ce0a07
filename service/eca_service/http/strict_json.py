"""Pictures inside JSON: read strictly, so that nothing a caller writes means two things.

UTF-8 without a mark, no NaN or Infinity, no key twice, no unknown key, no number that is really a string; base64 in
the standard alphabet with its padding and nothing between. Knows bytes and words; nothing of requests, pixels or
models.
"""

import binascii
import json
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from eca_hub import EcaHubError
from eca_service.errors import BadJson, InvalidRequest
from eca_service.inference.tasks import Activation

_MAX_MARKS = 20_000


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class PicturesBody(_Body):
    """Pictures for /v1/classify."""

    images: Annotated[
        list[str], FailFast(), Field(min_length=1, description="Pictures in base64.", examples=[["iVBORw0KGgo..."]])
    ]


class LoadBody(_Body):
    """A model to load, for /v1/models."""

    model: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.\-]{0,95}$",
            description="Hub id, owner/name.",
            examples=["acme/eca_resnet50"],
        ),
    ]
    revision: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*(/[A-Za-z0-9][A-Za-z0-9_.\-]*)*$",
            max_length=200,
            description="Branch, tag or commit; the main branch unless told.",
            examples=["v1"],
        ),
    ] = None


class TaskParameters(_Body):
    """Options in Hugging Face's words."""

    top_k: Annotated[int | None, Field(ge=1, le=100_000, description="How many classes; five unless told.")] = None
    function_to_apply: Annotated[Activation | None, Field(description="How outputs become scores.")] = None


class TaskBody(_Body):
    """A picture in Hugging Face's shape."""

    inputs: Annotated[str, Field(description="The picture in base64.", examples=["iVBORw0KGgo..."])]
    parameters: TaskParameters | None = None


@dataclass(frozen=True)
class Task:
    """What a caller of Hugging Face's shape asks."""

    picture: bytes | EcaHubError
    """The picture, or what is wrong with its base64."""
    top_k: int | None
    """How many classes."""
    activation: Activation
    """How outputs become scores."""


Shape = TypeVar("Shape", bound=BaseModel)


def pictures_in_json(body: bytes) -> list[bytes | EcaHubError]:
    """Take the pictures out of `{"images": [...]}`; one that is no base64 comes back as its error.

    Raises:
        BadJson: the body is no JSON.
        InvalidRequest: it is JSON of another shape.
    """
    return [unpack_base64(text) for text in read_json(body, PicturesBody).images]


def task_in_json(body: bytes) -> Task:
    """Take the picture and its options out of `{"inputs": ..., "parameters": {...}}`.

    Raises:
        BadJson: the body is no JSON.
        InvalidRequest: it is JSON of another shape.
    """
    read = read_json(body, TaskBody)
    parameters = read.parameters or TaskParameters()
    return Task(unpack_base64(read.inputs), parameters.top_k, parameters.function_to_apply or "softmax")


def load_in_json(body: bytes) -> LoadBody:
    """Take the model to load out of `{"model": ..., "revision": ...}`.

    Raises:
        BadJson: the body is no JSON.
        InvalidRequest: it is JSON of another shape, or the names cannot be names.
    """
    return read_json(body, LoadBody)


def read_json(body: bytes, shape: type[Shape], *, max_marks: int = _MAX_MARKS) -> Shape:
    """Read a body of one shape.

    Args:
        body: All of it.
        shape: What it should be.
        max_marks: How many commas and brackets of a kind it may have.

    Raises:
        BadJson: the body is no JSON.
        InvalidRequest: it is JSON of another shape.
    """
    # None of these bytes stands in base64, so pictures need few of them. Parsing millions would stop all other callers.
    if any(body.count(mark) > max_marks for mark in (b",", b"[", b"{")):
        raise InvalidRequest("The JSON has far more parts than pictures need.", hint="See /docs.")
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant, object_pairs_hook=_object_of)
    except (ValueError, RecursionError):
        raise BadJson("The body is not JSON, or not in UTF-8.", hint="See /docs.") from None
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        fields = ", ".join(repr(name) for name in shape.model_fields)
        kinds = {problem["type"] for problem in error.errors(include_url=False, include_input=False)}
        what = "has an unknown key" if kinds == {"extra_forbidden"} else "has another shape than it should"
        raise InvalidRequest(f"The JSON {what}; it may have {fields}.", hint="See /docs.") from None


def unpack_base64(text: str) -> bytes | EcaHubError:
    """Return what base64 stands for, or what is wrong with it."""
    try:
        return binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except ValueError:
        return InvalidRequest(
            "A picture is not in base64.",
            hint="Standard alphabet, with padding, without line breaks or a data: prefix.",
        )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key stands twice")
    return made
