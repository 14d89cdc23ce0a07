"""What Ray's proxy does when the replica of a request is lost: it sends the request to another one, or responds 503.

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=eca_service.ray_proxy:middlewares ray start --head

Ray itself responds 500 with an empty error to a request whose replica dies (Ray 2.60: `get_http_response_status` of
`ray.serve._private.http_util`), which no client may repeat. The rule is nginx's of docker-compose.yml: a request is
repeated when there is no response, or a 503 (the replica drains, or its engine was replaced), three times at most. This
holds for POST as well, because classification is idempotent, but not for loading and unloading models, which is done at
one replica at a time. 429 and 504 are passed on: other replicas are as busy.
"""

import logging
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eca_service.errors import WorkerLost
from eca_service.http.responses import error_response, route_path

# Ray's proxy has a log file for it.
_logger = logging.getLogger("ray.serve")

MAX_TRIES = 3
MAX_KEPT_BYTES = 33 << 20
"""Longer bodies are not kept, so that their requests cannot be repeated; --max_request_mib is 32."""


def middlewares() -> list[Middleware]:
    """Return what Ray's proxy puts around its own app; called by Ray when a proxy starts."""
    return [Middleware(RepeatLostRequests)]


class RepeatLostRequests:
    """Sends a request again whose replica is lost.

    Args:
        app: Ray's proxy, which chooses a replica for every call and returns without a response when it is lost.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive, can_be_repeated=not _changes_models(scope))
        for num_left in reversed(range(MAX_TRIES)):
            attempt = _Attempt(send, body, num_left)
            await self._app(scope, body.receive, attempt.send)
            if attempt.has_response or body.is_disconnected:
                return
            if not body.can_be_repeated:
                break
            if num_left:
                _logger.warning("request %s has lost its replica and is sent again", _id_of(scope))
            body.rewind()
        await _respond_lost(scope, receive, send)


@dataclass
class _Body:
    """The messages of a request's body, kept until its response begins."""

    next_message: Receive
    is_disconnected: bool = False
    can_be_repeated: bool = True
    _kept: list[Message] = field(default_factory=list)
    _next_index: int = 0
    _num_bytes: int = 0

    async def receive(self) -> Message:
        """Return the next message, a kept one first."""
        if self._next_index < len(self._kept):
            self._next_index += 1
            return self._kept[self._next_index - 1]
        message = await self.next_message()
        self.is_disconnected = message["type"] == "http.disconnect"
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > MAX_KEPT_BYTES:
            self.forget()
        if self.can_be_repeated and not self.is_disconnected:
            self._kept.append(message)
            self._next_index += 1
        return message

    def rewind(self) -> None:
        """Begin with the first message again."""
        self._next_index = 0

    def forget(self) -> None:
        """Free the memory; the request cannot be repeated any more."""
        self.can_be_repeated = False
        self._kept.clear()
        self._next_index = 0


@dataclass
class _Attempt:
    """One call of the app, whose response is passed on unless the request is to be repeated."""

    next_send: Send
    body: _Body
    num_left: int
    has_response: bool = False

    async def send(self, message: Message) -> None:
        """Pass a message on."""
        if message["type"] == "http.response.start":
            if message["status"] == 503 and (
                (self.num_left and self.body.can_be_repeated) or "retry-after" not in Headers(raw=message["headers"])
            ):
                return
            self.has_response = True
            self.body.forget()
        if self.has_response:
            await self.next_send(message)


def _changes_models(scope: Scope) -> bool:
    return scope["method"] not in ("GET", "HEAD") and f"{route_path(scope)}/".startswith("/v1/models/")


def _id_of(scope: Scope) -> str:
    """Return the id that Ray's proxy has added to the request, or the client's."""
    return Headers(scope=scope).get("x-request-id", "")


async def _respond_lost(scope: Scope, receive: Receive, send: Send) -> None:
    request_id = _id_of(scope)
    error = WorkerLost("The replica of this request was lost.")
    response = error_response(error, {**scope, "state": {"request_id": request_id}})
    response.headers["x-request-id"] = request_id
    await response(scope, receive, send)
