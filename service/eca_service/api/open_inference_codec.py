"""Tensors in the bodies of the Open Inference Protocol, version 2: JSON, or JSON followed by raw bytes.

A request has one input: `image`, encoded images (BYTES), or `pixels`, images of the network's input size (UINT8,
N x C x H x W; C is 3, red first, or 1 for a gray model). A response has the output `scores` (FP32, N x K), or where the
output asks for `classification` the top classes as "score:index:label" (BYTES).
"""

import math
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from eca_hub import EcaHubError
from eca_service.errors import InvalidRequest
from eca_service.http.strict_json import Buffer, MarkCounts, decode_base64, parse_json
from eca_service.inference.types import RawPixels

_MAX_NUMBERS = 1_000_000
_MAX_OTHER_LISTS = 20_000
"""Lists that are no rows."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class TensorParameters(_Part):
    """Parameters of one tensor."""

    binary_data_size: Annotated[int | None, Field(ge=0, description="Bytes of this tensor after the JSON.")] = None


class InputTensor(_Part):
    """Images."""

    name: Annotated[Literal["image", "pixels"], Field(examples=["image"])]
    datatype: Annotated[Literal["BYTES", "UINT8"], Field(examples=["BYTES"])]
    shape: Annotated[list[Annotated[int, Field(ge=1, le=100_000)]], Field(min_length=1, max_length=4, examples=[[1]])]
    parameters: TensorParameters = TensorParameters()
    data: Annotated[
        list[Any] | None,
        Field(description="Images in base64, or pixels; omitted where the bytes follow.", examples=[["iVBORw0..."]]),
    ] = None


class OutputParameters(_Part):
    """Parameters of one output."""

    binary_data: bool | None = None
    classification: Annotated[int, Field(ge=0, le=100_000, description="Number of classes to name; 0: scores.")] = 0


class OutputTensor(_Part):
    """A requested output."""

    name: Annotated[Literal["scores"], Field(examples=["scores"])]
    parameters: OutputParameters = OutputParameters()


class RequestParameters(_Part):
    """Parameters of the request."""

    binary_data_output: bool = False


class InferRequestBody(_Part):
    """The body of an inference request."""

    id: Annotated[str, Field(max_length=256, description="Repeated in the response.")] = ""
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=1)]
    outputs: Annotated[list[OutputTensor], Field(max_length=1)] = []
    parameters: RequestParameters = RequestParameters()


@dataclass(frozen=True)
class InferRequest:
    """A parsed request."""

    images: list[bytes | RawPixels]
    """Encoded images or pixels."""
    request_id: str
    """The client's id, which the response repeats."""
    wants_binary: bool
    """Whether the output follows the JSON as bytes."""
    num_classes: int
    """How many of the top classes to name; 0: all scores as numbers."""


def parse_infer_request(
    body: Buffer,
    header_length: str | None,
    *,
    image_shape: tuple[int, int, int],
    max_images: int,
    mark_counts: MarkCounts | None = None,
) -> InferRequest:
    """Parse a request.

    Args:
        body: All of it.
        header_length: Bytes of JSON at the front, as the header Inference-Header-Content-Length says; None: all.
        image_shape: Channels, height and width of one image of `pixels`.
        max_images: Images in one request.
        mark_counts: Of the JSON, if they are counted already.

    Raises:
        BadJson: the JSON part is not JSON.
        InvalidRequest: JSON of another shape, tensors that contradict it, or too many images.
    """
    num_json = json_length(header_length, len(body))
    # Pixels may be nested, down to a list for each row.
    max_lists = _MAX_OTHER_LISTS + _MAX_NUMBERS // image_shape[2]
    request = parse_json(body[:num_json], InferRequestBody, mark_counts, max_commas=_MAX_NUMBERS, max_lists=max_lists)
    tensor, output = request.inputs[0], next(iter(request.outputs), None)
    num_images = tensor.shape[0]
    if num_images > max_images:
        raise InvalidRequest(f"The request has more than {max_images} images.", hint="Send several requests.")
    raw = _raw_of(tensor, memoryview(body)[num_json:])
    images: list[bytes | RawPixels]
    if tensor.name == "image":
        _expect(tensor, "BYTES", [[num_images], [num_images, 1]])
        # One too many is enough to refuse: a body may hold millions of empty elements.
        images = [*islice(_elements(raw) if raw is not None else _texts(tensor), num_images + 1)]
        if len(images) != num_images:
            raise InvalidRequest("The number of images is not what the input's shape says.")
    else:
        _expect(tensor, "UINT8", [[num_images, *image_shape]])
        pixels = raw if raw is not None else _numbers(tensor)
        size = math.prod(image_shape)
        if len(pixels) != num_images * size:
            raise InvalidRequest("The number of pixels is not what the input's shape says.")
        images = [RawPixels(pixels[start : start + size]) for start in range(0, len(pixels), size)]
    binary_data = output.parameters.binary_data if output else None
    wants_binary = request.parameters.binary_data_output if binary_data is None else binary_data
    return InferRequest(images, request.id, wants_binary, output.parameters.classification if output else 0)


