"""A hub mounted in another application refuses slow bodies there, too."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from starlette.types import Message

from eca_hub.localhub import Store, Users, create_app, timeouts, uploads
from eca_hub.localhub.app import open_app
from eca_hub.localhub.server import url_of
from eca_hub.localhub.timeouts import BODY_GRACE_S, BodyTimeoutMiddleware
from tests.localhub.hub_process import opened_hub
from tests.localhub.push_client import REPO, push

PATH = "/api/validate-yaml"
BODY = b'{"content": "x", "repoType": "model"}'


class SlowClient:
    """A client that sends a body in pieces, each of which takes some seconds of a simulated clock."""

    def __init__(self, piece_s: float) -> None:
        self._piece_s = piece_s
        self._now_s = 0.0
        self._pieces = [BODY[start : start + 5] for start in range(0, len(BODY), 5)]

    def clock(self) -> float:
        return self._now_s

    async def receive(self) -> Message:
        await asyncio.sleep(0)
        self._now_s += self._piece_s
        return {"type": "http.request", "body": self._pieces.pop(0), "more_body": bool(self._pieces)}


def send(root: Path, receive: Callable[[], Awaitable[Message]], clock: Callable[[], float] = time.monotonic) -> int:
    """Send one request to the application and return the status of the response."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"host", b"hub:1")]
    scope = {"type": "http", "method": "POST", "path": PATH, "raw_path": PATH.encode(), "query_string": b""}
    with contextlib.closing(Store(root)) as store:
        app = BodyTimeoutMiddleware(create_app(store, Users.single("token")), clock)
        request = app({**scope, "headers": headers, "root_path": "", "scheme": "http"}, receive, send)
        asyncio.run(request)
    return int(sent[0]["status"])


def test_a_body_that_never_arrives_gets_408(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "BODY_GRACE_S", 0.01)

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError("nothing ever comes")

    assert send(tmp_path, receive) == 408


def test_a_body_that_arrives_in_small_pieces_gets_408(tmp_path: Path) -> None:
    client = SlowClient(piece_s=BODY_GRACE_S / 2)
    assert send(tmp_path, client.receive, client.clock) == 408


def test_a_long_body_on_a_slow_connection_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "BODY_BYTES_PER_S", 5 / BODY_GRACE_S)
    client = SlowClient(piece_s=BODY_GRACE_S / 2)
    assert send(tmp_path, client.receive, client.clock) == 200


def test_a_mounted_hub_has_the_time_limit(tmp_path: Path) -> None:
    with open_app(tmp_path) as app:
        assert isinstance(app, BodyTimeoutMiddleware)
    assert (tmp_path / "token").read_text().startswith("local_")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8001", 200),
        ("localhost", 200),
        ("[::1]:7860", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example:8001", 400),
    ],
)
def test_a_hub_on_loopback_refuses_other_host_names(tmp_path: Path, host: str, status: int) -> None:
    with contextlib.closing(Store(tmp_path)) as store:
        client = TestClient(create_app(store, Users.single("local-token"), is_loopback_only=True))
        assert client.get("/api/models", headers={"Host": host}).status_code == status


def test_the_url_of_an_ipv6_address_has_brackets() -> None:
    class Listening(socket.socket):
        def getsockname(self) -> tuple[str, int, int, int]:
            return ("fd00::5", 8001, 0, 0)

    with Listening() as server_socket:
        assert url_of(server_socket) == "http://[fd00::5]:8001"


@pytest.mark.parametrize("name", ["num_parameters", "apps", "inference", "inference_provider", "linked"])
def test_a_filter_that_the_hub_cannot_apply_is_refused(tmp_path: Path, name: str) -> None:
    with opened_hub(tmp_path) as client:
        assert client.get("/api/models", params={name: "x"}).status_code == 400


def test_a_size_must_be_a_number(tmp_path: Path) -> None:
    with opened_hub(tmp_path) as client:
        push(client, {}, {})
        body = {"operation": "upload", "objects": [{"oid": "0" * 64, "size": True}]}
        assert client.post(f"/{REPO}.git/info/lfs/objects/batch", json=body).status_code == 422
        requested = {"files": [{"path": "a.txt", "size": True, "sample": ""}]}
        assert client.post(f"/api/models/{REPO}/preupload/main", json=requested).status_code == 400


def test_a_commit_that_is_too_large_is_refused_by_its_own_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened_hub(tmp_path) as client:
        push(client, {}, {})
        monkeypatch.setattr(uploads, "MAX_COMMIT_BYTES", 10)
        response = client.post(f"/api/models/{REPO}/commit/main", content=iter([b"{}\n"] * 9))
    assert (response.status_code, response.json()["error"]) == (413, "The body is larger than 10 bytes.")
