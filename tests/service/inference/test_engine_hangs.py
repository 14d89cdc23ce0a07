"""An engine that hangs, seen from outside, with the thread, the timeouts and the addresses of the real service."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from starlette.testclient import TestClient
from torch import Tensor

from eca_service.app import create_app
from eca_service.http.auth import Keys
from eca_service.inference.batcher import Batcher
from eca_service.inference.engine import Engine
from eca_service.inference.model import RawPixels, ServedModel
from eca_service.models.registry import ModelSource, Registry
from eca_service.settings import Settings
from tests.service.house import FakeDecoded, model_info, postprocess_nothing
from tests.service.test_routes import refusal


def test_its_callers_are_answered_within_two_seconds_and_readiness_turns_red_and_green_again() -> None:
    settings, hangs, gate = Settings(model=("acme/digits",)), threading.Event(), threading.Event()

    def forward(pixels_N3HW: Tensor) -> Tensor:
        if hangs.is_set():
            hangs.clear()
            gate.wait(10)
        return torch.zeros(len(pixels_N3HW), 10)

    async def decode(data: bytes | RawPixels) -> Any:
        return FakeDecoded(torch.zeros(3, 2, 2, dtype=torch.uint8))  # type: ignore[arg-type]

    async def open_model(source: ModelSource) -> ServedModel[Any, Any]:
        engine = Engine(forward, hang_timeout_s=settings.hang_timeout_s)
        await engine.warm_up(torch.zeros(3, 2, 2, dtype=torch.uint8), [1, 2])
        batcher: Batcher[Any, Any] = Batcher([engine.run], max_batch=8, max_wait_ms=5, max_items=8)
        batcher.start()
        return ServedModel(
            model_info(),
            decode=decode,
            batcher=batcher,
            postprocess=postprocess_nothing,
            deadline_s=10,
            close=engine.close,
            is_healthy=lambda: engine.is_healthy,
        )

    app = create_app(settings, Registry([ModelSource("acme/digits")], open_model), Keys())
    with TestClient(app, raise_server_exceptions=False) as client, ThreadPoolExecutor(1) as caller:
        while client.get("/readyz").status_code != 200:
            pass
        assert client.post("/v1/classify", content=b"7").status_code == 200
        hangs.set()
        started = time.monotonic()
        asked = caller.submit(client.post, "/v1/classify", content=b"7")
        while client.get("/readyz").status_code == 200:
            assert not asked.done(), "it turns red before the engine is given up"
        refusal(asked.result(), 503, "worker_lost")
        assert time.monotonic() - started < 2
        while client.get("/readyz").status_code != 200:
            assert time.monotonic() - started < 5
        assert client.post("/v1/classify", content=b"7").status_code == 200
        gate.set()
