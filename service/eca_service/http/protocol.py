"""One HTTP/1.1 connection with time limits, a connection limit and strict framing.

uvicorn alone waits without limit for the rest of the headers, for a body that the app does not read and for a client
that does not read its response, reads a body byte by byte, and accepts headers that a proxy in front may frame
differently (request smuggling).

An expectation other than 100-continue is ignored: a server may refuse it with 417 (RFC 9110, 10.1.1), and proxies and
clients that send one by mistake are better served by the response.

Every private name of uvicorn that the service uses is used in this file and in `server.GracefulServer`; pyproject.toml
pins the versions, and tests/service/http/test_protocol.py names what is missing in another one.
"""

import asyncio
import json
import math
import re
import socket
import struct
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from eca_service.settings import Settings

_LAST_HEADERS_S = 1.0

_LINGER_S = 5.0
_LINGER_BYTES = 64 * 2**20

_HALF_CLOSE_S = 0.25
"""From the last byte of a request to a half-close after which its response is still sent."""

_MAX_UNSENT_BYTES = 2**16

_TINY_BYTES = 64
_MAX_TINY_CHUNKS = 20_000

_RESET = struct.pack("ii", 1, 0)
"""For SO_LINGER: closing discards what was not sent."""

_RESERVED_FILES = 64
"""File descriptors that are not connections: libraries, logs, weights, the listener."""

# Every line ends with CR LF and none is folded (RFC 9112, 2.2 and 5.2).
_HEAD = re.compile(rb"(?:[^\r\n \t][^\r\n]*\r\n)+\r\n")
_ABSOLUTE_FORM = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE)
_FRAMING = re.compile(rb"\n(?:content-length|transfer-encoding):([^\r]*)", re.IGNORECASE)


class StrictH11Connection(h11.Connection):
    """h11 without its leniency.

    Refuses headers with bare LF or folded lines, a body whose length is given twice (RFC 9112, 6.3:
    even if both agree), and a body in very many tiny chunks: 300,000 chunks of one byte take two seconds.
    """

    method = b""
    """Method of the last request."""
    _num_tiny = 0

    def next_event(self) -> Any:
        """Parse the next event.

        Raises:
            h11.RemoteProtocolError: it is not HTTP/1.1, or is ambiguous.
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
            event = _in_origin_form(event)
        elif isinstance(event, h11.Data) and len(event.data) < _TINY_BYTES:
            self._num_tiny += 1
            if self._num_tiny > _MAX_TINY_CHUNKS:
                raise h11.RemoteProtocolError("too many tiny chunks")
        return event


def _check_head(received: bytes) -> None:
    head = _HEAD.match(received)
    if head is None:
        raise h11.RemoteProtocolError("a header line does not end with CR LF, or is folded")
    framing = _FRAMING.findall(head[0])
    if len(framing) > 1 or any(b"," in value for value in framing):
        raise h11.RemoteProtocolError("the length of the body is given twice")


def _in_origin_form(request: h11.Request) -> h11.Request:
    """Rewrite a request target from absolute form (a URL) to origin form (a path), see RFC 9112, 3.2.2.

    The host of the URL replaces the Host header.
    """
    url = _ABSOLUTE_FORM.fullmatch(request.target)
    if url is None:
        return request
    host, target = url.groups()
    if not host or b"@" in host:
        raise h11.RemoteProtocolError("a URL without a host, or with a user")
    headers = [(b"host", host), *((name, value) for name, value in request.headers if name != b"host")]
    target = target if target.startswith(b"/") else b"/" + target
    return h11.Request(method=request.method, headers=headers, target=target, http_version=request.http_version)


class _Transport:
    """A transport that sends what is written in one turn of the event loop at once, and is closed by its connection.

    uvicorn writes the headers of a response and its body one after the other: each would cost a system call, and wake
    the client.

    Args:
        transport: The wrapped one.
        close: Called instead of its `close`.
        on_write: Called after each write with the number of bytes.
    """

    def __init__(
        self, transport: asyncio.Transport, close: Callable[[], None], on_write: Callable[[int], None]
    ) -> None:
        self._transport = transport
        self._on_write = on_write
        self._unsent = bytearray()
        self._loop = asyncio.get_running_loop()
        self.close = close

    def write(self, data: bytes) -> None:
        """Send data at the end of this turn, or now if it is much."""
        if not self._unsent and data:
            self._loop.call_soon(self.flush)
        self._unsent += data
        if len(self._unsent) > _MAX_UNSENT_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send now, and start the write deadline."""
        if self._unsent:
            data, self._unsent = bytes(self._unsent), bytearray()
            self._transport.write(data)
            self._on_write(len(data))

    def write_eof(self) -> None:
        """Send, and close this direction."""
        self.flush()
        self._transport.write_eof()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Turns:
    """Lets connections whose clients pipeline begin their next request one after the other, one in a turn of the loop.

    Otherwise a turn would begin one for each of them: with 200 such clients another client's response, which takes some
    ten turns, took 3.4 s.
    """

    def __init__(self) -> None:
        self._waiting: deque[TimeoutH11Protocol] = deque()

    def wait(self, connection: "TimeoutH11Protocol") -> None:
        """Call `take_turn` of the connection when it is the first."""
        if not self._waiting:
            connection.loop.call_soon(self._next)
        self._waiting.append(connection)

    def _next(self) -> None:
        connection = self._waiting.popleft()
        if self._waiting:
            connection.loop.call_soon(self._next)
        connection.take_turn()


