"""Tensors in the bodies of the Open Inference Protocol, version 2: JSON, or JSON with raw bytes behind it.

A request names one input: `image`, encoded pictures (BYTES), or `pixels`, pictures of the network's own size (UINT8,
N x 3 x H x W, red first). An answer has the output `scores` (FP32, N x K), or for an output that asks for
`classification` the likeliest classes as "score:index:label" (BYTES). Knows bytes and words; nothing of requests,
pictures or models.
"""

import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from eca_hub import EcaHubError
from eca_service.errors import InvalidRequest
from eca_service.http.strict_json import read_json, unpack_base64
from eca_service.inference.types import RawPixels

_MAX_NUMBERS = 1_000_000


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class TensorParameters(_Part):
    """What a caller says of one tensor."""

    binary_data_size: Annotated[int | None, Field(ge=0, description="Bytes of this tensor behind the JSON.")] = None


class InputTensor(_Part):
    """Pictures."""

    name: Annotated[Literal["image", "pixels"], Field(examples=["image"])]
    datatype: Annotated[Literal["BYTES", "UINT8"], Field(examples=["BYTES"])]
    shape: Annotated[list[Annotated[int, Field(ge=1, le=100_000)]], Field(min_length=1, max_length=4, examples=[[1]])]
    parameters: TensorParameters = TensorParameters()
    data: Annotated[
        list[Any] | None,
        Field(description="Pictures in base64, or pixels; left out where the bytes follow.", examples=[["iVBORw0..."]]),
    ] = None


class OutputParameters(_Part):
    """How a caller wants one output."""

    binary_data: bool | None = None
    classification: Annotated[int, Field(ge=0, le=100_000, description="How many classes to name; 0: scores.")] = 0


class OutputTensor(_Part):
    """What a caller wants to have."""

    name: Annotated[Literal["scores"], Field(examples=["scores"])]
    parameters: OutputParameters = OutputParameters()


class RequestParameters(_Part):
    """What a caller says of the request."""

    binary_data_output: bool = False


class InferBody(_Part):
    """A request for scores."""

    id: Annotated[str, Field(pattern=r"^[0-9A-Za-z._\-]{0,64}$", description="Comes back as it is.")] = ""
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=1)]
    outputs: Annotated[list[OutputTensor], Field(max_length=1)] = []
    parameters: RequestParameters = RequestParameters()


@dataclass(frozen=True)
class Inference:
    """What a caller of the protocol asks."""

    pictures: list[bytes | RawPixels | EcaHubError]
    """Encoded pictures or pixels; or what is wrong with one."""
    request_id: str
    """The caller's own, to be given back."""
    wants_binary: bool
    """Whether the output shall follow the JSON as bytes."""
    num_classes: int
    """How many of the likeliest classes to name; 0 asks for all scores as numbers."""


def inference_in(
    body: bytes, header_length: str | None, *, height_px: int, width_px: int, max_images: int
) -> Inference:
    """Find the pictures of a request.

    Args:
        body: All of it.
        header_length: Bytes of JSON at the front, as the header Inference-Header-Content-Length says; None means all.
        height_px: What `pixels` must have.
        width_px: What `pixels` must have.
        max_images: Pictures in one request.

    Raises:
        BadJson: what should be JSON is not.
        InvalidRequest: JSON of another shape, tensors that are not what they announce, or too many pictures.
    """
    num_json = _length(header_length, len(body))
    read = read_json(body[:num_json], InferBody, max_marks=_MAX_NUMBERS)
    tensor, wanted = read.inputs[0], next(iter(read.outputs), None)
    num_images = tensor.shape[0]
    if num_images > max_images:
        raise InvalidRequest(f"The request has more than {max_images} pictures.", hint="Send several requests.")
    raw = _raw_of(tensor, body[num_json:])
    pictures: list[bytes | RawPixels | EcaHubError]
    if tensor.name == "image":
        _expect(tensor, "BYTES", [[num_images], [num_images, 1]])
        pictures = [*(_elements(raw) if raw is not None else _texts(tensor))]
        if len(pictures) != num_images:
            raise InvalidRequest("The input has not as many pictures as its shape says.")
    else:
        _expect(tensor, "UINT8", [[num_images, 3, height_px, width_px]])
        pixels = raw if raw is not None else _numbers(tensor)
        size = 3 * height_px * width_px
        if len(pixels) != num_images * size:
            raise InvalidRequest("The input has not as many numbers as its shape says.")
        pictures = [RawPixels(pixels[start : start + size]) for start in range(0, len(pixels), size)]
    asked = wanted.parameters.binary_data if wanted else None
    wants_binary = read.parameters.binary_data_output if asked is None else asked
    return Inference(pictures, read.id, wants_binary, wanted.parameters.classification if wanted else 0)


