"""Downloads by sendfile: the bytes of the file, on a connection that stays usable, and an end that clients notice."""

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from eca_hub.localhub import timeouts
from eca_hub.localhub.downloads import EXTENSION, FileRangeResponse, SendfileH11Protocol
from eca_hub.localhub.server import listen

CONTENT = os.urandom(5 << 20)


@pytest.fixture
def app(tmp_path: Path) -> Starlette:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)

    async def send(request: Request) -> Response:
        start, end = (int(request.query_params[name]) for name in ("start", "end"))
        headers = {"Content-Length": str(end - start), "X-By-Sendfile": str(EXTENSION in request["extensions"])}
        return FileRangeResponse(path.open("rb"), start, end, 200, headers, "application/octet-stream")

    return Starlette(routes=[Route("/", send)])


@contextlib.contextmanager
def serving(app: ASGIApp) -> Iterator[tuple[str, int]]:
    with listen("127.0.0.1", 0) as listener:
        config = uvicorn.Config(app, http=SendfileH11Protocol, loop="asyncio", lifespan="off", log_level="warning")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()
        server.should_exit = True
        thread.join()


@pytest.fixture
def url(app: Starlette) -> Iterator[str]:
    with serving(app) as address:
        yield "http://{}:{}".format(*address)


@pytest.mark.parametrize(("start", "end"), [(0, len(CONTENT)), (1000, 1_000_000), (0, 1), (5, 5)])
def test_a_part_of_a_file_arrives_as_it_is_on_a_connection_that_stays_open(url: str, start: int, end: int) -> None:
    with httpx2.Client(base_url=url, verify=False) as client:
        for _ in range(3):
            response = client.get("/", params={"start": start, "end": end})
            assert response.headers["x-by-sendfile"] == "True"
            assert response.content == CONTENT[start:end]


def test_another_server_sends_the_same_bytes(app: Starlette) -> None:
    response = TestClient(app).get("/", params={"start": 7, "end": 3_000_000})
    assert response.headers["content-length"] == str(3_000_000 - 7)
    assert response.content == CONTENT[7:3_000_000]


def test_a_client_that_disconnects_is_not_an_error_of_the_server(url: str, caplog: pytest.LogCaptureFixture) -> None:
    host, port = url.removeprefix("http://").split(":")
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            with socket.create_connection((host, int(port)), timeout=5) as connection:
                connection.sendall(f"GET /?start=0&end={len(CONTENT)} HTTP/1.1\r\nHost: hub\r\n\r\n".encode())
                assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        assert httpx2.get(url, params={"start": 0, "end": 10}, verify=False).content == CONTENT[:10]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_client_that_never_receives_is_disconnected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(timeouts, "BODY_GRACE_S", 0.1)
    monkeypatch.setattr(timeouts, "BODY_BYTES_PER_S", 1 << 30)
    num_bytes = 256 << 20  # more than the buffers of both sockets
    path = tmp_path / "large"
    path.touch()
    os.truncate(path, num_bytes)
    is_done = threading.Event()

    async def send(scope: Scope, receive: Receive, send: Send) -> None:
        headers = {"Content-Length": str(num_bytes)}
        response = FileRangeResponse(path.open("rb"), 0, num_bytes, 200, headers, "application/octet-stream")
        await response(scope, receive, send)
        is_done.set()

    with serving(send) as (host, port), socket.create_connection((host, port), timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n")
        assert is_done.wait(30)
        num_received = 0
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(1 << 20):
                num_received += len(piece)
        assert num_received < num_bytes
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_file_that_becomes_shorter_ends_before_its_length(url: str) -> None:
    with pytest.raises(httpx2.TransportError):
        httpx2.get(url, params={"start": 0, "end": len(CONTENT) + 10}, verify=False)
    assert httpx2.get(url, params={"start": 0, "end": 10}, verify=False).content == CONTENT[:10]


def test_the_names_of_uvicorn_that_the_protocols_use_exist() -> None:
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        protocol = H11Protocol(uvicorn.Config(Starlette()), uvicorn.server.ServerState(), {}, loop)
    missing = [name for name in ("app", "conn", "cycle", "flow", "loop", "transport") if not hasattr(protocol, name)]
    assert missing == [], f"uvicorn {uvicorn.__version__} has changed: timeouts.py and sendfile.py need {missing}"
