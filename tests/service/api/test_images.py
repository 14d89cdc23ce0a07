"""Parsing bodies: in the event loop only what takes about a millisecond."""

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from eca_service.api import images
from eca_service.api.images import parse_body
from eca_service.http import strict_json
from eca_service.http.body import BodyReader
from eca_service.http.strict_json import Buffer, MarkCounts, count_marks
from tests.service.app_fixtures import app_with


@pytest.mark.parametrize(
    ("body", "num_json", "runs_in_loop"),
    [
        (b'{"images": ["QQ=="]}', 20, True),
        (b"," * 5_000, 0, True),
        (b"," * 5_000, 100, True),
        (b"," * 5_000, 5_000, False),
        (b"{" * 5_000, 5_000, False),
        (bytes(2**20 + 1), 0, False),
    ],
)
def test_a_body_that_is_large_or_has_many_elements_is_parsed_in_a_thread(
    body: bytes, num_json: int, runs_in_loop: bool
) -> None:
    def parse(body: object, loop_thread: threading.Thread, mark_counts: MarkCounts | None) -> bool:
        return threading.current_thread() is loop_thread

    async def receive_nothing() -> None:
        await asyncio.Event().wait()

    async def scene() -> bool:
        request: Any = SimpleNamespace(receive=receive_nothing)
        state: Any = SimpleNamespace(bodies=BodyReader(max_total_bytes=2**20, timeout_s=1, deadline_s=1))
        return await parse_body(request, state, num_json, parse, body, threading.current_thread())

    assert asyncio.run(scene()) is runs_in_loop


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/v1/classify", {"images": ["QQ=="]}),
        ("/models/acme/digits", {"inputs": "QQ=="}),
        (
            "/v2/models/acme/digits/infer",
            {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["QQ=="]}]},
        ),
    ],
)
def test_the_marks_of_a_json_body_are_counted_once(path: str, content: object, monkeypatch: pytest.MonkeyPatch) -> None:
    num_counts = 0

    def count(body: Buffer, end: int | None = None) -> MarkCounts:
        nonlocal num_counts
        num_counts += 1
        return count_marks(body, end)

    for module in (images, strict_json):
        monkeypatch.setattr(module, "count_marks", count)
    with TestClient(app_with("acme/digits")) as client:
        client.post(path, json=content)
    assert num_counts == 1
