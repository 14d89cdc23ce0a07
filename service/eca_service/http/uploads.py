"""From the body of a request to the pictures in it: the bytes themselves, a form with files, or JSON.

What a picture is, the decoder decides: content types of pictures are not believed. File names are not looked at.
Knows bytes and content types; nothing of requests, pixels or models.
"""

import re
from dataclasses import dataclass, replace

from eca_hub import EcaHubError
from eca_service.errors import BadMultipart, BodyTooLarge, InvalidRequest, UnsupportedType
from eca_service.http.strict_json import Task, pictures_in_json, task_in_json

# What curl --data-binary sends when it is told nothing else counts as a picture.
_RAW_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")
_FORM_TYPE = "multipart/form-data"
_JSON_TYPE = "application/json"

_MAX_PART_HEAD_BYTES = 4096
_PARAMETER = re.compile(r';\s*([\w-]+\*?)\s*=\s*("(?:[^"\\]|\\.)*"|[^;\s"]*)')
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")


@dataclass(frozen=True)
class UploadLimits:
    """What a request may hold."""

    max_image_bytes: int
    """Size of one picture."""
    max_images: int
    """Pictures in one request."""
    max_request_bytes: int
    """Size of the whole body, when it holds more than the bytes of one picture."""

    def max_body_bytes(self, content_type: str) -> int:
        """How large a body of this type may be."""
        holds_several = media_type_of(content_type) in (_FORM_TYPE, _JSON_TYPE)
        return self.max_request_bytes if holds_several else self.max_image_bytes


def pictures_in(body: bytes, content_type: str, limits: UploadLimits) -> list[bytes | EcaHubError]:
    """Find the pictures in a body; a bad one comes back as its error and does not spoil the others.

    Args:
        body: All of it.
        content_type: The header, empty when there is none.
        limits: What a request may hold.

    Raises:
        UnsupportedType: a type that holds no pictures.
        BadMultipart: a form that is not whole or not well-formed.
        BadJson: a body that should be JSON and is not.
        InvalidRequest: no pictures, too many, or anything else beside them.
    """
    media_type = media_type_of(content_type)
    pictures: list[bytes | EcaHubError]
    if media_type == _FORM_TYPE:
        pictures = [*_files_in(body, _boundary_of(content_type), limits.max_images)]
    elif media_type == _JSON_TYPE:
        pictures = pictures_in_json(body)
    else:
        pictures = [_raw_picture(body, media_type)]
    if len(pictures) > limits.max_images:
        raise InvalidRequest(f"The request has more than {limits.max_images} pictures.", hint="Send several requests.")
    return [checked(picture, limits) for picture in pictures]


def task_in(body: bytes, content_type: str, limits: UploadLimits) -> Task:
    """Find the one picture of a request in Hugging Face's shape: its bytes, or JSON with options.

    Raises:
        UnsupportedType: a type that holds no picture.
        BadJson: a body that should be JSON and is not.
        InvalidRequest: JSON of another shape.
    """
    media_type = media_type_of(content_type)
    if media_type == _JSON_TYPE:
        task = task_in_json(body)
    else:
        task = Task(_raw_picture(body, media_type), top_k=None, activation="softmax")
    return replace(task, picture=checked(task.picture, limits))


def media_type_of(content_type: str) -> str:
    """The type without its parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def _raw_picture(body: bytes, media_type: str) -> bytes:
    if media_type in _RAW_TYPES or media_type.startswith("image/"):
        return body
    raise UnsupportedType(
        "This content type holds no pictures.",
        hint="Send the bytes of an image as image/*, files named 'file' in a form, or JSON.",
    )


def checked(picture: bytes | EcaHubError, limits: UploadLimits) -> bytes | EcaHubError:
    """Refuse a picture of too many bytes before it waits for a decoder."""
    max_bytes = limits.max_image_bytes
    if isinstance(picture, EcaHubError) or len(picture) <= max_bytes:
        return picture
    return BodyTooLarge(
        f"The picture has {len(picture) / 2**20:.1f} MiB; the limit is {max_bytes / 2**20:g} MiB.", hint="Shrink it."
    )


def _boundary_of(content_type: str) -> bytes:
    boundary = _parameters_of(content_type).get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise BadMultipart(
            "The form's Content-Type has no valid boundary.", hint="Let your HTTP client write the header."
        )
    return boundary.encode()


def _files_in(body: bytes, boundary: bytes, max_files: int) -> list[bytes]:
    """Split a form at its boundaries. The body is in memory, so this needs no state machine."""
    delimiter = b"\r\n--" + boundary
    # A form of max_files has one more delimiter than files, and one piece more than delimiters.
    pieces = (b"\r\n" + body).split(delimiter, max_files + 2)
    files: list[bytes] = []
    for piece in pieces[1:]:
        if piece.startswith(b"--"):
            break
        if len(files) == max_files:
            raise InvalidRequest(f"The form has more than {max_files} files.", hint="Send several requests.")
        files.append(_file_in(piece))
    else:
        raise BadMultipart("The form is not whole: its last boundary is missing.")
    if not files:
        raise InvalidRequest("The form has no files.", hint="Name each file part 'file': curl -F file=@cat.jpg")
    return files


def _file_in(piece: bytes) -> bytes:
    """Take the content of one part: what follows the blank line, if its head says that it is a file of ours."""
    padding, newline, part = piece.partition(b"\r\n")
    head, blank_line, content = (b"\r\n" + part).partition(b"\r\n\r\n")
    if padding.strip(b" \t") or not newline or not blank_line:
        raise BadMultipart("A part of the form is not well-formed.")
    if len(head) > _MAX_PART_HEAD_BYTES:
        raise BadMultipart(f"The head of a part has more than {_MAX_PART_HEAD_BYTES} bytes.")
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            parameters = _parameters_of(value.decode("latin-1"))
            if parameters.get("name") != "file" or not {"filename", "filename*"} & parameters.keys():
                raise InvalidRequest("A part of the form is no file named 'file'.", hint="curl -F file=@cat.jpg")
            return content
    raise BadMultipart("A part of the form has no Content-Disposition.")


def _parameters_of(header: str) -> dict[str, str]:
    """Read the parameters of a header; the first of a name counts."""
    parameters: dict[str, str] = {}
    for name, value in _PARAMETER.findall(header):
        if value.startswith('"'):
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        parameters.setdefault(name.lower(), value)
    return parameters
