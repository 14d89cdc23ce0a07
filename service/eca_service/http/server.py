"""The life of the process: serve, drain, end.

Knows sockets and signals; nothing of pictures or models, except whether they loaded.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from uvicorn import Config, Server

from eca_service.http.port import turn_newcomers_away, url_of
from eca_service.http.protocol import connection_class
from eca_service.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from eca_service.http.dependencies import House

_START_S = 30.0

_LET_IN_S = 0.1
"""How long it takes at most until who waits at the port is a connection, and who asks again has been told to leave."""

OUR_DAEMONS = frozenset(["engine", "loader", "trim heap"])
"""Names of the threads of this program that Python does not wait for."""

_logger = logging.getLogger(__name__)


def let_go_of_streams() -> None:
    """Write what is left to standard output and error, or to nowhere if nobody reads there any more.

    Python would try again as its last act, and end with 120 after all has been answered.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def end_threads(within_s: float = 2.0) -> None:
    """Wait for the threads that are about to end, and end the process with 0 if one does not.

    Python ends beside its daemons. One that comes back from C++ at that moment takes the process down with a signal,
    after all has been answered: an orchestrator would see a crash.
    """
    until_s = time.monotonic() + within_s
    daemons = [thread for thread in threading.enumerate() if thread.daemon and thread.name in OUR_DAEMONS]
    for thread in daemons:
        thread.join(max(0.0, until_s - time.monotonic()))
    if any(thread.is_alive() for thread in daemons):
        os._exit(0)


class DrainingServer(Server):
    """uvicorn, ended by a signal in good order.

    The first signal: `/readyz` turns red and each answer is the last of its connection, the port stays open for
    `drain_delay_s`, then whoever it has let in is answered and the process ends with 0. The second: it ends at once.
    """

    def __init__(self, config: Config, house: "House", settings: Settings) -> None:
        super().__init__(config)
        self._house = house
        self._settings = settings
        self._draining: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals over for as long as we serve."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say where we are, once the port is served."""
        await super().startup(sockets)
        assert sockets
        print(f"serving on {url_of(sockets[0])}", flush=True)  # noqa: T201

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the port, answer whoever it has let in, and end the app."""
        for listener in sockets or []:
            turn_newcomers_away(listener)
        await asyncio.sleep(_LET_IN_S)
        await super().shutdown(sockets)

    def _on_signal(self, number: int) -> None:
        if self._draining is not None:
            os._exit(128 + number)
        _logger.info("draining; a second signal ends at once")
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        self._house.registry.is_draining = True
        self._house.bodies.hurry()
        await asyncio.sleep(self._settings.drain_delay_s)
        self.should_exit = True


async def serve(app: "FastAPI", settings: Settings, listener: socket.socket) -> None:
    """Serve until a signal comes or a model turns out not to load.

    Raises:
        Exception: why the model did not load.
    """
    config = Config(
        app,
        http=connection_class(settings.header_timeout_s),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=max(1, round(settings.keep_alive_s)),
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout_s)),
    )
    registry = app.state.house.registry
    server = DrainingServer(config, app.state.house, settings)

    async def watch_the_start() -> None:
        with contextlib.suppress(TimeoutError):
            # A hub may be waited for much longer, which makes garbage.
            async with asyncio.timeout(_START_S):
                await registry.loaded.wait()
        # What the start has made stays, and is left out of every later search for garbage.
        gc.freeze()
        gc.enable()
        await registry.loaded.wait()
        if registry.failure is not None:
            server.should_exit = True

    watching = asyncio.create_task(watch_the_start())
    try:
        await server.serve(sockets=[listener])
    finally:
        watching.cancel()
    if registry.failure is not None:
        raise registry.failure
