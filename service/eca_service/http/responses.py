"""JSON responses and errors: every error, FastAPI's own included, has one shape.

    {"error": {"code": "too_many_pixels", "message": "...", "hint": "...", "request_id": "..."}}

except below /v2, where the Open Inference Protocol defines another one. What the client sent is never repeated: it may
be hostile, and may not even be text.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from eca_hub import EcaHubError
from eca_service.errors import STATUS_OF, BodyTimeout, InvalidRequest, Overloaded, RetryLater, Unauthorized


def json_response(
    body: Mapping[str, Any] | list[Any], *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return JSON. Text is escaped to ASCII, so that a label with a lone surrogate cannot break the response."""
    content = json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
    return Response(content, status, headers, media_type="application/json")


def error_body(error: EcaHubError, request_id: str) -> dict[str, dict[str, str]]:
    """Return the one shape of an error."""
    return {"error": {"code": error.code, "message": error.message, "hint": error.hint, "request_id": request_id}}


def error_response(error: EcaHubError, scope: Scope) -> Response:
    """Return an error with its status, and with Retry-After where it is temporary.

    Args:
        error: The error.
        scope: The request.
    """
    headers = {}
    if isinstance(error, RetryLater):
        headers["retry-after"] = str(error.retry_after_s)
    if isinstance(error, BodyTimeout):
        headers["connection"] = "close"
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    body: dict[str, Any] = error_body(error, scope["state"]["request_id"])
    if route_path(scope).startswith("/v2/") or route_path(scope) == "/v2":
        body = {**body["error"], "error": str(error)}
    return json_response(body, status=STATUS_OF[error.code], headers=headers)


async def delay_refusal(error: EcaHubError) -> None:
    """Wait before a 429 is sent to clients that retry too fast; see eca_service.inference.admission."""
    if isinstance(error, Overloaded) and error.response_delay_s:
        await asyncio.sleep(error.response_delay_s)


def route_path(scope: Scope) -> str:
    """Return the path below the prefix that a reverse proxy strips."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def request_id_of(request: Request) -> str:
    """Return the id that the client gave the request, or that the middleware made."""
    return str(request.state.request_id)


class _RouterError(EcaHubError):
    """An error of the router under one of our codes."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code  # type: ignore[misc]


def add_error_handlers(app: FastAPI) -> None:
    """Make every error of the app a response in the one shape."""
    app.add_exception_handler(EcaHubError, _handle_ours)
    app.add_exception_handler(RequestValidationError, _handle_validation)
    app.add_exception_handler(HTTPException, _handle_router)


async def _handle_ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, EcaHubError)
    if isinstance(error, RetryLater):
        request.app.state.service.metrics.rejected.labels(error.code).inc()
        await delay_refusal(error)
    return error_response(error, request.scope)


async def _handle_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(_invalid_parameters(error), request.scope)


def _invalid_parameters(error: RequestValidationError) -> InvalidRequest:
    """Name the parameter and what is wrong; an unknown parameter is not named, as its name is the client's text."""
    sentences = []
    for problem in error.errors()[:3]:
        location = " ".join(str(step) for step in problem["loc"][:2])
        if problem["type"] == "extra_forbidden":
            sentences.append(f"The {problem['loc'][0]} has an unknown parameter.")
        else:
            sentences.append(f"{location}: {problem['msg']}.")
    return InvalidRequest(" ".join(sentences), hint="See /docs.")


async def _handle_router(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        router_error = _RouterError("not_found", "There is no such route.", "All routes: /docs")
    elif error.status_code == 405:
        router_error = _RouterError("method_not_allowed", "This route does not support this method.", "See /docs.")
    else:
        router_error = _RouterError("invalid_request", "The request cannot be read.", "See /docs.")
    response = error_response(router_error, request.scope)
    response.status_code = error.status_code
    response.headers.update(error.headers or {})
    return response
