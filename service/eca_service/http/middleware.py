"""What every answer carries, whatever is inside: a request id, the headers that browsers need, and no accident.

An exception that nobody caught becomes a 500 in the one error shape, with its trace in the log and not in the answer.
"""

import asyncio
import logging
import re
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eca_hub import EcaHubError
from eca_service.errors import NotReady
from eca_service.http.body import ClientGone
from eca_service.http.responses import error_answer
from eca_service.metrics import Metrics
from eca_service.models.registry import Registry

_REQUEST_ID = re.compile(rb"[0-9A-Za-z._-]{1,64}")
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'self'; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
]
# Who keeps the connection might ask again in the very moment in which the service closes it.
_FAREWELL = [(b"connection", b"close")]

_MAX_HEAD_BYTES = 16384
_MAX_HEADERS = 100

_logger = logging.getLogger(__name__)


class Internal(EcaHubError):
    """An accident of ours."""

    code = "internal"


class HeadTooLarge(EcaHubError):
    """An address or headers of more bytes than anybody needs."""

    code = "head_too_large"

    def __init__(self) -> None:
        super().__init__(f"Address and headers have more than {_MAX_HEAD_BYTES} bytes, or than {_MAX_HEADERS} lines.")


class Envelope:
    """ASGI middleware around the whole app.

    Args:
        app: What answers.
        metrics: Where requests are counted.
        registry: Whether the service is about to end.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, registry: Registry) -> None:
        self._app = app
        self._metrics = metrics
        self._registry = registry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id_in(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        started_s = time.perf_counter()
        status: int | None = None

        async def send_wrapped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                farewell = _FAREWELL if self._registry.is_draining else []
                own = [(b"x-request-id", request_id.encode()), *_HEADERS, *farewell]
                message["headers"] = [*message["headers"], *own]
            await send(message)

        self._metrics.received.add()
        error = await self._try(scope, receive, send_wrapped)
        if error is not None and status is None:
            await error_answer(error, request_id, scope["path"])(scope, receive, send_wrapped)
        route = getattr(scope.get("route"), "path", "none")
        self._metrics.requests.add(route, "gone" if status is None else str(status))
        self._metrics.request_seconds.observe(time.perf_counter() - started_s, route)

    async def _try(self, scope: Scope, receive: Receive, send: Send) -> EcaHubError | None:
        """Run the app; say what the caller should be told that it did not tell."""
        if len(scope["headers"]) > _MAX_HEADERS or _head_bytes(scope) > _MAX_HEAD_BYTES:
            return HeadTooLarge()
        try:
            await self._app(scope, receive, send)
        except ClientGone:
            return None
        except asyncio.CancelledError:
            # The server cancels what still runs when the time to drain is over: the caller shall hear of it.
            return NotReady("The service is shutting down.", retry_after_s=5)
        except Exception:
            _logger.exception("request %s failed", scope["state"]["request_id"])
            return Internal("The service made a mistake.", hint="Its log tells more under the request id.")
        return None


def _head_bytes(scope: Scope) -> int:
    """Size of what came before the body. uvicorn bounds it only while it is incomplete."""
    fields = sum(len(name) + len(value) for name, value in scope["headers"])
    return fields + len(scope.get("raw_path", b"")) + len(scope["query_string"])


def _request_id_in(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value.decode())
    return uuid.uuid4().hex
