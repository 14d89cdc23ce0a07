"""The hub as a process: listening socket, signals, uvicorn."""

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from eca_hub.localhub.downloads import SendfileH11Protocol

GRACE_S = 1.0
BACKLOG = 1024


class PortTaken(Exception):
    """The address cannot be bound; the message says why."""


def listen(host: str, port: int) -> socket.socket:
    """Bind a port; port 0 takes a free one.

    Raises:
        PortTaken: the address is in use or not of this machine.
    """
    if not 0 <= port <= 65535:
        # getaddrinfo would truncate it to another port.
        raise PortTaken(f"cannot listen on {host}:{port}: a port is 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, OverflowError, UnicodeError):
        raise PortTaken(f"cannot listen on {host}:{port}: there is no such address") from None
    # asyncio gives TCP_NODELAY only to sockets that name TCP as their protocol; without it a response may take 40 ms.
    server_socket = socket.socket(family, kind, protocol)
    try:
        server_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server_socket.bind(address)
        server_socket.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        server_socket.close()
        raise PortTaken(f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}") from None
    return server_socket


def url_of(server_socket: socket.socket) -> str:
    """URL of a listening socket on this machine."""
    host, port = server_socket.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: ASGIApp, server_socket: socket.socket, on_ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT, then end the process within two seconds."""
    config = uvicorn.Config(
        app,
        http=SendfileH11Protocol,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(GRACE_S),
    )
    server = _Server(config, on_ready)
    # uvicorn raises the signal again after its shutdown; ignored, so that the process exits with 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run(sockets=[server_socket])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        # Worker threads survive the requests that uvicorn has cancelled and may still write. They end with the process,
        # and the kernel releases the lock of the folder after that; the files are as after a kill -9.
        os._exit(0)
