"""Requests whose replica is lost, on an app that stands in for Ray's proxy."""

from collections.abc import Callable
from typing import Any

import pytest
from starlette.responses import PlainTextResponse, Response
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from eca_service import ray_proxy
from eca_service.ray_proxy import MAX_TRIES, RepeatLostRequests, middlewares

OURS = {"retry-after": "1"}


class RayProxy:
    """Responds by the next item of a list; None is what Ray's proxy does when a replica dies: return in silence."""

    def __init__(self, *responses: Response | None) -> None:
        self._responses = list(responses)
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message.get("more_body", False)
        self.bodies.append(body)
        response = self._responses.pop(0)
        if response is not None:
            await response(scope, receive, send)


def post(proxy: RayProxy, content: bytes = b"an image") -> Any:
    return TestClient(RepeatLostRequests(proxy)).post("/v1/classify", content=content, headers={"x-request-id": "mine"})


@pytest.mark.parametrize("lost", [None, Response(status_code=503), Response(status_code=503, headers=OURS)])
def test_a_lost_request_is_sent_again_with_its_body(lost: Response | None) -> None:
    proxy = RayProxy(lost, PlainTextResponse("a cat"))
    response = post(proxy)
    assert (response.status_code, response.text) == (200, "a cat")
    assert proxy.bodies == [b"an image"] * 2


def test_a_body_in_several_parts_is_sent_again_whole() -> None:
    proxy = RayProxy(None, PlainTextResponse("a cat"))

    def parts() -> Any:
        yield b"an "
        yield b"image"

    assert TestClient(RepeatLostRequests(proxy)).post("/", content=parts()).status_code == 200
    assert proxy.bodies == [b"an image"] * 2


def test_after_three_tries_the_response_is_a_503_with_retry_after() -> None:
    proxy = RayProxy(*[None] * MAX_TRIES)
    response = post(proxy)
    assert len(proxy.bodies) == MAX_TRIES
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    error = response.json()["error"]
    assert (error["code"], error["request_id"]) == ("worker_lost", "mine")


def test_rays_own_503_gets_the_shape_of_our_errors_and_ours_is_passed_on() -> None:
    rays = [PlainTextResponse("unavailable", status_code=503) for _ in range(MAX_TRIES)]
    assert post(RayProxy(*rays)).json()["error"]["code"] == "worker_lost"
    ours = [PlainTextResponse("draining", status_code=503, headers=OURS) for _ in range(MAX_TRIES)]
    assert post(RayProxy(*ours)).text == "draining"


@pytest.mark.parametrize("status", [200, 404, 429, 500, 504])
def test_any_other_response_is_passed_on(status: int) -> None:
    proxy = RayProxy(PlainTextResponse("a cat", status_code=status))
    response = post(proxy)
    assert (response.status_code, response.text) == (status, "a cat")
    assert len(proxy.bodies) == 1


def test_a_body_that_is_too_long_to_be_kept_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_proxy, "MAX_KEPT_BYTES", 10)
    proxy = RayProxy(None, PlainTextResponse("a cat"))
    response = post(proxy, b"more than ten bytes")
    assert response.status_code == 503
    assert proxy.bodies == [b"more than ten bytes"]


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/models"), ("DELETE", "/v1/models/acme/digits")])
def test_a_change_of_the_models_is_not_sent_again(method: str, path: str) -> None:
    proxy = RayProxy(None, PlainTextResponse("loaded"))
    response = TestClient(RepeatLostRequests(proxy)).request(method, path)
    assert (response.status_code, len(proxy.bodies)) == (503, 1)
    assert TestClient(RepeatLostRequests(RayProxy(None, PlainTextResponse("all")))).get("/v1/models").text == "all"


async def _disconnects() -> Message:
    return {"type": "http.disconnect"}


def test_a_client_that_has_gone_is_not_waited_for_again() -> None:
    calls: list[Callable[..., Any]] = []

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        calls.append(send)
        assert (await receive())["type"] == "http.disconnect"

    async def send(message: Message) -> None:
        pytest.fail(f"sent {message}")

    call = RepeatLostRequests(proxy)({"type": "http", "method": "GET", "headers": [], "path": "/"}, _disconnects, send)
    with pytest.raises(StopIteration):
        call.send(None)
    assert len(calls) == 1


def test_ray_finds_what_it_puts_around_its_proxy() -> None:
    ray_http = pytest.importorskip("ray.serve._private.http_util", reason="pip install 'eca-hub[ray]'")
    [middleware] = ray_http.validate_http_proxy_callback_return(middlewares())
    assert middleware.cls is RepeatLostRequests
