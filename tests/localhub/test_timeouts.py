"""Slow requests end, responses are not delayed, and a repository deleted meanwhile is a 404."""

import concurrent.futures
import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from eca_hub.localhub import Store, Users, create_app, timeouts
from eca_hub.localhub.errors import HubHTTPError
from eca_hub.localhub.server import listen
from eca_hub.localhub.validation import parse_repo_id
from tests.localhub.hub_process import opened_hub
from tests.localhub.push_client import REPO, push

UPLOAD = b"POST /api/repos/create HTTP/1.1\r\nHost: hub\r\nContent-Length: 1000000\r\n\r\n"


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """A hub in this process with short timeouts."""
    monkeypatch.setattr(timeouts, "HEADERS_TIMEOUT_S", 0.3)
    monkeypatch.setattr(timeouts, "BODY_GRACE_S", 0.3)
    with contextlib.closing(Store(tmp_path / "hub")) as store, listen("127.0.0.1", 0) as listener:
        app = create_app(store, Users.single("local-token"))
        config = uvicorn.Config(app, http=timeouts.TimeoutH11Protocol, ws="none", lifespan="off", log_level="warning")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()[:2]
        server.should_exit = True
        thread.join()


def read_response(connection: socket.socket) -> bytes:
    """Everything until the hub closes the connection."""
    pieces = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            pieces += piece
    return pieces


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: hub\r\n"])
def test_headers_that_never_end_are_cut_off(sent: bytes, address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(sent)
        assert read_response(connection) == b""


def test_second_headers_that_never_end_are_cut_off_too(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(b"GET /api/models HTTP/1.1\r\nHost: hub\r\n\r\n")
        assert b"200 OK" in connection.recv(65536)
        connection.sendall(b"GET /api/mod")
        assert b"HTTP/1.1" not in read_response(connection)


def test_a_body_that_never_arrives_gets_408(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(UPLOAD + b"abc")
        response = read_response(connection)
    assert response.startswith(b"HTTP/1.1 408 ")
    assert b"X-Error-Code: body_timeout" in response


def test_a_body_that_arrives_byte_by_byte_gets_408(address: tuple[str, int]) -> None:
    is_done = threading.Event()
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(UPLOAD)

        def drip() -> None:
            with contextlib.suppress(OSError):
                while not is_done.wait(0.05):
                    connection.sendall(b"x")

        thread = threading.Thread(target=drip)
        thread.start()
        response = read_response(connection)
        is_done.set()
        thread.join()
    assert response.startswith(b"HTTP/1.1 408 ")


def test_a_large_body_on_a_slow_connection_continues(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "BODY_BYTES_PER_S", 1000)
    body = b'{"name": "x"}' + b" " * 1000
    head = f"POST /api/repos/create HTTP/1.1\r\nHost: hub\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(head + body[:900])
        assert not threading.Event().wait(0.6)
        connection.sendall(body[900:])
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_responses_do_not_wait_for_more_to_send() -> None:
    with listen("127.0.0.1", 0) as listener:
        # What asyncio reads before it turns the delay off for a connection.
        assert listener.proto == socket.IPPROTO_TCP


def test_reading_and_writing_during_a_deletion_is_never_a_server_error(tmp_path: Path) -> None:
    with opened_hub(tmp_path) as client:

        def create_and_delete(number: int) -> set[int]:
            seen = set()
            for _ in range(6):
                seen.add(client.request("DELETE", "/api/repos/delete", json={"name": REPO}).status_code)
                with contextlib.suppress(Exception):
                    push(client, {f"{number}.txt": os.urandom(8)}, {})
            return seen

        def read() -> set[int]:
            paths = ("", "/tree/main", "/commits/main", "/refs", "/revision/main")
            urls = [f"/api/models/{REPO}{path}" for path in paths]
            urls += [f"/{REPO}/resolve/main/.gitattributes", f"/{REPO}", "/", "/api/models"]
            return {client.get(url).status_code for _ in range(8) for url in urls}

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            jobs = [
                pool.submit(create_and_delete, 1),
                pool.submit(create_and_delete, 2),
                pool.submit(read),
                pool.submit(read),
            ]
            seen = set().union(*(job.result() for job in jobs))
    assert seen <= {200, 404}


def test_a_commit_to_a_repository_that_was_just_deleted_is_refused(tmp_path: Path) -> None:
    with contextlib.closing(Store(tmp_path)) as store:
        repo_id = parse_repo_id("model", REPO)
        repo = store.create_repo(repo_id, "local", False)
        store.delete_repo(repo_id)
        with pytest.raises(HubHTTPError) as refused:
            repo.create_ref("tag", "v1", repo.refs["refs/heads/main"])
        assert refused.value.code == "RepoNotFound"
        assert not repo.folder.exists()
