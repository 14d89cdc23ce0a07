"""The hub under the port of another application, whose server knows nothing of how long a hub waits for a body.

Knows the folder and ASGI; nothing of the other application.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eca_hub.localhub.app import create_app
from eca_hub.localhub.auth import Users
from eca_hub.localhub.cli import own_token
from eca_hub.localhub.errors import HubRefusal
from eca_hub.localhub.store import Store
from eca_hub.localhub.timeouts import BODY_BYTES_PER_S, BODY_GRACE_S


@contextlib.contextmanager
def opened(root: Path, users: Path | None = None) -> Iterator[ASGIApp]:
    """Open a hub's folder as an ASGI application, to be mounted under a path of another one.

    Args:
        root: Folder of the hub; made if it is missing.
        users: JSON file with users and their tokens; without it the one token is that of ROOT/token.
    """
    known = Users.from_file(users) if users else None
    with contextlib.closing(Store(root)) as store:
        yield InTime(create_app(store, known or Users.single(own_token(root))))


class InTime:
    """ASGI middleware that refuses a body which comes too slowly, by the same measure as the hub's own server.

    Args:
        app: The hub.
        clock: Seconds that never go back; a test passes its own.
    """

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        left_s: float | None = BODY_GRACE_S

        async def receive_in_time() -> Message:
            nonlocal left_s
            if left_s is None:
                # The body is there: what is awaited now is that the client goes away.
                return await receive()
            began_s = self._clock()
            try:
                async with asyncio.timeout(left_s):
                    message = await receive()
            except TimeoutError:
                raise HubRefusal(408, "body_timeout", "The body came too slowly.") from None
            # Only waiting counts, not the time that we took to write down what came.
            left_s += len(message.get("body", b"")) / BODY_BYTES_PER_S - (self._clock() - began_s)
            if not message.get("more_body"):
                left_s = None
            return message

        await self._app(scope, receive_in_time, send)
