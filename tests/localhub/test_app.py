"""A hub mounted in another application refuses slow bodies there, too."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from starlette.types import Message

from eca_hub.localhub import Store, Users, create_app, timeouts
from eca_hub.localhub.app import open_app
from eca_hub.localhub.timeouts import BODY_GRACE_S, BodyTimeoutMiddleware

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
