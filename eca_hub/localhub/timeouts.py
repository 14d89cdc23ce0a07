"""A connection on which a request arrives too slowly is closed: uvicorn itself would wait for ever.

Knows sockets and bytes; nothing of what is asked. Why here and not in the application: a request without a whole head
never reaches it, and a body that it does not read would not be missed by anybody.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_DEADLINE_S = 10.0
BODY_GRACE_S = 20.0
"""How long a body may take that brings no bytes."""
BODY_BYTES_PER_S = 16 << 10
"""Bytes that buy a body one more second: the slowest line on which an upload may go on, however large it is."""

_TOO_SLOW = (
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nX-Error-Code: body_timeout\r\n"
    b"Content-Type: application/json\r\nContent-Length: 37\r\n\r\n"
    b'{"error":"The body came too slowly."}'
)


class PromptProtocol(H11Protocol):
    """Gives the head of each request a deadline, and its body one that moves on with the bytes."""

    _timer: asyncio.TimerHandle | None = None
    _is_in_body = False
    _bought_until_s = 0.0

    def connection_made(self, transport: Any) -> None:
        """Expect a head."""
        super().connection_made(transport)
        self._set_timer(HEAD_DEADLINE_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing any more."""
        self._set_timer(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes, and see what is awaited next."""
        super().data_received(data)
        was_in_body, self._is_in_body = self._is_in_body, self.conn.their_state is h11.SEND_BODY
        if self._is_in_body:
            if not was_in_body:
                self._bought_until_s = self.loop.time() + BODY_GRACE_S
                self._set_timer(BODY_GRACE_S)
            self._bought_until_s += len(data) / BODY_BYTES_PER_S
        elif self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            # Part of a next head: what came before it may have been answered long ago.
            if was_in_body or self._timer is None:
                self._set_timer(HEAD_DEADLINE_S)
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
        if not self._is_in_body:
            self.transport.close()
            return
        if self.flow.read_paused:
            # It is we who do not take the bytes, because the disk is slower than the line.
            self._bought_until_s = max(self._bought_until_s, self.loop.time() + BODY_GRACE_S)
        missing_s = self._bought_until_s - self.loop.time()
        if missing_s > 0:
            self._set_timer(missing_s)
            return
        if not self.cycle.response_started:
            self.transport.write(_TOO_SLOW)
        self.transport.close()