def scores_output(rows: Sequence[Sequence[float]], *, binary: bool) -> tuple[dict[str, Any], bytes]:
    """Return scores as an output: its JSON, and the bytes that follow."""
    head: dict[str, Any] = {"name": "scores", "datatype": "FP32", "shape": [len(rows), len(rows[0])]}
    if not binary:
        return head | {"data": list(chain.from_iterable(rows))}, b""
    numbers = array("f", chain.from_iterable(rows))
    if struct.pack("=H", 1) != struct.pack("<H", 1):
        numbers.byteswap()
    return _with_size(head, numbers.tobytes())


def classes_output(rows: Sequence[Sequence[str]], *, binary: bool) -> tuple[dict[str, Any], bytes]:
    """Return named classes as an output: its JSON, and the bytes that follow."""
    head: dict[str, Any] = {"name": "scores", "datatype": "BYTES", "shape": [len(rows), len(rows[0])]}
    words = list(chain.from_iterable(rows))
    if not binary:
        return head | {"data": words}, b""
    encoded = [word.encode("utf-8", "replace") for word in words]
    return _with_size(head, b"".join(struct.pack("<I", len(word)) + word for word in encoded))


def _with_size(head: dict[str, Any], raw: bytes) -> tuple[dict[str, Any], bytes]:
    return head | {"parameters": {"binary_data_size": len(raw)}}, raw


def json_length(header_length: str | None, num_bytes: int) -> int:
    """Return how many bytes at the front of a body are JSON.

    Args:
        header_length: The header Inference-Header-Content-Length, if any.
        num_bytes: Size of the body.

    Raises:
        InvalidRequest: the header is no number, or larger than the body.
    """
    if header_length is None:
        return num_bytes
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 20):
        raise InvalidRequest("Inference-Header-Content-Length is not a number.")
    if int(header_length) > num_bytes:
        raise InvalidRequest("Inference-Header-Content-Length is larger than the body.")
    return int(header_length)


def _raw_of(tensor: InputTensor, rest: memoryview) -> bytes | None:
    """Return the bytes that follow the JSON; None where the input's data is in the JSON."""
    size = tensor.parameters.binary_data_size
    if (size is None) == (tensor.data is None) or len(rest) != (size or 0):
        raise InvalidRequest(
            "An input has either data in the JSON or binary_data_size bytes after it, and nothing else follows."
        )
    return None if size is None else bytes(rest)


def _expect(tensor: InputTensor, datatype: str, shapes: list[list[int]]) -> None:
    if tensor.datatype != datatype or tensor.shape not in shapes:
        raise InvalidRequest(f"The input {tensor.name!r} is {datatype} of shape {' or '.join(map(str, shapes))}.")


def _elements(raw: bytes) -> Iterator[bytes]:
    """Split elements that follow their length, four bytes each, little-endian."""
    start = 0
    while start < len(raw):
        end = start + 4 + int.from_bytes(raw[start : start + 4], "little")
        if len(raw) < start + 4 or end > len(raw):
            raise InvalidRequest("The bytes of the input end inside an element.")
        yield raw[start + 4 : end]
        start = end


def _texts(tensor: InputTensor) -> Iterator[bytes]:
    for text in _flat(tensor.data or []):
        if not isinstance(text, str):
            raise InvalidRequest("Images in JSON are in base64.")
        image = decode_base64(text)
        # One bad image fails the request, so that the first one is enough.
        if isinstance(image, EcaHubError):
            raise image
        yield image


def _numbers(tensor: InputTensor) -> bytes:
    numbers = list(_flat(tensor.data or []))
    # true and false would be numbers to bytes().
    if set(map(type, numbers)) <= {int}:
        try:
            return bytes(numbers)
        except ValueError:
            pass
    raise InvalidRequest("Pixels are whole numbers, 0 to 255.")


def _flat(data: list[Any]) -> Iterator[Any]:
    """Iterate over data that is flat or nested like its shape, four levels at most."""
    level: Iterator[Any] = iter(data)
    for _ in range(3):
        level = chain.from_iterable(each if isinstance(each, list) else (each,) for each in level)
    return level
