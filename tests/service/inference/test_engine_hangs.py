"""An engine that hangs, seen by a client, with the thread, the timeouts and the routes of the real service."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from starlette.testclient import TestClient
from torch import Tensor

from eca_service.app import create_app
from eca_service.http.auth import ApiKeys
from eca_service.inference.batcher import Batcher
from eca_service.inference.engine import Engine
from eca_service.inference.model import ServedModel
from eca_service.inference.tasks import Classification, WorkItem, run_batch
from eca_service.inference.types import RawPixels
from eca_service.models.registry import Registry
from eca_service.models.source import ModelSource
from eca_service.settings import Settings
from tests.service.app_fixtures import refusal, wait_until_ready
from tests.service.fakes import FakeDecoded, model_info


def test_its_client_gets_an_error_and_readiness_turns_red_and_green_again() -> None:
    settings, hangs, gate = (
        Settings(model=("acme/digits",), hang_timeout_s=2.5, allowed_hosts="*"),
        threading.Event(),
        threading.Event(),
    )

    def forward(pixels_N3HW: Tensor) -> Tensor:
        if hangs.is_set():
            hangs.clear()
            gate.wait(30)
        return torch.zeros(len(pixels_N3HW), 10)

    blank = torch.zeros(3, 2, 2, dtype=torch.uint8)

    async def decode() -> Any:
        return FakeDecoded(blank)  # type: ignore[arg-type]

    @contextmanager
    def reserve_decoding(images: Sequence[bytes | RawPixels]) -> Iterator[list[Any]]:
        yield [decode for _ in images]

    def run(items: list[WorkItem]) -> Sequence[Tensor]:
        return run_batch({"classify": forward}, items)

    async def open_model(source: ModelSource) -> ServedModel[Any, Any]:
        engine = Engine(run, hang_timeout_s=settings.hang_timeout_s)
        await engine.warm_up([[WorkItem(Classification, blank)] * size for size in (1, 2)])
        batcher: Batcher[Any, Any] = Batcher([engine.run], max_batch=8, max_wait_ms=5, max_items=8)
        batcher.start()
        return ServedModel(
            model_info(),
            reserve_decoding=reserve_decoding,
            batcher=batcher,
            deadline_s=10,
            close=engine.close,
            is_healthy=lambda: engine.is_healthy,
        )

    registry = Registry([ModelSource("acme/digits")], open_model)
    app = create_app(settings, registry, ApiKeys())
    with TestClient(app, raise_server_exceptions=False) as client, ThreadPoolExecutor(1) as thread:
        wait_until_ready(client, registry)
        assert client.post("/v1/classify", content=b"7").status_code == 200
        hangs.set()
        request = thread.submit(client.post, "/v1/classify", content=b"7")
        while client.get("/readyz").status_code == 200:
            assert not request.done(), "readiness turns red before the engine is replaced"
        refusal(request.result(), 503, "worker_lost")
        while client.get("/readyz").status_code != 200:
            pass
        assert client.post("/v1/classify", content=b"7").status_code == 200
        gate.set()
