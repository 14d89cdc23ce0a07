"""Read a request body into memory within limits: bytes of one body, bytes of all bodies, seconds.

A body whose Content-Length is too large is refused before it is read. Nothing is written to disk, so a read-only
machine without a temporary folder handles large images as well as small ones.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from eca_service.errors import BodyTimeout, BodyTooLarge, DeadlineExceeded, InvalidRequest, Overloaded, UnsupportedType

Result = TypeVar("Result")
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_LAST_BODY_S = 2.0
_BYTES_PER_ELEMENT = 64
"""Memory of one number of a JSON body: the number, and its place in three lists."""


class ClientDisconnected(Exception):
    """The client has closed the connection."""


class BodyReader:
    """Reads the bodies of all requests within one memory limit.

    Args:
        max_total_bytes: Memory for all bodies that are being received or processed.
        timeout_s: Time within which one body must arrive.
        deadline_s: Time that one may wait until it is parsed.
    """

    def __init__(self, *, max_total_bytes: int, timeout_s: float, deadline_s: float) -> None:
        self.total_bytes = 0
        self.max_total_bytes = max_total_bytes
        self._timeout_s = timeout_s
        self._deadline_s = deadline_s
        self._one_at_a_time = asyncio.Lock()
        self._timeouts: set[asyncio.Timeout] = set()

    @asynccontextmanager
    async def read(
        self, headers: Mapping[str, str], receive: Receive, *, max_bytes: int, num_copies: int = 1
    ) -> AsyncIterator[bytearray]:
        """Read the whole body. It counts against the memory limit until the block ends.

        Args:
            headers: Of the request.
            receive: Of the request.
            max_bytes: Size of the body.
            num_copies: How often its bytes are in memory at once while it is processed: split, decoded.

        Raises:
            BodyTooLarge: more than `max_bytes`, or than the memory limit admits of one body alone.
            BodyTimeout: it did not arrive in time.
            Overloaded: the bodies of all requests fill their memory.
            UnsupportedType: the body is compressed.
            ClientDisconnected: the client closed the connection.
        """
        if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            raise UnsupportedType("Compressed bodies are not supported.", hint="Send it without Content-Encoding.")
        announced = headers.get("content-length", "0")
        if not (announced.isascii() and announced.isdigit() and len(announced) < 20):
            raise InvalidRequest("Content-Length is not a number.")
        max_bytes = min(max_bytes, self.max_total_bytes // num_copies)
        if int(announced) > max_bytes:
            raise _too_large(max_bytes)
        # One buffer that grows and is handed on: chunks and their join, or a copy of it, would hold the body twice.
        received = bytearray()
        num_counted = 0
        try:
            async for chunk in self._chunks(receive, max_bytes):
                if self.total_bytes + num_copies * len(chunk) > self.max_total_bytes:
                    raise Overloaded("The bodies of other requests fill their memory.")
                received += chunk
                num_counted += num_copies * len(chunk)
                self.total_bytes += num_copies * len(chunk)
            yield received
        finally:
            self.total_bytes -= num_counted

    @asynccontextmanager
    async def parse_elements(self, receive: Receive, body_bytes: int, num_elements: int) -> AsyncIterator[None]:
        """Admit the parsing of JSON with many elements, one body at a time; their memory counts until the block ends.

        Args:
            receive: Of the request, whose body has been read.
            body_bytes: What is counted for the body already.
            num_elements: How many elements it has.

        Raises:
            BodyTooLarge: its elements take more than the memory limit admits of one body alone.
            Overloaded: the bodies of all requests fill their memory.
            DeadlineExceeded: other bodies took too long.
            ClientDisconnected: the client closed the connection meanwhile.
        """
        num_bytes = num_elements * _BYTES_PER_ELEMENT
        if body_bytes + num_bytes > self.max_total_bytes:
            raise BodyTooLarge(
                "The JSON has so many elements that they take too much memory.",
                hint="Send fewer pixels, or bytes.",
            )
        await cancel_on_disconnect(receive, self._wait_for_turn())
        try:
            if self.total_bytes + num_bytes > self.max_total_bytes:
                raise Overloaded("The bodies of other requests fill their memory.")
            self.total_bytes += num_bytes
            try:
                yield
            finally:
                self.total_bytes -= num_bytes
        finally:
            self._one_at_a_time.release()

    async def _wait_for_turn(self) -> None:
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._one_at_a_time.acquire()
        except TimeoutError:
            raise DeadlineExceeded(
                f"The bodies of other requests were still being parsed after {self._deadline_s * 1000:g} ms.",
                hint="Send the request again, or raise ECA_DEADLINE_MS.",
            ) from None

    def shorten_deadlines(self) -> None:
        """Give the bodies that are still arriving two more seconds, because the process is about to exit."""
        latest = asyncio.get_running_loop().time() + _LAST_BODY_S
        for timeout in self._timeouts:
            if (when := timeout.when()) is not None and when > latest:
                timeout.reschedule(latest)

    async def _chunks(self, receive: Receive, max_bytes: int) -> AsyncIterator[bytes]:
        """Yield what arrives. Only that counts: a large Content-Length must not suffice to keep others out."""
        num_bytes, more = 0, True
        try:
            async with asyncio.timeout(self._timeout_s) as timeout:
                self._timeouts.add(timeout)
                try:
                    while more:
                        message = await receive()
                        if message["type"] == "http.disconnect":
                            raise ClientDisconnected
                        more, chunk = message.get("more_body", False), message.get("body", b"")
                        num_bytes += len(chunk)
                        if num_bytes > max_bytes:
                            raise _too_large(max_bytes)
                        yield chunk
                finally:
                    self._timeouts.discard(timeout)
        except TimeoutError:
            raise BodyTimeout(
                f"The body did not arrive within {self._timeout_s:g} s.", hint="Send it faster."
            ) from None


def _too_large(max_bytes: int) -> BodyTooLarge:
    limit = f"{max_bytes / 2**20:g} MiB"
    return BodyTooLarge(f"The body has more than {limit}.", hint="Send a smaller image, or fewer.")


async def cancel_on_disconnect(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Await `work` for a client whose body has been read; cancel it when the client disconnects.

    Raises:
        ClientDisconnected: the client closed the connection before the work was done.
    """
    worker, is_disconnected = asyncio.current_task(), False
    assert worker is not None

    async def cancel_worker() -> None:
        nonlocal is_disconnected
        while (await receive())["type"] != "http.disconnect":
            pass
        is_disconnected = True
        worker.cancel()

    # The work stays in this task: a second one would cost as much as reading the request.
    monitor = asyncio.create_task(cancel_worker())
    try:
        return await work
    except asyncio.CancelledError:
        # The server may have cancelled the task as well, during shutdown: then that counts.
        if is_disconnected and not worker.uncancel():
            raise ClientDisconnected from None
        raise
    finally:
        monitor.cancel()
