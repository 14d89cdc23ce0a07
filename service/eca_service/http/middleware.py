"""ASGI middleware around the whole app: request ids, headers, metrics, access log, CORS, errors, the Host header.

In this order from the outermost: errors pass CORS, so that a page of an allowed origin can read every one of them.

HEAD gets the response of GET without its body on every route (RFC 9110, section 9.3.2), which FastAPI alone refuses.
"""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eca_hub import EcaHubError
from eca_service.errors import BadHost, HeadersTooLarge, InternalError, InvalidRequest, NotReady
from eca_service.http.body import ClientDisconnected
from eca_service.http.responses import delay_refusal, error_response, route_path
from eca_service.logging import log_access
from eca_service.metrics import Metrics
from eca_service.models.registry import Registry

if TYPE_CHECKING:
    from eca_service.tracing import Tracing

_REQUEST_ID = re.compile(rb"[0-9A-Za-z._-]{1,64}")
# Of any version with these fields (https://www.w3.org/TR/trace-context/#versioning-of-traceparent).
_TRACEPARENT = re.compile(rb"(?:00|[0-9a-e][0-9a-f]|f[0-9a-e])-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'self'; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
]
# Otherwise a client could send its next request at the moment at which the connection is closed.
_CLOSE_HEADERS = [(b"connection", b"close")]

_PROBES = frozenset(["/healthz", "/readyz", "/metrics"])
_MOUNTS = ("/hub/", "/static/")
"""Apps that respond to HEAD themselves, without reading the file."""
_NO_SPAN = nullcontext()

_MAX_HEADER_BYTES = 16384
_MAX_HEADERS = 100

_logger = logging.getLogger(__name__)


class RequestMiddleware:
    """Outermost middleware of the app.

    Args:
        app: The app inside.
        metrics: Counts requests.
        registry: Whether the service drains is read from it.
        keeps_alive: Whether a connection is used for more than one request.
        tracing: Makes OpenTelemetry spans, if given.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        registry: Registry,
        *,
        keeps_alive: bool = True,
        tracing: "Tracing | None" = None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._registry = registry
        self._keeps_alive = keeps_alive
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        started_s = time.perf_counter()
        status: int | None = None
        is_head = scope["method"] == "HEAD"

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                closing = _CLOSE_HEADERS if self._registry.is_draining or not self._keeps_alive else []
                # A response may have a stricter policy of its own; two would both apply.
                header_names = {name for name, _ in message["headers"]}
                security = [header for header in _SECURITY_HEADERS if header[0] not in header_names]
                own = [(b"x-request-id", request_id.encode()), *security, *closing]
                message["headers"] = [*message["headers"], *own]
            elif is_head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        with self._metrics.count_request() as counted, self._traced(scope) as span:
            await self._app(scope, receive, send_with_headers)
            duration_s = time.perf_counter() - started_s
            route = _route_template(scope)
            counted(route, status, duration_s)
            trace_id = _trace_id(scope)
            if self._tracing is not None and span is not None:
                trace_id = self._tracing.describe(span, scope["method"], route, status, request_id)
        log_access(request_id, scope["method"], route, status, duration_s, trace_id)

    def _traced(self, scope: Scope) -> AbstractContextManager[Any]:
        """Return the span of a request; probes have none."""
        if self._tracing is None or route_path(scope) in _PROBES:
            return _NO_SPAN
        return self._tracing.trace_request(scope["headers"])


class CrossOriginMiddleware(CORSMiddleware):
    """Starlette's CORSMiddleware, whose refusal of a preflight is an error in the one shape."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        try:
            await super().__call__(scope, receive, send)
        except _PreflightRefused as error:
            await error_response(error, scope)(scope, receive, send)

    def preflight_response(self, request_headers: Headers) -> Response:
        """Return the response to a preflight.

        Raises:
            _PreflightRefused: its origin, method or headers are not allowed.
        """
        response = super().preflight_response(request_headers)
        if response.status_code != 200:
            raise _PreflightRefused(
                "The origin, the method or a header of this request is not allowed from a page of another origin.",
                hint="The operator lists origins in --cors_origins.",
            )
        return response


class _PreflightRefused(InvalidRequest):
    """A preflight of an origin, method or header that is not allowed."""