class TimeoutH11Protocol(H11Protocol):
    """A connection that is closed when its client is too slow.

    - Request line and headers must arrive within `header_timeout_s` of the connection or of their first byte, or within
      one second during shutdown.
    - A response must be taken within `write_timeout_s`; the timer restarts whenever the client has taken some of it.
    - When a response is sent before the body has been read (413, for instance), the rest of the body is discarded for a
      while, because closing at once would make the client lose the response.
    - A request that was sent before the response to the one before it begins when it is its turn.
    - A client that half-closes the connection right after its requests, as `nc -N` does, gets their responses. A later
      half-close counts as a disconnect, as of clients at their timeout, and its images are not run: both look the same
      on the wire. A request that is incomplete gets no response.
    - Beyond `max_connections`, the idle connection whose time runs out first is closed for a new one; where none is
      idle, the new one gets 503 and is closed.
    """

    header_timeout_s = 10.0
    write_timeout_s = 20.0
    max_connections = 1000
    turns = _Turns()

    conn: StrictH11Connection
    _is_completing = False
    _awaits_turn = False
    _awaited: Literal["headers", "rest"] | None = None
    _deadline: asyncio.TimerHandle | None = None
    _write_deadline: asyncio.TimerHandle | None = None
    _num_written = 0
    _num_taken = 0
    _lingered_bytes = 0
    _is_over = False
    _is_last = False
    _received_at_s = -math.inf
    _has_ended = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = StrictH11Connection(h11.SERVER)
        self._is_last = not self.timeout_keep_alive

    @property
    def is_idle(self) -> bool:
        """Whether the connection waits for its next request and has none in part."""
        is_complete = self.cycle is None or bool(self.cycle.response_complete)
        return is_complete and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first request."""
        self._raw_transport = transport
        self._sending = _Transport(transport, self._close, self._on_write)
        super().connection_made(cast(asyncio.Transport, self._sending))
        if len(self.connections) > self.max_connections and not self._make_room():
            self._refuse(503, "overloaded", "The service has no free connection.", ("retry-after", "1"))
            return
        self._await("headers")

    def data_received(self, data: bytes) -> None:
        """Parse the received bytes, and determine what is still missing."""
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
        self._received_at_s = self.loop.time()
        self._await(self._missing())

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection open for the responses to what was received just now, if a request is complete."""
        # A response that was written in this turn of the loop.
        self._sending.flush()
        # Reported again whenever reading is resumed.
        is_early = self._has_ended or self.loop.time() - self._received_at_s <= _HALF_CLOSE_S
        self._has_ended = is_early and not self._is_over and self._has_pending_response()
        return self._has_ended

    def _has_pending_response(self) -> bool:
        """Whether the response to a complete request is not sent yet; one that waits for its turn may be complete."""
        is_answering = self.cycle is not None and not self.cycle.response_complete
        return self._awaits_turn or (is_answering and self.conn.their_state is not h11.SEND_BODY)

    def _close_if_ended(self) -> None:
        if self._has_ended and not self._has_pending_response():
            self._close_at_once()

    def on_response_complete(self) -> None:
        """Determine what the client still has to send."""
        self._is_completing = True
        super().on_response_complete()
        self._is_completing = False
        self._await(self._missing())
        self._close_if_ended()

    def handle_events(self) -> None:
        """Handle what was received, but wait for a turn before a request that was sent too early."""
        if self._is_completing and self.conn.trailing_data[0] and not self._awaits_turn:
            self._awaits_turn = True
            self.flow.pause_reading()
            self.turns.wait(self)
        if not self._awaits_turn:
            super().handle_events()

    def take_turn(self) -> None:
        """Begin the next request."""
        self._awaits_turn = False
        if not self.transport.is_closing():
            self.flow.resume_reading()
            super().handle_events()
            self._await(self._missing())
            self._close_if_ended()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        self._await(None)
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close after the current response, or after the response to the request that is arriving."""
        if self._awaited == "rest":
            self._close_at_once()
        elif self._awaited == "headers":
            self._is_last = True
            self._start_deadline(min(self.header_timeout_s, _LAST_HEADERS_S))
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, as JSON; a response that is being sent is cut."""
        if self.conn.our_state is h11.SEND_BODY:
            self._end_cycle()
            self._close_at_once()
        elif self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(400, "bad_http", "This is not HTTP/1.1.")
            self._end_cycle()
        else:
            self.transport.close()

    def _end_cycle(self) -> None:
        """Let the app see a disconnect where it waits for the rest of a request, and drop what it still sends."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.waiting_for_100_continue = False
            self.cycle.message_event.set()

    def _refuse(self, status: int, code: str, message: str, *headers: tuple[str, str]) -> None:
        """Send an error without the app, and close."""
        request_id = uuid.uuid4().hex
        error = {"code": code, "message": message, "hint": "", "request_id": request_id}
        body = b"" if self.conn.method == b"HEAD" else json.dumps({"error": error}).encode()
        all_headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("x-request-id", request_id),
            ("connection", "close"),
            *headers,
        ]
        for event in (h11.Response(status_code=status, headers=all_headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self._linger()

    def _make_room(self) -> bool:
        """Close the idle connection whose time runs out first, if any is idle."""
        others = (each for each in self.connections if isinstance(each, TimeoutH11Protocol) and each is not self)
        idle = [each for each in others if each.is_idle and not each.transport.is_closing()]
        if not idle:
            return False
        min(idle, key=TimeoutH11Protocol._idle_deadline_s).transport.close()
        return True

    def _idle_deadline_s(self) -> float:
        timers = [timer for timer in (self.timeout_keep_alive_task, self._deadline) if timer is not None]
        return min((timer.when() for timer in timers), default=0.0)

    def _on_write(self, num_bytes: int) -> None:
        self._num_written += num_bytes
        self._watch_writes()

    def _watch_writes(self) -> None:
        """Start the write deadline where the kernel does not take everything at once."""
        if self._write_deadline is None and (num_unsent := self._raw_transport.get_write_buffer_size()):
            self._num_taken = self._num_written - num_unsent
            self._write_deadline = self.loop.call_later(self.write_timeout_s, self._on_write_deadline)

    def _on_write_deadline(self) -> None:
        self._write_deadline = None
        num_unsent = self._raw_transport.get_write_buffer_size()
        if num_unsent and self._num_written - num_unsent == self._num_taken:
            if (connection := self._raw_transport.get_extra_info("socket")) is not None:
                # Without this, the kernel would keep megabytes of the response for minutes.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._raw_transport.abort()
        else:
            self._watch_writes()

    def _close(self) -> None:
        """Close, but let a client whose body has not been read receive its response."""
        if self.conn.their_state is h11.SEND_BODY and not self._is_over and not self.transport.is_closing():
            self._linger()
        elif not self._is_over:
            self._close_at_once()

    def _close_at_once(self) -> None:
        self._sending.flush()
        self._raw_transport.close()

    def _linger(self) -> None:
        """Half-close, and discard what still arrives."""
        self._is_over = True
        self.transport.write_eof()
        self.flow.resume_reading()
        self._await("rest")

    def _missing(self) -> Literal["headers", "rest"] | None:
        if self.transport.is_closing():
            return None
        if self._is_over:
            return "rest"
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            return "headers"
        if self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE:
            return "rest"
        return None

    def _await(self, awaited: Literal["headers", "rest"] | None) -> None:
        """Start a deadline when something new is awaited; bytes that trickle in do not move it."""
        if awaited == self._awaited:
            return
        self._awaited = awaited
        self._lingered_bytes = 0
        self._start_deadline({"headers": self.header_timeout_s, "rest": _LINGER_S, None: None}[awaited])

    def _start_deadline(self, seconds: float | None) -> None:
        """Close after so many seconds; None: no deadline."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self._close_at_once)


def protocol_class(settings: Settings) -> type[TimeoutH11Protocol]:
    """Return the protocol with its limits set, as uvicorn makes the instances."""
    limits = {
        "header_timeout_s": settings.header_timeout_s,
        "write_timeout_s": settings.write_timeout_s,
        "max_connections": min(settings.max_connections, _max_open_files() - _RESERVED_FILES),
        "turns": _Turns(),
    }
    return type("TimeoutH11Protocol", (TimeoutH11Protocol,), limits)


def _max_open_files() -> int:
    """Return how many files the process may open; a connection is one."""
    try:
        import resource
    except ImportError:
        return 2**31
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**31 if limit == resource.RLIM_INFINITY else max(limit, _RESERVED_FILES + 16)
