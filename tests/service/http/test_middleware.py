"""Host names, web pages of other origins, and a path prefix of a reverse proxy."""

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
from httpx2 import Response
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from eca_service.errors import BadHost
from eca_service.http.middleware import HostCheckMiddleware
from tests.service.app_fixtures import app_with, refusal

ORIGIN = {"origin": "https://shop.example"}


def status_for(host: str, /, **settings: Any) -> int:
    with TestClient(app_with("acme/digits", **settings), raise_server_exceptions=False) as client:
        return client.post("/v1/classify", content=b"7", headers={"host": host}).status_code


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"])
def test_without_keys_the_names_of_this_machine_are_accepted(host: str) -> None:
    assert status_for(host, allowed_hosts="") == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "", "a/b?c#"]
)
def test_without_keys_another_name_is_refused_because_of_dns_rebinding(host: str) -> None:
    with TestClient(app_with("acme/digits", allowed_hosts=""), raise_server_exceptions=False) as client:
        for path in ("/v1/classify", "/v2/models/acme/digits", "/docs", "/hub/", "/nowhere"):
            response = client.post(path, content=b"7", headers={"host": host})
            if path.startswith("/v2"):
                assert (response.status_code, response.json()["code"]) == (400, "bad_host")
            else:
                error = refusal(response, 400, "bad_host")
                assert "--allowed_hosts" in error["hint"]
        assert "evil" not in response.text


