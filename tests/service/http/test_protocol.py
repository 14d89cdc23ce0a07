"""One connection: its time limits, the connection limit, shutdown, and the private names of uvicorn that it uses."""

import asyncio
import json
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from eca_service.http.protocol import TimeoutH11Protocol, protocol_class
from eca_service.settings import Settings
from tests.service.fakes import run, settle

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


class Client(asyncio.Transport):
    """The other end of a connection. It takes every byte, unless `reads` is False."""

    def __init__(self, *, reads: bool = True) -> None:
        super().__init__()
        self.received = b""
        self.num_writes = 0
        self.reads = reads
        self.num_unsent = 0
        self.is_closed = asyncio.Event()
        self.is_aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.is_closed.is_set():
            return
        self.received += data
        self.num_writes += 1
        self.num_unsent += 0 if self.reads else len(data)

    def get_write_buffer_size(self) -> int:
        return self.num_unsent

    def write_eof(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed.set()

    def abort(self) -> None:
        self.is_aborted = True
        self.is_closed.set()

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.is_closed.is_set()


def connect(
    client: Client | None = None, *, server: ServerState | None = None, served: ASGIApp = app, **settings: Any
) -> tuple[TimeoutH11Protocol, Client]:
    values = Settings.model_validate({"model": ("acme/digits",), "header_timeout_s": 60} | settings)
    keep_alive_s: Any = values.keep_alive_s
    http = protocol_class(values)
    config = Config(served, http=http, ws="none", lifespan="off", log_config=None, timeout_keep_alive=keep_alive_s)
    config.load()
    connection, client = http(config, server or ServerState(), app_state={}), client or Client()
    connection.connection_made(client)
    return connection, client


def test_pipelining_clients_take_turns_and_each_gets_its_responses_in_order() -> None:
    async def scene() -> None:
        server = ServerState()
        pairs = [connect(server=server) for _ in range(20)]
        http = type(pairs[0][0])
        assert http.turns is not pairs[1][0].turns, "each service has its own"
        for connection, _ in pairs:
            connection.turns = http.turns
            connection.data_received(REQUEST * 3)
        while any(client.received.count(b"HTTP/1.1 200 ") < 3 for _, client in pairs):
            before = sum(client.received.count(b"HTTP/1.1 200 ") for _, client in pairs)
            await asyncio.sleep(0)
            after = sum(client.received.count(b"HTTP/1.1 200 ") for _, client in pairs)
            assert before < 20 or after - before <= 1
        assert not any(client.is_closed.is_set() for _, client in pairs)

    run(scene())


def test_the_headers_and_the_body_of_a_response_are_sent_at_once() -> None:
    async def scene() -> None:
        connection, client = connect()
        for number in (1, 2):
            connection.data_received(REQUEST)
            await response_of(client, number)
            assert client.num_writes == number
        assert client.received.count(b"HTTP/1.1 200 ") == 2

    run(scene())


async def response_of(client: Client, number: int = 1) -> None:
    while client.received.count(b"HTTP/1.1 ") < number:
        await asyncio.sleep(0)


def now_s() -> float:
    return asyncio.get_running_loop().time()


def test_a_connection_whose_first_request_is_on_its_way_during_shutdown_gets_one_response() -> None:
    async def scene() -> None:
        connection, client = connect()
        connection.shutdown()
        assert not client.is_closed.is_set()
        connection.data_received(REQUEST[:9])
        connection.data_received(REQUEST[9:])
        await client.is_closed.wait()
        assert client.received.startswith(b"HTTP/1.1 200 ")

    run(scene())


def test_a_second_request_that_is_on_its_way_during_shutdown_gets_a_response() -> None:
    async def scene() -> None:
        connection, client = connect()
        connection.data_received(REQUEST + REQUEST[:9])
        await response_of(client)
        connection.shutdown()
        connection.data_received(REQUEST[9:])
        await client.is_closed.wait()
        assert client.received.count(b"HTTP/1.1 200 ") == 2

    run(scene())


def test_a_connection_without_a_request_is_closed_a_second_after_shutdown_begins() -> None:
    async def scene() -> None:
        connection, client = connect()
        connection.shutdown()
        await client.is_closed.wait()
        assert (client.received, now_s()) == (b"", 1.0)

    run(scene())


def test_an_idle_connection_is_closed_when_shutdown_begins() -> None:
    async def scene() -> None:
        connection, client = connect()
        connection.data_received(REQUEST)
        await response_of(client)
        connection.shutdown()
        assert client.is_closed.is_set()

    run(scene())


def test_an_idle_connection_is_closed_after_exactly_the_time_that_is_set() -> None:
    async def scene() -> None:
        connection, client = connect(keep_alive_s=0.25)
        connection.data_received(REQUEST)
        await client.is_closed.wait()
        assert now_s() == 0.25

    run(scene())


def test_with_a_keep_alive_of_zero_each_response_closes_its_connection() -> None:
    async def scene() -> None:
        connection, client = connect(keep_alive_s=0)
        connection.data_received(REQUEST)
        await client.is_closed.wait()
        assert client.received.startswith(b"HTTP/1.1 200 ")
        assert now_s() == 0

    run(scene())


def test_a_client_that_does_not_read_its_response_is_disconnected() -> None:
    async def scene() -> None:
        connection, client = connect(Client(reads=False), write_timeout_s=7, keep_alive_s=3600)
        connection.data_received(REQUEST)
        await client.is_closed.wait()
        assert client.is_aborted
        assert now_s() == 7

    run(scene())


def test_a_client_that_reads_slowly_is_waited_for_and_one_that_stops_is_not() -> None:
    async def scene() -> None:
        connection, client = connect(Client(reads=False), write_timeout_s=7, keep_alive_s=3600)
        connection.data_received(REQUEST)
        await response_of(client)
        for _ in range(3):
            await asyncio.sleep(6)
            client.num_unsent -= 1
        await asyncio.sleep(2)
        assert not client.is_closed.is_set()
        await client.is_closed.wait()
        # The last byte was taken at 18 s, in the period that ended at 21 s.
        assert now_s() == 28

    run(scene())


def test_a_client_that_sends_requests_and_reads_no_response_is_disconnected() -> None:
    async def scene() -> None:
        connection, client = connect(Client(reads=False), write_timeout_s=7, keep_alive_s=3600)
        for _ in range(20):
            if not client.is_closed.is_set():
                connection.data_received(REQUEST)
                await asyncio.sleep(1)
        assert client.is_aborted

    run(scene())


async def close_own_direction(connection: TimeoutH11Protocol, client: Client) -> None:
    """What asyncio does when the client has closed its direction."""
    if not connection.eof_received():
        client.close()
        connection.connection_lost(None)


def test_a_client_that_closes_its_direction_after_its_requests_gets_their_responses() -> None:
    async def reading_app(scope: Scope, receive: Receive, send: Send) -> None:
        while (message := await receive()).get("more_body"):
            pass
        if message["type"] == "http.request":
            await app(scope, receive, send)

    async def scene(sent: bytes, num_responses: int, num_turns: int) -> None:
        connection, client = connect(served=reading_app, keep_alive_s=3600)
        connection.data_received(sent)
        for _ in range(num_turns):
            await asyncio.sleep(0)
        await close_own_direction(connection, client)
        await client.is_closed.wait()
        assert client.received.count(b"HTTP/1.1 200 ") == num_responses
        assert now_s() == 0

    body = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"
    for sent, num_responses in (
        (REQUEST, 1),
        (REQUEST * 3, 3),
        (body + b"1234", 1),
        (REQUEST + REQUEST[:9], 1),
        (REQUEST + body + b"12", 1),
        (body + b"12", 0),
        (REQUEST[:9], 0),
    ):
        for num_turns in range(3):
            run(scene(sent, num_responses, num_turns))


def test_responses_that_take_long_are_sent_after_a_half_close_too() -> None:
    class HalfClosedClient(Client):
        """asyncio reports the half-close again whenever reading is resumed."""

        connection: TimeoutH11Protocol

        def resume_reading(self) -> None:
            asyncio.get_running_loop().call_soon(self.half_close)

        def half_close(self) -> None:
            if not self.is_closed.is_set() and not self.connection.eof_received():
                self.close()
                self.connection.connection_lost(None)

    async def slow_app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(1)
        await app(scope, receive, send)

    async def scene() -> None:
        client = HalfClosedClient()
        client.connection, _ = connect(client, served=slow_app)
        client.connection.data_received(REQUEST * 3)
        client.half_close()
        await client.is_closed.wait()
        assert client.received.count(b"HTTP/1.1 200 ") == 3

    run(scene())


def test_a_client_that_closes_its_direction_later_has_given_up() -> None:
    async def scene() -> None:
        has_left = asyncio.Event()

        async def slow_app(scope: Scope, receive: Receive, send: Send) -> None:
            await receive()
            assert (await receive())["type"] == "http.disconnect"
            has_left.set()

        connection, client = connect(served=slow_app)
        connection.data_received(REQUEST)
        await asyncio.sleep(1)
        await close_own_direction(connection, client)
        await has_left.wait()
        assert not client.received

    run(scene())


def test_a_malformed_chunk_of_a_body_that_the_app_has_not_asked_for_is_a_disconnect() -> None:
    async def scene() -> None:
        messages: list[Any] = []

        async def ask(scope: Scope, receive: Receive, send: Send) -> None:
            messages.append(await receive())

        connection, client = connect(served=ask)
        head = b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.data_received(head + b"zz\r\n")
        await settle()
        assert messages == [{"type": "http.disconnect"}]
        assert client.received.startswith(b"HTTP/1.1 400 ")

    run(scene())


def test_a_response_is_cut_where_the_body_turns_out_to_be_malformed() -> None:
    async def scene() -> None:
        gate, is_done = asyncio.Event(), asyncio.Event()

        async def stream(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
            await send({"type": "http.response.body", "body": b"one", "more_body": True})
            await gate.wait()
            await send({"type": "http.response.body", "body": b"two"})
            is_done.set()

        connection, client = connect(served=stream)
        connection.data_received(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        await response_of(client)
        await settle()
        connection.data_received(b"zz\r\n")
        assert client.is_closed.is_set()
        gate.set()
        await is_done.wait()
        assert client.received.endswith(b"one")

    run(scene())


def test_beyond_the_limit_an_idle_connection_makes_room() -> None:
    async def scene() -> None:
        server = ServerState()
        connections = [connect(server=server, max_connections=3) for _ in range(3)]
        connections[1][0].data_received(REQUEST)
        await response_of(connections[1][1])
        _, late = connect(server=server, max_connections=3)
        assert [client.is_closed.is_set() for _, client in connections] == [False, True, False]
        assert not late.received

    run(scene())


def test_beyond_the_limit_a_connection_is_refused_when_all_others_are_busy() -> None:
    async def scene() -> None:
        server = ServerState()
        for _ in range(3):
            busy, _ = connect(server=server, max_connections=3)
            busy.data_received(REQUEST[:-5])
        _, late = connect(server=server, max_connections=3)
        head, _, body = late.received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: 1" in head.lower()
        assert json.loads(body)["error"]["code"] == "overloaded"
        await late.is_closed.wait()

    run(scene())


def test_the_installed_uvicorn_has_every_private_name_that_is_used() -> None:
    """Named here so that an upgrade fails with a sentence instead of an AttributeError in production."""

    async def scene() -> None:
        connection, _ = connect()
        connection.data_received(REQUEST)
        names = {
            connection: ("conn", "cycle", "flow", "loop", "transport", "connections", "timeout_keep_alive_task"),
            connection.cycle: ("keep_alive", "response_complete", "disconnected", "message_event"),
            connection.flow: ("resume_reading",),
            H11Protocol: ("data_received", "on_response_complete", "shutdown", "send_400_response"),
            uvicorn.Server: ("capture_signals", "startup", "shutdown"),
        }
        missing = [name for owner, used in names.items() for name in used if not hasattr(owner, name)]
        assert not missing, f"uvicorn {uvicorn.__version__} has no {missing}: adapt eca_service/http/protocol.py"

    run(scene())