class ErrorMiddleware:
    """Sends a response for every error and every unexpected exception of the app inside, and for headers too large.

    Args:
        app: The app inside.
        refuse_early: Returns the error of a request that can be refused before it is routed.
    """

    def __init__(self, app: ASGIApp, *, refuse_early: Callable[[Scope], EcaHubError | None]) -> None:
        self._app = app
        self._refuse_early = refuse_early

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_started = False

        async def send_and_note(message: Message) -> None:
            nonlocal is_started
            is_started = True
            await send(message)

        error = await self._run(scope, receive, send_and_note)
        if error is not None and not is_started:
            await error_response(error, scope)(scope, receive, send)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> EcaHubError | None:
        """Run the app; return the error for which it sent no response."""
        if len(scope["headers"]) > _MAX_HEADERS or _header_bytes(scope) > _MAX_HEADER_BYTES:
            return HeadersTooLarge(
                f"Request line and headers have more than {_MAX_HEADER_BYTES} bytes, or more than {_MAX_HEADERS} lines."
            )
        try:
            if (refusal := self._refuse_early(scope)) is not None:
                await delay_refusal(refusal)
                return refusal
            runs_get = scope["method"] == "HEAD" and not route_path(scope).startswith(_MOUNTS)
            routed = {**scope, "method": "GET"} if runs_get else scope
            try:
                await self._app(routed, receive, send)
            finally:
                if "route" in routed:
                    scope["route"] = routed["route"]
        except ClientDisconnected:
            return None
        except EcaHubError as error:
            # Raised by a middleware; errors of routes are handled inside the app.
            return error
        except asyncio.CancelledError:
            # The server cancels what still runs when the time to drain is over; the client gets a response first.
            return NotReady("The service is shutting down.", retry_after_s=5)
        except Exception:
            _logger.exception("request %s failed", scope["state"]["request_id"])
            return InternalError("The service failed unexpectedly.", hint="See its log for this request id.")
        return None


class HostCheckMiddleware:
    """Starlette's TrustedHostMiddleware with an error in the one shape.

    Without it, a web page whose host name resolves to 127.0.0.1 (DNS rebinding) could use a service without keys.

    Args:
        app: The app inside.
        allowed_hosts: Names; `*.example.com` is a pattern, `*` allows any.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Sequence[str]) -> None:
        self._app = app
        self._trusted = TrustedHostMiddleware(self._accept, allowed_hosts, www_redirect=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the Host header of one request.

        Raises:
            BadHost: it is missing or not allowed.
        """
        if scope["type"] == "http" and not _is_without_host(scope):
            await self._trusted(scope, receive, _discard)
            if not scope["state"].get("has_trusted_host"):
                raise BadHost(
                    "The Host header is not a name that this service accepts.",
                    hint="Its operator lists the names that clients and proxies use: --allowed_hosts NAME.",
                )
        await self._app(scope, receive, send)

    @staticmethod
    async def _accept(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["has_trusted_host"] = True


def _is_without_host(scope: Scope) -> bool:
    """Whether a request has no Host header, as health checks in HTTP/1.0; a browser always sends one."""
    return scope.get("http_version") == "1.0" and all(name != b"host" for name, _ in scope["headers"])


async def _discard(message: Message) -> None:
    """Drop the plain-text response of TrustedHostMiddleware."""


def _route_template(scope: Scope) -> str:
    """Return the template of the matched route: a path could hold anything, and would make endless metrics."""
    return str(getattr(scope.get("route"), "path", "none"))


def _header_bytes(scope: Scope) -> int:
    """Return the size of request line and headers, which uvicorn bounds only while they are incomplete."""
    fields = sum(len(name) + len(value) for name, value in scope["headers"])
    return fields + len(scope.get("raw_path", b"")) + len(scope["query_string"])


def _trace_id(scope: Scope) -> str:
    """Return the trace id of a valid W3C traceparent header, or an empty string."""
    values = [value for name, value in scope["headers"] if name == b"traceparent"]
    match = _TRACEPARENT.fullmatch(values[0]) if len(values) == 1 else None
    return match[1].decode() if match and match[1].strip(b"0") and match[2].strip(b"0") else ""


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value.decode())
    return uuid.uuid4().hex