@pytest.mark.anyio
async def test_a_health_check_in_http_1_0_needs_no_host() -> None:
    reached = []

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        """Drop the refusal, which the middleware replaces."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(scope["http_version"])

    check = HostCheckMiddleware(app, ["localhost"])
    scope = {"type": "http", "headers": [], "state": {}}
    await check({**scope, "http_version": "1.0"}, receive, send)
    assert reached == ["1.0"]
    for version, headers in (("1.1", []), ("1.0", [(b"host", b"evil.example")])):
        with pytest.raises(BadHost):
            await check({**scope, "http_version": version, "headers": headers}, receive, send)


@pytest.mark.parametrize(("settings", "is_warned"), [({}, True), ({"allowed_hosts": "vision.example"}, False)])
def test_a_prefix_without_host_names_is_a_warning_at_the_start(
    settings: dict[str, Any], is_warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app_with("acme/digits", root_path="/vision", **({"allowed_hosts": ""} | settings))
    assert ("--allowed_hosts NAME" in caplog.text) == is_warned


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/healthz", "/readyz"])
def test_pages_and_probes_answer_head(path: str) -> None:
    with TestClient(app_with("acme/digits")) as client:
        assert client.head(path).status_code == client.get(path).status_code == 200


def test_the_description_is_rendered_once_and_its_page_names_the_host_of_each_client() -> None:
    app = app_with("acme/digits", allowed_hosts="testserver,vision.example")
    with TestClient(app) as client:
        first = client.get("/openapi.json")
        assert "/v1/classify" in first.json()["paths"]
        assert "http://testserver/v1/classify" in client.get("/docs").text
        app.openapi = lambda: pytest.fail("it was rendered again")  # type: ignore[method-assign]
        assert client.get("/openapi.json").content == first.content
        page = client.get("/docs", headers={"host": "vision.example"}).text
    assert "http://vision.example/v1/classify" in page
    assert "testserver" not in page


def test_a_required_key_or_insecure_allows_any_name() -> None:
    assert status_for("any.example", allowed_hosts="", keys=["sesame"]) == 401
    assert status_for("any.example", allowed_hosts="", insecure=True) == 200


def test_names_can_be_listed() -> None:
    listed = "vision.example.com, *.example.org"
    for host, status in (
        ("vision.example.com", 200),
        ("a.example.org:81", 200),
        ("example.com", 400),
        ("127.0.0.1", 400),
    ):
        assert status_for(host, allowed_hosts=listed) == status


@pytest.mark.parametrize("settings", [{"allowed_hosts": "fd00::1"}, {"allowed_hosts": "", "host": "fd00::1"}])
def test_an_ipv6_address_may_be_given_without_the_brackets_of_a_host_header(settings: dict[str, Any]) -> None:
    assert status_for("[fd00::1]:8000", **settings) == 200
    assert status_for("[fd00::2]:8000", **settings) == 400


def test_by_default_no_page_of_another_origin_can_read_a_response() -> None:
    with TestClient(app_with("acme/digits"), raise_server_exceptions=False) as client:
        preflight = client.options("/v1/classify", headers=ORIGIN | {"access-control-request-method": "POST"})
        assert preflight.status_code == 405
        response = client.post("/v1/classify", content=b"7", headers=ORIGIN)
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_a_page_of_a_listed_origin_can() -> None:
    app = app_with("acme/digits", keys=["sesame"], cors_origins="https://Shop.example:443, http://localhost:3000")
    with TestClient(app, raise_server_exceptions=False) as client:
        asks_for_post = {
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,inference-header-content-length",
        }
        preflight = client.options("/v1/classify", headers=ORIGIN | asks_for_post)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://shop.example"
        assert "x-request-id" in preflight.headers
        key = {"authorization": "Bearer sesame"}
        for headers, status in ((key, 200), ({}, 401)):
            response = client.post("/v1/classify", content=b"7", headers=ORIGIN | headers)
            assert response.status_code == status
            assert response.headers["access-control-allow-origin"] == "https://shop.example"
            assert "inference-header-content-length" in response.headers["access-control-expose-headers"].lower()
        other = client.post("/v1/classify", content=b"7", headers=key | {"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


def test_such_a_page_can_read_every_error() -> None:
    app = app_with("acme/digits", cors_origins="https://shop.example")
    with TestClient(app, raise_server_exceptions=False) as client:
        state = app.state.service
        errors = [
            refused(client, 400, "bad_host", headers={"host": "evil.example"}),
            refused(client, 431, "head_too_large", headers={"x-long": "x" * 20_000}),
        ]
        admission = state.registry.find(None).batcher._admission
        admission.num_items = admission.max_items
        errors.append(refused(client, 429, "overloaded"))
        admission.num_items = 0
        state.registry.find = None
        errors.append(refused(client, 500, "internal"))
    assert {response.headers.get("access-control-allow-origin") for response in errors} == {"https://shop.example"}


def refused(client: TestClient, status: int, code: str, headers: Mapping[str, str] = MappingProxyType({})) -> Response:
    response = client.post("/v1/classify", content=b"7", headers={**ORIGIN, **headers})
    refusal(response, status, code)
    return response


@pytest.mark.parametrize(
    "changes",
    [
        {"origin": "https://evil.example"},
        {"access-control-request-method": "PUT"},
        {"access-control-request-headers": "x-other"},
    ],
)
def test_a_refused_preflight_is_an_error_in_the_one_shape(changes: dict[str, str]) -> None:
    with TestClient(app_with("acme/digits", cors_origins="https://shop.example")) as client:
        headers = {**ORIGIN, "access-control-request-method": "POST", **changes}
        response = client.options("/v1/classify", headers=headers)
    refusal(response, 422, "invalid_request")
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("path", ["/", "/static/app.js"])
@pytest.mark.parametrize("value", ["bytes=0-3", "bytes=999999999-", "nonsense", "bytes=0-1,3-4"])
def test_files_of_the_page_are_sent_whole_whatever_range_is_requested(path: str, value: str) -> None:
    with TestClient(app_with("acme/digits")) as client:
        response = client.get(path, headers={"range": value})
        assert (response.status_code, response.content) == (200, client.get(path).content)
        assert response.headers["accept-ranges"] == "none"


@pytest.mark.parametrize("route", ["classify", "explain", "embed", "detect"])
def test_a_parameter_that_is_given_twice_is_refused(route: str) -> None:
    with TestClient(app_with("acme/digits")) as client:
        for query in ("model=acme/digits&model=acme/other", "model=acme/digits&model=acme/digits", "a&a"):
            error = refusal(client.post(f"/v1/{route}?{query}", content=b"7"), 422, "invalid_request")
            assert error["message"] == "The query has a parameter twice."


@pytest.mark.parametrize(
    ("header", "is_valid"),
    [
        (f"00-{'a1' * 16}-{'b2' * 8}-01", True),
        (f"cc-{'a1' * 16}-{'b2' * 8}-01", True),
        (f"ff-{'a1' * 16}-{'b2' * 8}-01", False),
        (f"00-{'0' * 32}-{'b2' * 8}-01", False),
        (f"00-{'a1' * 16}-{'0' * 16}-01", False),
        (f"00-{'A1' * 16}-{'b2' * 8}-01", False),
        ("SENTINEL", False),
    ],
)
def test_the_access_log_has_the_trace_of_the_client(
    header: str, is_valid: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "eca_service.access")
    with TestClient(app_with("acme/digits")) as client:
        client.get("/healthz", headers={"traceparent": header})
    [record] = [record for record in caplog.records if record.name == "eca_service.access"]
    fields = vars(record)["fields"]
    assert fields.get("trace_id") == ("a1" * 16 if is_valid else None)
    assert "SENTINEL" not in str(fields)


def test_links_and_redirects_carry_the_prefix_that_a_proxy_strips() -> None:
    # As uvicorn does it: the path that the application sees has the prefix again.
    client = TestClient(app_with("acme/digits"), root_path="/vision", raise_server_exceptions=False)
    with client:
        page = client.get("/vision/docs").text
        assert "http://testserver/vision/openapi.json" in page
        assert "http://testserver/vision/v1/classify" in page
        assert client.get("/vision/openapi.json").json()["servers"] == [{"url": "/vision"}]
        redirect = client.get("/vision/healthz/", follow_redirects=False)
        assert redirect.headers["location"] == "http://testserver/vision/healthz"
        assert client.post("/vision/v1/classify", content=b"7").status_code == 200
        assert "error" in client.get("/vision/v2/models/acme/other").json()
        assert isinstance(client.get("/vision/v2/models/acme/other").json()["error"], str)


def test_head_is_logged_as_such_with_the_route_that_answered(caplog: pytest.LogCaptureFixture) -> None:
    with TestClient(app_with("acme/digits")) as client, caplog.at_level(logging.INFO, "eca_service.access"):
        response = client.head("/v1/models")
    assert (response.status_code, response.content) == (200, b"")
    assert int(response.headers["content-length"]) > 0
    [record] = [each for each in caplog.records if "HEAD" in each.getMessage()]
    assert "/v1/models" in record.getMessage()
