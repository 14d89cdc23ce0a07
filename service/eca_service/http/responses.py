"""From errors to answers: every refusal, FastAPI's own included, has one shape.

    {"error": {"code": "too_many_pixels", "message": "...", "hint": "...", "request_id": "..."}}

but below /v2, where a protocol that others wrote has another.

What the caller sent is never repeated: it may be hostile, and it may not even be text.
"""

import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from eca_hub import EcaHubError
from eca_service.errors import STATUS_OF, BodyTimeout, InvalidRequest, TryLater, Unauthorized


def json_answer(
    body: Mapping[str, Any] | list[Any], *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Answer with JSON. Text is escaped to ASCII, so that labels with lone surrogates cannot break the answer."""
    content = json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
    return Response(content, status, headers, media_type="application/json")


def error_entry(error: EcaHubError, request_id: str) -> dict[str, dict[str, str]]:
    """The one shape of an error."""
    return {"error": {"code": error.code, "message": error.message, "hint": error.hint, "request_id": request_id}}


def error_answer(error: EcaHubError, request_id: str, path: str) -> Response:
    """Answer with an error, its status, and when to come back if that is known.

    Args:
        error: What went wrong.
        request_id: What to call the request.
        path: Where it was sent: below /v2 the Open Inference Protocol wants the error to be a sentence.
    """
    headers = {}
    if isinstance(error, TryLater):
        headers["retry-after"] = str(error.retry_after_s)
    if isinstance(error, BodyTimeout):
        headers["connection"] = "close"
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    entry: dict[str, Any] = error_entry(error, request_id)
    if path.startswith("/v2"):
        entry = {**entry["error"], "error": str(error)}
    return json_answer(entry, status=STATUS_OF[error.code], headers=headers)


def request_id_of(request: Request) -> str:
    """The id that the caller gave the request, or that we gave it."""
    return str(request.state.request_id)


class _HttpError(EcaHubError):
    """What the router refuses by itself, under a code of ours."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code  # type: ignore[misc]


def add_error_handlers(app: FastAPI) -> None:
    """Make every refusal of the app answer in the one shape."""
    app.add_exception_handler(EcaHubError, _answer_ours)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(HTTPException, _answer_router)


async def _answer_ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, EcaHubError)
    return error_answer(error, request_id_of(request), request.scope["path"])


async def _answer_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_answer(_in_words(error), request_id_of(request), request.scope["path"])


def _in_words(error: RequestValidationError) -> InvalidRequest:
    """Say which parameter is wrong and why; a parameter that is not ours is not named, for its name is the caller's."""
    sentences = []
    for problem in error.errors()[:3]:
        place = " ".join(str(step) for step in problem["loc"][:2])
        if problem["type"] == "extra_forbidden":
            sentences.append(f"An unknown parameter stands in the {problem['loc'][0]}.")
        else:
            sentences.append(f"{place}: {problem['msg']}.")
    return InvalidRequest(" ".join(sentences), hint="See /docs.")


async def _answer_router(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        ours = _HttpError("not_found", "There is nothing at this address.", "All addresses: /docs")
    elif error.status_code == 405:
        ours = _HttpError("method_not_allowed", "This address does not know this method.", "See /docs.")
    else:
        ours = _HttpError("invalid_request", "The request cannot be read.", "See /docs.")
    answer = error_answer(ours, request_id_of(request), request.scope["path"])
    answer.status_code = error.status_code
    answer.headers.update(error.headers or {})
    return answer
