"""Time limits for requests: uvicorn has none for headers and bodies that arrive slowly.

`BodyDeadline` is the one rule for bodies. The hub's own server applies it on the connection (`TimeoutH11Protocol`):
a request without complete headers never reaches the application, and the rest of a body that the application does not
read would keep the connection open. Mounted in another application's server, the hub applies it as a middleware.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from eca_hub.localhub.errors import HubHTTPError

HEADERS_TIMEOUT_S = 10.0
BODY_GRACE_S = 20.0
"""How long a body may take that brings no bytes."""
BODY_BYTES_PER_S = 16 << 10
"""Bytes that extend the deadline by one second: the slowest connection on which an upload of any size continues."""

_BODY_TIMEOUT_RESPONSE = (
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nX-Error-Code: body_timeout\r\n"
    b"Content-Type: application/json\r\nContent-Length: 37\r\n\r\n"
    b'{"error":"The body came too slowly."}'
)


class BodyDeadline:
    """When a body is too slow: after a grace period, extended by every byte."""

    def __init__(self, now_s: float) -> None:
        self._until_s = now_s + BODY_GRACE_S

    def extend(self, num_bytes: int) -> None:
        """Count received bytes."""
        self._until_s += num_bytes / BODY_BYTES_PER_S

    def pause(self, duration_s: float) -> None:
        """Do not count time in which the hub did not wait for the client."""
        self._until_s += duration_s

    def restart(self, now_s: float) -> None:
        """Grant a new grace period, because the hub could not receive."""
        self._until_s = max(self._until_s, now_s + BODY_GRACE_S)

    def remaining_s(self, now_s: float) -> float:
        """Seconds until the body is too slow."""
        return self._until_s - now_s


class TimeoutH11Protocol(H11Protocol):
    """uvicorn's protocol with a time limit for the headers of each request and a deadline for its body."""

    _timer: asyncio.TimerHandle | None = None
    _deadline: BodyDeadline | None = None

    def connection_made(self, transport: Any) -> None:
        """Wait for headers."""
        super().connection_made(transport)
        self._set_timer(HEADERS_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._set_timer(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Receive bytes and set the timer for what comes next."""
        super().data_received(data)
        was_in_body = self._deadline is not None
        if self.conn.their_state is h11.SEND_BODY:
            if self._deadline is None:
                self._deadline = BodyDeadline(self.loop.time())
                self._set_timer(BODY_GRACE_S)
            self._deadline.extend(len(data))
            return
        self._deadline = None
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            # Part of the next headers; the response to the request before may have ended long ago.
            if was_in_body or self._timer is None:
                self._set_timer(HEADERS_TIMEOUT_S)
        else:
            self._set_timer(None)

    def _set_timer(self, delay_s: float | None) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = None if delay_s is None else self.loop.call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self._deadline is None:
            self.transport.close()
            return
        if self.flow.read_paused:
            # The hub does not take the bytes, because the disk is slower than the network.
            self._deadline.restart(self.loop.time())
        remaining_s = self._deadline.remaining_s(self.loop.time())
        if remaining_s > 0:
            self._set_timer(remaining_s)
            return
        if not self.cycle.response_started:
            self.transport.write(_BODY_TIMEOUT_RESPONSE)
        self.transport.close()


class BodyTimeoutMiddleware:
    """ASGI middleware that refuses a body which arrives too slowly.

    Args:
        app: The hub.
        clock: Monotonic time in seconds; replaced by tests.
    """

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        deadline: BodyDeadline | None = BodyDeadline(self._clock())
        received_at_s = self._clock()

        async def receive_in_time() -> Message:
            nonlocal deadline, received_at_s
            if deadline is None:
                # The body is complete: what is awaited now is that the client disconnects.
                return await receive()
            # Only waiting counts, not the time in which the hub wrote down what it received.
            deadline.pause(self._clock() - received_at_s)
            try:
                async with asyncio.timeout(deadline.remaining_s(self._clock())):
                    message = await receive()
            except TimeoutError:
                raise HubHTTPError(408, "body_timeout", "The body came too slowly.") from None
            received_at_s = self._clock()
            deadline.extend(len(message.get("body", b"")))
            if not message.get("more_body"):
                deadline = None
            return message

        await self._app(scope, receive_in_time, send)
