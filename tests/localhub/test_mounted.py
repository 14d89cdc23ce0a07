"""A hub inside another application: whoever sends a body too slowly is refused there too."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from starlette.types import Message

from eca_hub.localhub import asgi as mounted
from eca_hub.localhub.asgi import InTime, opened
from eca_hub.localhub.timeouts import BODY_GRACE_S

PATH = "/api/validate-yaml"
BODY = b'{"content": "x", "repoType": "model"}'


class Line:
    """A client that sends a body in pieces, each of which takes so long; nothing is waited for but the loop."""

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


def ask(root: Path, receive: Callable[[], Awaitable[Message]], clock: Callable[[], float] = time.monotonic) -> int:
    """Send one request straight to the application and return the status of its answer."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"host", b"hub:1")]
    scope = {"type": "http", "method": "POST", "path": PATH, "raw_path": PATH.encode(), "query_string": b""}
    with opened(root) as app:
        request = InTime(app, clock)({**scope, "headers": headers, "root_path": "", "scheme": "http"}, receive, send)
        asyncio.run(request)
    return int(sent[0]["status"])


def test_a_body_that_never_comes_is_answered_408(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounted, "BODY_GRACE_S", 0.01)

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError("nothing ever comes")

    assert ask(tmp_path, receive) == 408


def test_a_body_that_drips_is_answered_408(tmp_path: Path) -> None:
    line = Line(piece_s=BODY_GRACE_S / 2)
    assert ask(tmp_path, line.receive, line.clock) == 408


def test_a_long_body_on_a_slow_line_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounted, "BODY_BYTES_PER_S", 5 / BODY_GRACE_S)
    line = Line(piece_s=BODY_GRACE_S / 2)
    assert ask(tmp_path, line.receive, line.clock) == 200
