"""Find the images in a body: the bytes themselves, a form with files, or JSON.

The decoder decides what is an image: content types of images and file names are not used.
"""

import re
from dataclasses import dataclass, replace

from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from eca_hub import EcaHubError
from eca_service.errors import BadMultipart, BodyTooLarge, InvalidRequest, UnsupportedType
from eca_service.http.strict_json import Buffer, HFParameters, HFRequest, MarkCounts, parse_hf_json, parse_images_json
from eca_service.settings import JSON_COPIES

# The last one is what curl --data-binary sends by default.
_RAW_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")
_FORM_TYPE = "multipart/form-data"
_JSON_TYPE = "application/json"

_MAX_PART_HEADER_BYTES = 4096
_MAX_PART_HEADERS = 8
_CHUNK_BYTES = 2**16
# RFC 2046, 5.1.1; an empty or absurd boundary would be searched for in megabytes.
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")


@dataclass(frozen=True)
class UploadLimits:
    """How much a request may hold."""

    max_image_bytes: int
    """Size of one image."""
    max_images: int
    """Images in one request."""
    max_request_bytes: int
    """Size of the whole body where it holds more than the bytes of one image."""

    def max_body_bytes(self, content_type: str) -> int:
        """Return how large a body of this type may be."""
        holds_several = media_type_of(content_type) in (_FORM_TYPE, _JSON_TYPE)
        return self.max_request_bytes if holds_several else self.max_image_bytes


def num_copies_of(content_type: str) -> int:
    """Return how often the bytes of a body of this type are in memory at once while it is parsed.

    An image: the body and the image. A form: the body and its files. JSON: see `JSON_COPIES`.
    """
    return JSON_COPIES if media_type_of(content_type) == _JSON_TYPE else 2


def num_json_bytes(body: Buffer, content_type: str) -> int:
    """Return how many bytes of a body of this type are JSON: all or none."""
    return len(body) if media_type_of(content_type) == _JSON_TYPE else 0


def parse_images(
    body: Buffer, content_type: str, limits: UploadLimits, mark_counts: MarkCounts | None = None
) -> list[bytes | EcaHubError]:
    """Find the images in a body; a bad one comes back as its error and does not affect the others.

    Args:
        body: All of it.
        content_type: The header; empty when there is none.
        limits: How much a request may hold.
        mark_counts: Of its JSON, if they are counted already.

    Raises:
        UnsupportedType: a type that holds no images.
        BadMultipart: a malformed or incomplete form.
        BadJson: a body that should be JSON and is not.
        InvalidRequest: no images, too many, or anything else beside them.
    """
    media_type = media_type_of(content_type)
    images: list[bytes | EcaHubError]
    if media_type == _FORM_TYPE:
        images = [*_parse_form(body, content_type, limits.max_images)]
    elif media_type == _JSON_TYPE:
        images = parse_images_json(body, mark_counts)
    else:
        hint = "Send the bytes of an image as image/*, files named 'file' in a form, or JSON."
        images = [_raw_image(body, media_type, hint)]
    if len(images) > limits.max_images:
        raise InvalidRequest(f"The request has more than {limits.max_images} images.", hint="Send several requests.")
    return [check_image_size(image, limits) for image in images]


def parse_hf_request(
    body: Buffer, content_type: str, limits: UploadLimits, mark_counts: MarkCounts | None = None
) -> HFRequest:
    """Find the one image of a request in Hugging Face's shape: its bytes, or JSON with options.

    Raises:
        UnsupportedType: a type that holds no image.
        BadJson: a body that should be JSON and is not.
        InvalidRequest: JSON of another shape.
    """
    media_type = media_type_of(content_type)
    if media_type == _JSON_TYPE:
        request = parse_hf_json(body, mark_counts)
    else:
        hint = "Send the bytes of an image as image/*, or JSON."
        request = HFRequest(_raw_image(body, media_type, hint), HFParameters())
    return replace(request, image=check_image_size(request.image, limits))


def media_type_of(content_type: str) -> str:
    """Return the type without its parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def check_image_size(image: bytes | EcaHubError, limits: UploadLimits) -> bytes | EcaHubError:
    """Return the image, or an error for one of too many bytes, before it waits for a decoder."""
    max_bytes = limits.max_image_bytes
    if isinstance(image, EcaHubError) or len(image) <= max_bytes:
        return image
    return BodyTooLarge(
        f"The image has {len(image) / 2**20:.1f} MiB; the limit is {max_bytes / 2**20:g} MiB.", hint="Shrink it."
    )


def _raw_image(body: Buffer, media_type: str, hint: str) -> bytes:
    if media_type in _RAW_TYPES or media_type.startswith("image/"):
        return bytes(body)
    raise UnsupportedType("This content type holds no images.", hint=hint)


def _parse_form(body: Buffer, content_type: str, max_files: int) -> list[bytes]:
    boundary = parse_options_header(content_type)[1].get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise BadMultipart(
            "The form's Content-Type has no valid boundary.", hint="Let your HTTP client write the header."
        )
    files: list[bytearray] = []
    try:
        with PushMultipartParser(
            boundary,
            max_header_size=_MAX_PART_HEADER_BYTES,
            max_header_count=_MAX_PART_HEADERS,
            # File names are not used, so that they need not be UTF-8.
            header_charset="latin-1",
        ) as parser:
            for start in range(0, len(body), _CHUNK_BYTES):
                # In chunks, because the parser copies what it is given.
                for event in parser.parse(bytes(memoryview(body)[start : start + _CHUNK_BYTES])):
                    if isinstance(event, MultipartSegment):
                        _check_part(event)
                        if len(files) == max_files:
                            raise InvalidRequest(
                                f"The form has more than {max_files} files.", hint="Send several requests."
                            )
                        files.append(bytearray())
                    elif event:
                        files[-1] += event
                if parser.closed:
                    break
    except MultipartError as error:
        raise BadMultipart(
            "The form is malformed or incomplete.", hint="Let your HTTP client write it: curl -F file=@cat.jpg"
        ) from error
    if not files:
        raise InvalidRequest("The form has no files.", hint="Name each file part 'file': curl -F file=@cat.jpg")
    images = []
    for file in files:
        images.append(bytes(file))
        file.clear()
    return images


def _check_part(part: MultipartSegment) -> None:
    has_name = part.filename is not None or "filename*=" in part.header("Content-Disposition", "").lower()
    if part.name != "file" or not has_name:
        raise InvalidRequest("A part of the form is not a file named 'file'.", hint="curl -F file=@cat.jpg")
