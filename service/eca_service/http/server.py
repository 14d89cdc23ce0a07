"""Run the app under uvicorn: bind, serve, drain, exit."""

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
from typing import TYPE_CHECKING, Any, cast

from uvicorn import Config, Server

from eca_service.errors import BadSetting
from eca_service.http.protocol import protocol_class
from eca_service.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from eca_service.http.dependencies import AppState

_MAX_STARTUP_S = 30.0
DAEMON_THREADS = frozenset(["engine", "loader", "trim heap"])
"""Names of this program's daemon threads, which Python does not join at exit."""

_logger = logging.getLogger(__name__)


def bind_listener(host: str, port: int) -> socket.socket:
    """Bind and listen before anything slow is imported: clients can connect at once, and a taken port fails at once.

    Raises:
        BadSetting: the port is taken, or the host has no such address.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # asyncio sets TCP_NODELAY only on sockets whose protocol is TCP; without it a response takes 40 ms.
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(2048)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        # The name of a host with an empty or a very long part is not encoded.
        reason = getattr(error, "strerror", None) or str(error)
        raise BadSetting(
            f"Cannot listen on {host} port {port}: {reason}.", hint="Set --port to a free one, or to 0."
        ) from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def flush_stdio() -> None:
    """Flush standard output and error; where the pipe is closed, redirect them to the null device.

    Otherwise Python would flush again at exit and return 120.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def join_daemon_threads(timeout_s: float = 2.0) -> None:
    """Wait for this program's daemon threads; one that hangs is left to the interpreter's exit and logged.

    A daemon thread that returns from C++ while the interpreter is finalized can abort the process.
    """
    deadline_s = time.monotonic() + timeout_s
    threads = [thread for thread in threading.enumerate() if thread.daemon and thread.name in DAEMON_THREADS]
    for thread in threads:
        thread.join(max(0.0, deadline_s - time.monotonic()))
    for thread in threads:
        if thread.is_alive():
            _logger.warning("the thread %r did not end within %g s", thread.name, timeout_s)


class GracefulServer(Server):
    """uvicorn with a graceful shutdown.

    First SIGTERM or SIGINT: `/readyz` returns 503 and every response closes its connection; the port stays open for
    `drain_delay_s`; then open requests are completed and the process exits with 0. Second signal: it exits at once.
    """

    def __init__(self, config: Config, state: "AppState", settings: Settings) -> None:
        super().__init__(config)
        self._state = state
        self._settings = settings
        self._drain_task: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals in the event loop while serving."""
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
        """Print the URL once the port is served."""
        await super().startup(sockets)
        assert sockets
        print(f"serving on {url_of(sockets[0])}", flush=True)  # noqa: T201

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept what the kernel has queued, close the port, complete open requests, end the app.

        Closing a listener resets the connections that the kernel has queued and the program has not accepted. So the
        last ones are accepted and the port is closed without the event loop in between.
        """
        queued = [connection for listener in sockets or [] for connection in _accept_all(listener)]
        for server in self.servers:
            server.close()
        for connection in queued:
            await asyncio.get_running_loop().connect_accepted_socket(self._new_connection, connection)
        await super().shutdown(sockets)

    def _new_connection(self) -> asyncio.Protocol:
        http: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = http(self.config, self.server_state, app_state=self.lifespan.state)
        return protocol

    def _on_signal(self, number: int) -> None:
        if self._drain_task is not None:
            os._exit(128 + number)
        _logger.info("draining; a second signal exits at once")
        self._drain_task = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        self._state.registry.is_draining = True
        self._state.bodies.shorten_deadlines()
        await asyncio.sleep(self._settings.drain_delay_s)
        self.should_exit = True


def _accept_all(listener: socket.socket) -> Iterator[socket.socket]:
    """Accept the connections that are queued at a listener, which does not block."""
    with contextlib.suppress(OSError):
        while True:
            yield listener.accept()[0]


async def serve(app: "FastAPI", settings: Settings, listener: socket.socket) -> None:
    """Serve until a signal arrives or a model fails to load.

    Raises:
        Exception: why the model failed to load.
    """
    http = protocol_class(settings)
    config = Config(
        app,
        http=http,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        root_path=settings.root_path,
        # Typed as int, but only ever passed to timers of asyncio.
        timeout_keep_alive=cast(int, settings.keep_alive_s),
        timeout_graceful_shutdown=cast(int, settings.drain_timeout_s),
    )
    registry = app.state.service.registry
    server = GracefulServer(config, app.state.service, settings)
    connections = server.server_state.connections
    app.state.service.metrics.add_bounded(
        "eca_connections", "Open connections.", lambda: len(connections), http.max_connections
    )

    async def monitor_startup() -> None:
        with contextlib.suppress(TimeoutError):
            # Waiting for a hub may take much longer, and makes garbage.
            async with asyncio.timeout(_MAX_STARTUP_S):
                await registry.loaded.wait()
        # Objects of the startup live until exit: keep the garbage collector from scanning them again and again.
        gc.freeze()
        gc.enable()
        await registry.loaded.wait()
        if registry.failure is not None:
            server.should_exit = True

    monitor = asyncio.create_task(monitor_startup())
    try:
        await server.serve(sockets=[listener])
    finally:
        monitor.cancel()
    if registry.failure is not None:
        raise registry.failure
