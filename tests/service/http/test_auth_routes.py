"""Authentication as clients see it."""

import asyncio
import logging
from collections.abc import Iterator, MutableMapping
from typing import Any, NoReturn

import pytest
from starlette.testclient import TestClient

from eca_hub.__main__ import main
from eca_service.errors import BadSetting
from eca_service.http.auth import ApiKeys, check_bind_address
from tests.service.app_fixtures import app_with, refusal

KEY = "SENTINEL-one"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org", ""])
def test_listening_beyond_loopback_requires_a_key(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadSetting):
        check_bind_address(host, ApiKeys(), insecure=False)
    check_bind_address(host, ApiKeys(["one"]), insecure=False)
    check_bind_address(host, ApiKeys(), insecure=True)
    assert main(["serve", "--model", "a/b", f"--host={host}"]) == 2
    assert "ECA_API_KEYS" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_listening_on_loopback_requires_no_key(host: str) -> None:
    check_bind_address(host, ApiKeys(), insecure=False)


@pytest.fixture
def locked() -> Iterator[TestClient]:
    with TestClient(app_with("acme/digits", keys=[KEY]), raise_server_exceptions=False) as client:
        yield client


def test_the_key_is_checked_before_anything_else(locked: TestClient) -> None:
    for query in ("", "?top_k=nonsense", "?model=acme/other"):
        response = locked.post(f"/v1/classify{query}", content=b"7" * 60_000)
        refusal(response, 401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"
    for path in ("/models/acme/digits", "/models/acme/other"):
        refusal(locked.post(path, content=b"7"), 401, "unauthorized")
    refusal(locked.get("/v1/models"), 401, "unauthorized")


def test_nothing_of_the_body_is_read_without_the_key() -> None:
    async def receive() -> NoReturn:
        raise AssertionError("the body was read")

    async def scene() -> list[int]:
        statuses: list[int] = []

        async def send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        app = app_with("acme/digits", keys=[KEY], allowed_hosts="*")
        for path in ("/v1/classify", "/models/acme/digits", "/v1/explain", "/v2/models/acme/digits/infer"):
            scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": path, "query_string": b""}
            await app({**scope, "headers": [(b"content-length", b"9")]}, receive, send)
        return statuses

    assert asyncio.run(scene()) == [401] * 4


def test_every_response_has_the_security_headers(locked: TestClient) -> None:
    for path in ("/healthz", "/docs", "/v1/models", "/nowhere"):
        headers = locked.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


def test_an_image_cannot_be_sent_as_a_url(locked: TestClient) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    address = "http://169.254.169.254/latest/meta-data/"
    for body in ({"images": [address]}, {"url": address}, {"images": [{"url": address}]}):
        refusal(locked.post("/v1/classify", json=body, headers=headers), 422, "invalid_request")
    body = {"inputs": address}
    refusal(locked.post("/models/acme/digits", json=body, headers=headers), 422, "invalid_request")


def test_a_request_with_the_key_is_accepted(locked: TestClient) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    assert locked.post("/v1/classify", content=b"7", headers=headers).status_code == 200
    assert locked.get("/v1/models", headers=headers).status_code == 200


def test_probes_and_documentation_require_no_key(locked: TestClient) -> None:
    for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
        assert locked.get(path).status_code == 200


def test_metrics_require_the_key(locked: TestClient) -> None:
    refusal(locked.get("/metrics"), 401, "unauthorized")
    assert locked.get("/metrics", headers={"authorization": f"Bearer {KEY}"}).status_code == 200


def test_a_key_is_never_repeated_or_logged(locked: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    responses = [
        locked.post("/v1/classify", content=b"7", headers={"authorization": f"Bearer {KEY}x"}),
        locked.post(f"/v1/classify?key={KEY}", content=b"7", headers={"authorization": f"Bearer {KEY}"}),
        locked.post("/v1/classify", content=b"broken", headers={"authorization": f"Bearer {KEY}"}),
    ]
    assert [response.status_code for response in responses] == [401, 422, 422]
    assert not any(KEY in response.text for response in responses)
    service_logs = [record for record in caplog.records if not record.name.startswith("http")]
    assert not any(KEY in record.getMessage() for record in service_logs)
