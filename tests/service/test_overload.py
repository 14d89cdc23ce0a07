"""Overload, clients that disconnect and an engine that hangs: the whole app with a gated runner, on a fake clock."""

import asyncio
import json
import re
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI

from eca_service.app import create_app
from eca_service.http.auth import ApiKeys
from eca_service.inference.model import ServedModel
from eca_service.models.registry import Registry
from eca_service.models.source import ModelSource
from eca_service.settings import Settings
from tests.service.fakes import GatedRunner, fake_model, run, settle


async def app_behind(gate: GatedRunner, *, keys: ApiKeys = ApiKeys(), **model: Any) -> FastAPI:
    async def open_fake(source: ModelSource) -> ServedModel[Any, Any]:
        return fake_model(gate, model_id=source.id_or_folder, **model)

    registry = Registry([ModelSource("acme/digits")], open_fake)
    app = create_app(Settings(model=("acme/digits",), allowed_hosts="*"), registry, keys)
    await registry.load_all()
    return app


@dataclass
class FakeClient:
    """One request over ASGI, whose client can disconnect."""

    app: FastAPI
    content: bytes = b""
    path: str = "/v1/classify"
    query: bytes = b""
    request_headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    status: int | None = None
    body: bytes = b""
    headers: dict[bytes, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._gone = asyncio.Event()
        self._has_sent = False
        self.task = asyncio.create_task(self._call())

    def hang_up(self) -> None:
        self._gone.set()

    async def _call(self) -> None:
        scope: dict[str, Any] = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST" if self.content else "GET",
            "path": self.path,
            "query_string": self.query,
            "headers": self.request_headers,
        }
        await self.app(scope, self._receive, self._send)

    async def _receive(self) -> MutableMapping[str, Any]:
        if not self._has_sent:
            self._has_sent = True
            return {"type": "http.request", "body": self.content, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = dict(message["headers"])
        else:
            self.body += message["body"]


async def counted(app: FastAPI) -> tuple[int, dict[tuple[str, str], int]]:
    """Requests received and ended, without this one."""
    client = FakeClient(app, path="/metrics")
    await client.task
    text = client.body.decode()
    received = re.search(r"eca_requests_received_total ([\d.]+)", text)
    assert received is not None
    ended = re.findall(r'eca_requests_total{code="(.*?)",route="(.*?)"} ([\d.]+)', text)
    return int(float(received[1])) - 1, {(route, code): int(float(count)) for code, route, count in ended}


def test_beyond_the_limit_exactly_the_surplus_is_refused_and_all_admitted_requests_get_results() -> None:
    async def scene() -> None:
        gate = GatedRunner()
        app = await app_behind(gate, max_items=8)
        clients = [FakeClient(app, b"%d" % number) for number in range(18)]
        await settle()
        refused = [client for client in clients if client.task.done()]
        assert [client.status for client in refused] == [429] * 10
        for client in refused:
            assert int(client.headers[b"retry-after"]) >= 1
            assert json.loads(client.body)["error"]["code"] == "overloaded"
        probe = FakeClient(app, path="/healthz")
        await settle()
        assert probe.status == 200, "the event loop is free while the engine works"
        gate.gate.set()
        await asyncio.gather(*(client.task for client in clients))
        assert [client.status for client in clients].count(200) == 8
        assert sorted(item for batch in gate.batches for item in batch) == list(range(8)), "refused before decoding"
        received, ended = await counted(app)
        assert received == sum(ended.values()) == 19
        assert ended["/v1/classify", "429"] == 10

    run(scene())


def test_a_full_service_refuses_alike_with_and_without_a_query_and_asks_for_the_key_first() -> None:
    async def scene() -> None:
        gate = GatedRunner()
        app = await app_behind(gate, keys=ApiKeys(["secret"]), max_items=1)
        key = [(b"authorization", b"Bearer secret")]
        first = FakeClient(app, b"1", request_headers=key)
        await settle()
        clients = [
            FakeClient(app, b"2", request_headers=key),
            FakeClient(app, b"2", query=b"top_k=1", request_headers=key),
            FakeClient(app, b"2"),
            FakeClient(app, b"2", query=b"top_k=1"),
        ]
        await asyncio.gather(*(client.task for client in clients))
        assert [client.status for client in clients] == [429, 429, 401, 401]
        plain, queried = (json.loads(client.body)["error"] | {"request_id": ""} for client in clients[:2])
        assert plain == queried
        assert clients[0].headers.keys() == clients[1].headers.keys()
        metrics = FakeClient(app, path="/metrics", request_headers=key)
        await metrics.task
        assert b'eca_requests_rejected_total{code="overloaded"} 2.0' in metrics.body
        gate.gate.set()
        await first.task

    run(scene())


def test_when_the_expected_wait_is_too_long_a_request_gets_429_with_retry_after() -> None:
    async def scene() -> None:
        gate = GatedRunner()
        app = await app_behind(gate, max_items=100, max_batch=1, max_queue_delay_s=4.0, s_per_item=1.0)
        clients = [FakeClient(app, b"%d" % number) for number in range(8)]
        await settle()
        refused = [client for client in clients if client.task.done()]
        assert refused == clients[5:]
        assert [client.status for client in refused] == [429] * 3
        # 4.5 s of work are in flight; clients that are refused together do not come back together.
        retry_s = [int(client.headers[b"retry-after"]) for client in refused]
        assert 5 <= min(retry_s) < max(retry_s) <= 14
        gate.gate.set()
        await asyncio.gather(*(client.task for client in clients))
        assert [client.status for client in clients[:5]] == [200] * 5
        after = FakeClient(app, b"9")
        await after.task
        assert after.status == 200
        received, ended = await counted(app)
        assert received == sum(ended.values()) == 9

    run(scene())


def test_refusals_to_clients_that_retry_at_once_are_delayed() -> None:
    async def scene() -> None:
        gate = GatedRunner()
        app = await app_behind(gate, max_items=1, s_per_item=1.0, deadline_s=60.0)
        first = FakeClient(app, b"0")
        await settle()
        clock, refused_at_s = asyncio.get_running_loop(), []

        async def retry(query: bytes) -> None:
            while clock.time() < 20:
                client = FakeClient(app, b"1", query=query)
                await client.task
                assert client.status == 429
                refused_at_s.append(clock.time())

        await asyncio.gather(*(retry(query) for query in [b"", b"top_k=1"] * 2))
        # An image a second, five refusals for each, and those of the first second at once.
        assert len(refused_at_s) <= 5 * 22
        gate.gate.set()
        await first.task
        assert first.status == 200
        received, ended = await counted(app)
        assert received == sum(ended.values())

    run(scene())


def test_images_of_disconnected_clients_are_not_run() -> None:
    async def scene() -> None:
        gate = GatedRunner()
        app = await app_behind(gate, max_items=8, max_batch=1)
        clients = [FakeClient(app, b"%d" % number) for number in range(8)]
        await settle()
        for client in clients[1:7]:
            client.hang_up()
        await settle()
        assert all(client.task.done() for client in clients[1:7]), "their capacity is free at once"
        later_clients = [FakeClient(app, b"%d" % number) for number in range(10, 16)]
        await settle()
        gate.gate.set()
        await asyncio.gather(*(client.task for client in [*clients, *later_clients]))
        assert gate.batches == [[0], [7], [10], [11], [12], [13], [14], [15]]
        assert all(client.status is None for client in clients[1:7])
        received, ended = await counted(app)
        assert received == sum(ended.values())
        assert ended == {("/v1/classify", "200"): 8, ("/v1/classify", "disconnected"): 6}

    run(scene())


def test_with_an_engine_that_hangs_clients_get_504_at_the_deadline() -> None:
    async def scene() -> None:
        gate = GatedRunner()
        app = await app_behind(gate, deadline_s=3.0)
        client = FakeClient(app, b"1")
        await client.task
        assert asyncio.get_running_loop().time() < 3.1
        assert client.status == 504
        assert json.loads(client.body)["error"]["code"] == "deadline_exceeded"
        gate.gate.set()
        after = FakeClient(app, b"2")
        await after.task
        assert after.status == 200

    run(scene())


def test_a_request_that_is_cancelled_by_shutdown_gets_503() -> None:
    async def scene() -> None:
        app = await app_behind(GatedRunner())
        client = FakeClient(app, b"1")
        await settle()
        client.task.cancel()
        await asyncio.gather(client.task, return_exceptions=True)
        assert client.status == 503
        assert json.loads(client.body)["error"]["code"] == "not_ready"

    run(scene())
