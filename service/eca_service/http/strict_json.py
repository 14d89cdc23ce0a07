"""Read JSON strictly, so that nothing in a body is ambiguous.

UTF-8 without a byte order mark, no NaN or Infinity, no duplicate or unknown keys, no strings for numbers; base64 in the
standard alphabet with padding and nothing between.
"""

import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from eca_hub import EcaHubError
from eca_hub.names import MAX_REVISION_CHARS, MODEL_ID_PATTERN, REVISION_PATTERN
from eca_service.errors import BadJson, InvalidRequest
from eca_service.inference.types import Activation

_MAX_MARKS = 20_000
_MAX_QUOTES = 50_000
"""Two for each of 10,000 images, the most that a request may have, and as many again for keys and labels."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ImagesRequest(_Body):
    """Images for the routes of all tasks."""

    images: Annotated[
        list[str], FailFast(), Field(min_length=1, description="Images in base64.", examples=[["iVBORw0KGgo..."]])
    ]


class LoadModelRequest(_Body):
    """A model to load, for /v1/models."""

    model: Annotated[
        str,
        Field(
            pattern=f"^{MODEL_ID_PATTERN}$",
            description="Hub id, owner/name.",
            examples=["acme/eca_resnet50"],
        ),
    ]
    revision: Annotated[
        str | None,
        Field(
            pattern=f"^{REVISION_PATTERN}$",
            max_length=MAX_REVISION_CHARS,
            description="Branch, tag or commit; the main branch by default.",
            examples=["v1"],
        ),
    ] = None


class HFParameters(_Body):
    """Options in Hugging Face's names."""

    top_k: Annotated[int | None, Field(ge=1, le=100_000, description="Number of classes; five by default.")] = None
    function_to_apply: Annotated[
        Activation | None, Field(description="How logits become scores; the model's own by default.")
    ] = None
    threshold: Annotated[float | None, Field(ge=0, le=1, description="Lowest score of an object; 0.5 by default.")] = (
        None
    )


class HFRequestBody(_Body):
    """An image in Hugging Face's shape."""

    inputs: Annotated[str, Field(description="The image in base64.", examples=["iVBORw0KGgo..."])]
    parameters: HFParameters | None = None


@dataclass(frozen=True)
class HFRequest:
    """A request in Hugging Face's shape."""

    image: bytes | EcaHubError
    """The image, or what is wrong with its base64."""
    parameters: HFParameters
    """Options."""


Shape = TypeVar("Shape", bound=BaseModel)
Buffer = bytes | bytearray
MarkCounts = Mapping[bytes, int]
"""How often each mark of JSON occurs in a body."""


def parse_images_json(body: Buffer, mark_counts: MarkCounts | None = None) -> list[bytes | EcaHubError]:
    """Return the images in `{"images": [...]}`; one that is not base64 comes back as its error.

    Raises:
        BadJson: the body is not JSON.
        InvalidRequest: JSON of another shape.
    """
    return [decode_base64(text) for text in parse_json(body, ImagesRequest, mark_counts).images]


def parse_hf_json(body: Buffer, mark_counts: MarkCounts | None = None) -> HFRequest:
    """Return the image and its options in `{"inputs": ..., "parameters": {...}}`.

    Raises:
        BadJson: the body is not JSON.
        InvalidRequest: JSON of another shape.
    """
    request = parse_json(body, HFRequestBody, mark_counts)
    return HFRequest(decode_base64(request.inputs), request.parameters or HFParameters())


def parse_load_request(body: Buffer) -> LoadModelRequest:
    """Return the model to load in `{"model": ..., "revision": ...}`.

    Raises:
        BadJson: the body is not JSON.
        InvalidRequest: JSON of another shape, or names that are not allowed.
    """
    return parse_json(body, LoadModelRequest)


def count_marks(body: Buffer, end: int | None = None) -> MarkCounts:
    """Count the marks of JSON in the first `end` bytes.

    None of them occurs in base64, so that only a body of many small values has many.
    """
    return {mark: body.count(mark, 0, end) for mark in (b",", b"[", b"{", b":", b'"')}


def num_elements_of(mark_counts: MarkCounts) -> int:
    """Return how many values JSON with these marks has at most, but for one."""
    return mark_counts[b","] + mark_counts[b"["] + mark_counts[b"{"]


def parse_json(
    body: Buffer,
    shape: type[Shape],
    mark_counts: MarkCounts | None = None,
    *,
    max_commas: int = _MAX_MARKS,
    max_lists: int = _MAX_MARKS,
) -> Shape:
    """Parse a body of one shape.

    Args:
        body: All of it.
        shape: Its class.
        mark_counts: Of the body, if they are counted already.
        max_commas: How many commas it may have. Where these are many, almost all separate numbers, because the objects,
            keys and strings have limits of their own: an object takes ten times the memory of a number.
        max_lists: How many lists it may have.

    Raises:
        BadJson: the body is not JSON.
        InvalidRequest: JSON of another shape.
    """
    if mark_counts is None:
        mark_counts = count_marks(body)
    max_counts = {b",": max_commas, b"[": max_lists, b"{": _MAX_MARKS, b":": _MAX_MARKS, b'"': _MAX_QUOTES}
    if any(mark_counts[mark] > max_count for mark, max_count in max_counts.items()):
        raise InvalidRequest("The JSON has far more elements than images need.", hint="See /docs.")
    try:
        value = json.loads(body.decode(), parse_constant=_reject_constant, object_pairs_hook=_unique_object)
    except (ValueError, RecursionError):
        raise BadJson("The body is not JSON in UTF-8.", hint="See /docs.") from None
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        fields = ", ".join(repr(name) for name in shape.model_fields)
        kinds = {problem["type"] for problem in error.errors(include_url=False, include_input=False)}
        what = "has an unknown key" if kinds == {"extra_forbidden"} else "has the wrong shape"
        raise InvalidRequest(f"The JSON {what}; its keys are {fields}.", hint="See /docs.") from None


def decode_base64(text: str) -> bytes | EcaHubError:
    """Decode base64, or return what is wrong with it."""
    try:
        return binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except ValueError:
        return InvalidRequest(
            "An image is not in base64.",
            hint="Use the standard alphabet with padding, without line breaks and without a data: prefix.",
        )


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    json_object = dict(pairs)
    if len(json_object) < len(pairs):
        raise ValueError("duplicate key")
    return json_object
