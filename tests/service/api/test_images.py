"""Parsing bodies: in the event loop only what takes about a millisecond."""

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from eca_service.api.images import parse_body
from eca_service.http.body import BodyReader


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
    def parse(body: object, loop_thread: threading.Thread) -> bool:
        return threading.current_thread() is loop_thread

    async def scene() -> bool:
        state: Any = SimpleNamespace(bodies=BodyReader(max_total_bytes=2**20, timeout_s=1))
        return await parse_body(state, num_json, parse, body, threading.current_thread())

    assert asyncio.run(scene()) is runs_in_loop
