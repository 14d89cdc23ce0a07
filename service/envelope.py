"""What every answer carries, whatever is inside: a request id, the headers that browsers need, and no accident.

An exception that nobody caught becomes a 500 in the one error shape, with its trace in the log and not in the answer.
"""

import asyncio
import logging
import re
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eca_hub import EcaHubError
from service.answers import error_answer
from service.body import ClientGone
from service.errors import NotReady

_REQUEST_ID = re.compile(rb"[0-9A-Za-z._-]{1,64}")
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'self'; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
]

_MAX_HEAD_BYTES = 16384

_logger = logging.getLogger(__name__)


class Internal(EcaHubError):
    """An accident of ours."""

    code = "internal"


class HeadTooLarge(EcaHubError):
    """An address or headers of more bytes than anybody needs."""

    code = "head_too_large"

    def __init__(self) -> None:
        super().__init__(f"Address and headers have more than {_MAX_HEAD_BYTES} bytes.")


class Envelope:
    """ASGI middleware around the whole app.

    Args:
        app: What answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id_in(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        if _head_bytes(scope) > _MAX_HEAD_BYTES:
            await error_answer(HeadTooLarge(), request_id)(scope, receive, send)
            return
        has_started = False

        async def send_wrapped(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode()), *_HEADERS]
            await send(message)

        try:
            await self._app(scope, receive, send_wrapped)
            return
        except ClientGone:
            return
        except asyncio.CancelledError:
            # The server cancels what is still running when the time to drain is over: the caller shall hear of it.
            error: EcaHubError = NotReady("The service is shutting down.", retry_after_s=5)
        except Exception:
            _logger.exception("request %s failed", request_id)
            error = Internal("The service made a mistake.", hint="Its log tells more under the request id.")
        if not has_started:
            await error_answer(error, request_id)(scope, receive, send_wrapped)


def _head_bytes(scope: Scope) -> int:
    """Size of what came before the body. uvicorn bounds it only while it is incomplete."""
    fields = sum(len(name) + len(value) for name, value in scope["headers"])
    return fields + len(scope.get("raw_path", b"")) + len(scope["query_string"])


def _request_id_in(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value.decode())
    return uuid.uuid4().hex