def scores_output(rows: Sequence[Sequence[float]], *, binary: bool) -> tuple[dict[str, Any], bytes]:
    """Write scores as an output: what stands in the JSON, and what follows it."""
    head: dict[str, Any] = {"name": "scores", "datatype": "FP32", "shape": [len(rows), len(rows[0])]}
    if not binary:
        return head | {"data": list(chain.from_iterable(rows))}, b""
    numbers = array("f", chain.from_iterable(rows))
    if struct.pack("=H", 1) != struct.pack("<H", 1):
        numbers.byteswap()
    return _with_size(head, numbers.tobytes())


def classes_output(rows: Sequence[Sequence[str]], *, binary: bool) -> tuple[dict[str, Any], bytes]:
    """Write named classes as an output: what stands in the JSON, and what follows it."""
    head: dict[str, Any] = {"name": "scores", "datatype": "BYTES", "shape": [len(rows), len(rows[0])]}
    words = list(chain.from_iterable(rows))
    if not binary:
        return head | {"data": words}, b""
    encoded = [word.encode("utf-8", "replace") for word in words]
    return _with_size(head, b"".join(struct.pack("<I", len(word)) + word for word in encoded))


def _with_size(head: dict[str, Any], raw: bytes) -> tuple[dict[str, Any], bytes]:
    return head | {"parameters": {"binary_data_size": len(raw)}}, raw


def _length(header_length: str | None, num_bytes: int) -> int:
    if header_length is None:
        return num_bytes
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 20):
        raise InvalidRequest("Inference-Header-Content-Length is not a number.")
    if int(header_length) > num_bytes:
        raise InvalidRequest("Inference-Header-Content-Length says more than the body has.")
    return int(header_length)


def _raw_of(tensor: InputTensor, rest: bytes) -> bytes | None:
    """The bytes of the input that follow the JSON; None where its data stand in the JSON."""
    size = tensor.parameters.binary_data_size
    if (size is None) == (tensor.data is None) or len(rest) != (size or 0):
        raise InvalidRequest(
            "An input has either data in the JSON or binary_data_size bytes behind it, and nothing else follows."
        )
    return None if size is None else rest


def _expect(tensor: InputTensor, datatype: str, shapes: list[list[int]]) -> None:
    if tensor.datatype != datatype or tensor.shape not in shapes:
        raise InvalidRequest(f"The input {tensor.name!r} is {datatype} of shape {' or '.join(map(str, shapes))}.")


def _elements(raw: bytes) -> Iterator[bytes]:
    """Split what is four bytes of length, little end first, before each element."""
    place = 0
    while place < len(raw):
        end = place + 4 + int.from_bytes(raw[place : place + 4], "little")
        if len(raw) < place + 4 or end > len(raw):
            raise InvalidRequest("The bytes of the input end inside an element.")
        yield raw[place + 4 : end]
        place = end


def _texts(tensor: InputTensor) -> Iterator[bytes | EcaHubError]:
    for text in _flat(tensor.data or []):
        if not isinstance(text, str):
            raise InvalidRequest("Pictures in JSON are in base64.")
        yield unpack_base64(text)


def _numbers(tensor: InputTensor) -> bytes:
    try:
        return bytes(_flat(tensor.data or []))
    except (TypeError, ValueError):
        raise InvalidRequest("Pixels are whole numbers, 0 to 255.") from None


def _flat(data: list[Any]) -> Iterator[Any]:
    """Walk through data that is flat or nested like its shape, four deep at most."""
    level: Iterator[Any] = iter(data)
    for _ in range(3):
        level = chain.from_iterable(each if isinstance(each, list) else (each,) for each in level)
    return level
