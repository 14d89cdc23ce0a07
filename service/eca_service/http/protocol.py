"""One HTTP connection with deadlines, a bound on its pieces, and one meaning of where a request ends.

uvicorn alone waits for ever for the rest of a head or of an unread body, takes a body in single bytes, and forgives a
head that a proxy in front of it may read in another way, which is how one request is smuggled inside another.

Knows the protocol; nothing of what is asked or answered.
"""

import asyncio
import json
import re
import uuid
from collections.abc import Callable
from typing import Any, Literal, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_LAST_HEAD_S = 1.0

_LINGER_S = 5.0
_LINGER_BYTES = 64 * 2**20

_TINY_BYTES = 64
_MAX_TINY_PIECES = 20_000

# Every line ends with CR and LF, and none goes on in the next (RFC 9112, 2.2 and 5.2).
_HEAD = re.compile(rb"(?:[^\r\n \t][^\r\n]*\r\n)+\r\n")
_FRAMING = re.compile(rb"\n(?:content-length|transfer-encoding):([^\r]*)", re.IGNORECASE)


class _Parser(h11.Connection):
    """Refuses what h11 forgives.

    That is a head whose lines end or go on in obsolete ways, a body whose end is told twice (RFC 9112, 6.3: even if
    both tell the same), and a body in very many very small pieces: 300,000 chunks of one byte cost two seconds.
    """

    method = b""
    """What the last request asks for."""
    _num_tiny = 0

    def next_event(self) -> Any:
        """Parse one thing more.

        Raises:
            h11.RemoteProtocolError: it is not HTTP/1.1, or may mean two things.
        """
        received = b""
        if self.their_state is h11.IDLE:
            received, self.method = self.trailing_data[0], b""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.method, self._num_tiny = event.method, 0
            if event.http_version not in (b"1.0", b"1.1"):
                raise h11.RemoteProtocolError("another version of HTTP")
            _check_head(received)
        elif isinstance(event, h11.Data) and len(event.data) < _TINY_BYTES:
            self._num_tiny += 1
            if self._num_tiny > _MAX_TINY_PIECES:
                raise h11.RemoteProtocolError("too many tiny pieces")
        return event


def _check_head(received: bytes) -> None:
    head = _HEAD.match(received)
    if head is None:
        raise h11.RemoteProtocolError("a line of the head does not end with CR LF, or goes on in the next")
    framing = _FRAMING.findall(head[0])
    if len(framing) > 1 or any(b"," in value for value in framing):
        raise h11.RemoteProtocolError("the length of the body is told twice")


class _Transport:
    """A transport that is closed in the way of its connection.

    Args:
        transport: The real one.
        close: What closing means.
    """

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._transport = transport
        self.close = close

    def __getattr__(self, name: str) -> Any:
        """Everything else is the real one's."""
        return getattr(self._transport, name)


class PatientConnection(H11Protocol):
    """A connection that closes when its peer takes too long.

    A head must arrive within `header_timeout_s` of the connection or of its first byte, or within a second when the
    service ends. When an answer was given before the body had been read (it was too large, say), the rest of the body
    is thrown away for a while, because closing at once would make the peer lose the answer.
    """

    header_timeout_s = 10.0

    conn: _Parser
    _awaited: Literal["head", "rest"] | None = None
    _deadline: asyncio.TimerHandle | None = None
    _lingered_bytes = 0
    _is_over = False
    _is_last = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = _Parser(h11.SERVER)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first head."""
        self._close_at_once = transport.close
        super().connection_made(cast(asyncio.Transport, _Transport(transport, self._close)))
        self._await("head")

    def data_received(self, data: bytes) -> None:
        """Take what came, and see what is still missing."""
        if self._awaited == "rest":
            self._lingered_bytes += len(data)
            if self._lingered_bytes > _LINGER_BYTES:
                self.transport.abort()
                return
        if self._is_over:
            return
        super().data_received(data)
        if self._is_last and self.cycle is not None:
            self.cycle.keep_alive = False
        self._await(self._missing())

    def on_response_complete(self) -> None:
        """See what the peer still owes."""
        super().on_response_complete()
        self._await(self._missing())

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._await(None)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """End after the answer that is being given, or after that to the request that is on its way."""
        if self._awaited == "rest":
            self._close_at_once()
        elif self._awaited == "head":
            self._is_last = True
            self._start_deadline(min(self.header_timeout_s, _LAST_HEAD_S))
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in the one shape of errors."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        request_id = uuid.uuid4().hex
        error = {"code": "bad_http", "message": "This is not HTTP/1.1.", "hint": "", "request_id": request_id}
        body = b"" if self.conn.method == b"HEAD" else json.dumps({"error": error}).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("x-request-id", request_id),
            ("connection", "close"),
        ]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._linger()

    def _close(self) -> None:
        """Close, but let a peer whose body has not been read have its answer."""
        if self.conn.their_state is h11.SEND_BODY and not self._is_over and not self.transport.is_closing():
            self._linger()
        elif not self._is_over:
            self._close_at_once()

    def _linger(self) -> None:
        """Say that there will be nothing more, and throw away what still comes."""
        self._is_over = True
        self.transport.write_eof()
        self.flow.resume_reading()
        self._await("rest")

    def _missing(self) -> Literal["head", "rest"] | None:
        if self.transport.is_closing():
            return None
        if self._is_over:
            return "rest"
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            return "head"
        if self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE:
            return "rest"
        return None

    def _await(self, awaited: Literal["head", "rest"] | None) -> None:
        """Start a deadline when something new is awaited; bytes that trickle in do not move it."""
        if awaited == self._awaited:
            return
        self._awaited = awaited
        self._lingered_bytes = 0
        self._start_deadline({"head": self.header_timeout_s, "rest": _LINGER_S, None: None}[awaited])

    def _start_deadline(self, seconds: float | None) -> None:
        """Close after so many seconds; None: whenever the answer is given."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self._close_at_once)


def connection_class(header_timeout_s: float) -> type[PatientConnection]:
    """The class with its deadline set: uvicorn makes the instances."""
    return type("PatientConnection", (PatientConnection,), {"header_timeout_s": header_timeout_s})
