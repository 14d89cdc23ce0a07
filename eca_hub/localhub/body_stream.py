"""Receive bodies of any size with a small, constant amount of memory."""

import asyncio
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from eca_hub.localhub.context import check_length
from eca_hub.localhub.errors import too_large

PIECE_BYTES = 2 << 20


async def receive(request: Request, write: Callable[[bytearray], object], limit_bytes: int) -> int:
    """Pass a body to `write`, piece by piece, in a thread; return its size.

    While one piece is written the next one is received, so hashing and the network overlap.

    Raises:
        HubHTTPError: 413, the body is larger than the limit.
    """
    check_length(request, limit_bytes)
    num_bytes = 0
    buffer = bytearray()
    writing: asyncio.Future[object] | None = None
    try:
        async for piece in request.stream():
            num_bytes += len(piece)
            if num_bytes > limit_bytes:
                raise too_large(f"The body is larger than {limit_bytes} bytes.")
            buffer += piece
            if len(buffer) >= PIECE_BYTES:
                if writing:
                    await writing
                writing = asyncio.ensure_future(run_in_threadpool(write, buffer))
                buffer = bytearray()
    finally:
        # Also on failure: the file is closed after this, and the thread may still be writing to it.
        if writing:
            await asyncio.wait([writing])
    if writing:
        await writing
    if buffer:
        await run_in_threadpool(write, buffer)
    return num_bytes
