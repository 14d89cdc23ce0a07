"""The body of a request into memory, within bounds: bytes of one body, bytes of all bodies, seconds.

A body that is announced too large is refused before it is read. Nothing is written to disk, so a read-only machine
without a temporary folder serves large pictures as well as small ones. Knows headers and bytes; nothing of what they
mean.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from eca_service.errors import BodyTimeout, BodyTooLarge, InvalidRequest, Overloaded, UnsupportedType

Result = TypeVar("Result")
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_LAST_CALL_S = 2.0


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class BodyReader:
    """Reads bodies for all requests, which share one bound.

    Args:
        max_total_bytes: Size of all bodies that are being received or answered.
        timeout_s: Time that one body may take to arrive.
    """

    def __init__(self, *, max_total_bytes: int, timeout_s: float) -> None:
        self.total_bytes = 0
        self.max_total_bytes = max_total_bytes
        self._timeout_s = timeout_s
        self._timeouts: set[asyncio.Timeout] = set()

    @asynccontextmanager
    async def read(self, headers: Mapping[str, str], receive: Receive, *, max_bytes: int) -> AsyncIterator[bytes]:
        """Give the whole body; its bytes count against the shared bound until the block ends.

        Raises:
            BodyTooLarge: more than `max_bytes`.
            BodyTimeout: it did not arrive in time.
            Overloaded: too many bytes are in the house.
            UnsupportedType: the body is compressed.
            ClientGone: the caller hung up.
        """
        if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            raise UnsupportedType("A compressed body is not read.", hint="Send it without Content-Encoding.")
        announced = headers.get("content-length", "0")
        if not (announced.isascii() and announced.isdigit() and len(announced) < 20):
            raise InvalidRequest("Content-Length is not a number.")
        if int(announced) > max_bytes:
            raise _too_large(max_bytes)
        chunks: list[bytes] = []
        try:
            await self._fill(chunks, receive, max_bytes)
            yield b"".join(chunks)
        finally:
            self.total_bytes -= sum(map(len, chunks))

    def hurry(self) -> None:
        """Give the bodies that are still arriving two more seconds, because the process is about to end."""
        latest = asyncio.get_running_loop().time() + _LAST_CALL_S
        for timeout in self._timeouts:
            if (when := timeout.when()) is not None and when > latest:
                timeout.reschedule(latest)

    async def _fill(self, chunks: list[bytes], receive: Receive, max_bytes: int) -> None:
        """Gather what comes. Only what has come counts: announcing much must not be enough to keep others out."""
        num_bytes, more = 0, True
        try:
            async with asyncio.timeout(self._timeout_s) as timeout:
                self._timeouts.add(timeout)
                try:
                    while more:
                        message = await receive()
                        if message["type"] == "http.disconnect":
                            raise ClientGone
                        more, chunk = message.get("more_body", False), message.get("body", b"")
                        num_bytes += len(chunk)
                        if num_bytes > max_bytes:
                            raise _too_large(max_bytes)
                        if self.total_bytes + len(chunk) > self.max_total_bytes:
                            raise Overloaded(
                                "The pictures of other callers fill the memory that is set aside for them."
                            )
                        chunks.append(chunk)
                        self.total_bytes += len(chunk)
                finally:
                    self._timeouts.discard(timeout)
        except TimeoutError:
            raise BodyTimeout(
                f"The body did not arrive within {self._timeout_s:g} s.", hint="Send it faster."
            ) from None


def _too_large(max_bytes: int) -> BodyTooLarge:
    limit = f"{max_bytes / 2**20:g} MiB"
    return BodyTooLarge(
        f"The body has more than {limit}, which is the limit.", hint="Send less: a smaller picture, or fewer."
    )


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Do `work` for a caller whose body has been read; stop it when the caller hangs up.

    Raises:
        ClientGone: the caller hung up before the work was done.
    """
    worker, is_gone = asyncio.current_task(), False
    assert worker is not None

    async def stop_when_gone() -> None:
        nonlocal is_gone
        while (await receive())["type"] != "http.disconnect":
            pass
        is_gone = True
        worker.cancel()

    # The work stays in this task: a second one would cost as much as reading the request.
    watching = asyncio.create_task(stop_when_gone())
    try:
        return await work
    except asyncio.CancelledError:
        # Somebody else may have cancelled as well, when the service ends: then that counts.
        if is_gone and not worker.uncancel():
            raise ClientGone from None
        raise
    finally:
        watching.cancel()
