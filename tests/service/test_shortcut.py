"""The short way to an answer, held against the long one: nobody may see which was taken, except by a clock."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from eca_service.http.shortcut import PATH
from tests.service.test_routes import app_with

KEY = {"authorization": "Bearer sesame"}


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"7", KEY),
        (b"7", {}),
        (b"broken", KEY),
        (b"7" * 20_000, KEY),
        (b"{", KEY | {"content-type": "application/json"}),
        (b"7", KEY | {"content-type": "text/html"}),
    ],
)
def test_both_ways_give_the_same_status_headers_and_answer(content: bytes, headers: dict[str, str]) -> None:
    def asked(path: str) -> tuple[int, dict[str, str], Any]:
        answer = client.post(path, content=content, headers=headers | {"x-request-id": "same"})
        body = answer.json()
        body.pop("timing_ms", None)
        kept = {
            name: value for name, value in answer.headers.items() if name not in ("server-timing", "content-length")
        }
        return answer.status_code, kept, body

    with TestClient(app_with("acme/digits", keys=["sesame"]), raise_server_exceptions=False) as client:
        assert asked(PATH) == asked(f"{PATH}?model=acme/digits")


def test_other_methods_go_the_long_way() -> None:
    with TestClient(app_with("acme/digits"), raise_server_exceptions=False) as client:
        assert client.get(PATH).status_code == 405
