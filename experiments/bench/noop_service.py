"""The service around a decoder and a network that cost nothing: what is left is HTTP and the batcher.

    python -m experiments.bench.noop_service

Prints `serving on URL` when it starts to listen.
"""

import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI

from eca_service.app import create_app
from eca_service.http.auth import ApiKeys
from eca_service.http.server import bind_listener, serve
from eca_service.inference.batcher import Batcher
from eca_service.inference.model import Decode, ServedModel
from eca_service.inference.tasks import WorkItem
from eca_service.inference.types import ModelInfo, ParityReport, RawPixels
from eca_service.models.registry import Registry
from eca_service.models.source import ModelSource
from eca_service.settings import Settings

_ID = "bench/noop"


class _Decoded:
    pixels, wait_ms, decode_ms = 0, 0.0, 0.0


class _Output:
    """Fake logits, and the values and indices of the highest ones."""

    def __init__(self, values: Sequence[float] = ()) -> None:
        self._values = list(values)

    def softmax(self, dim: int) -> "_Output":
        return self

    def topk(self, k: int) -> "tuple[_Output, _Output]":
        return _Output([0.75, 0.25]), _Output([0, 1])

    def tolist(self) -> list[float]:
        return self._values


async def _decode() -> _Decoded:
    return _Decoded()


@contextmanager
def _reserve_decoding(images: Sequence[bytes | RawPixels]) -> Iterator[list[Decode[int]]]:
    yield [_decode for _ in images]


async def _run(items: list[WorkItem]) -> list[_Output]:
    return [_Output() for _ in items]


async def _open_model(source: ModelSource) -> ServedModel[Any, Any]:
    batcher: Batcher[WorkItem, _Output] = Batcher([_run, _run], max_batch=8, max_wait_ms=5, max_items=128)
    batcher.start()
    parity = ParityReport("float32", 1.0, 0.0, 0)
    info = ModelInfo(_ID, "0" * 40, "none", "none", ("a", "b"), 1, 1, 0, "cpu", parity)
    return ServedModel(info, reserve_decoding=_reserve_decoding, batcher=batcher, deadline_s=10)


SETTINGS = Settings(model=(_ID,), port=0)


def open_noop_app() -> FastAPI:
    """Build the app around that model."""
    return create_app(SETTINGS, Registry([ModelSource(_ID)], _open_model), ApiKeys())


def main() -> int:
    """Serve until a signal ends the process."""
    asyncio.run(serve(open_noop_app(), SETTINGS, bind_listener(SETTINGS.host, SETTINGS.port)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
