"""One connection and the end of the service: what was asked is answered, what was never asked is not waited for."""

import asyncio
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from eca_service.http.protocol import PatientConnection, connection_class
from tests.service.house import run

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


class Peer(asyncio.Transport):
    """The other end: keeps what it was told, and notes when it was hung up on."""

    def __init__(self) -> None:
        super().__init__()
        self.received = b""
        self.is_gone = asyncio.Event()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.received += data

    def close(self) -> None:
        self.is_gone.set()

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.is_gone.is_set()


def connected() -> tuple[PatientConnection, Peer]:
    config: Any = Config(app, http=connection_class(60.0), ws="none", lifespan="off", log_config=None)
    config.load()
    connection, peer = config.http_protocol_class(config, ServerState(), app_state={}), Peer()
    connection.connection_made(peer)
    return connection, peer


def test_who_was_let_in_and_has_not_asked_yet_is_answered_once() -> None:
    async def scene() -> None:
        connection, peer = connected()
        connection.shutdown()
        assert not peer.is_gone.is_set()
        connection.data_received(REQUEST[:9])
        connection.data_received(REQUEST[9:])
        await peer.is_gone.wait()
        assert peer.received.startswith(b"HTTP/1.1 200 ")

    run(scene())


def test_who_is_asking_for_the_second_time_is_answered_too() -> None:
    async def scene() -> None:
        connection, peer = connected()
        connection.data_received(REQUEST + REQUEST[:9])
        while not peer.received:
            await asyncio.sleep(0)
        connection.shutdown()
        connection.data_received(REQUEST[9:])
        await peer.is_gone.wait()
        assert peer.received.count(b"HTTP/1.1 200 ") == 2

    run(scene())


def test_who_never_asks_is_waited_for_a_second() -> None:
    async def scene() -> None:
        connection, peer = connected()
        connection.shutdown()
        await peer.is_gone.wait()
        assert (peer.received, asyncio.get_running_loop().time()) == (b"", 1.0)

    run(scene())


def test_who_has_been_answered_is_not_waited_for() -> None:
    async def scene() -> None:
        connection, peer = connected()
        connection.data_received(REQUEST)
        while not peer.received:
            await asyncio.sleep(0)
        connection.shutdown()
        assert peer.is_gone.is_set()

    run(scene())
