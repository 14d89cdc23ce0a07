"""Fakes: an event loop with a fake clock, a runner behind a gate, models without a network."""

import asyncio
import functools
import io
import selectors
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

import torch
from PIL import Image

from eca_hub.errors import NotAnImage
from eca_service.inference.batcher import Batcher, ItemResult
from eca_service.inference.model import Decode, ServedModel
from eca_service.inference.tasks import WorkItem
from eca_service.inference.types import ModelInfo, ParityReport, RawPixels

Params = ParamSpec("Params")
Result = TypeVar("Result")
REVISION = "3f9c1d2" + "0" * 33
_MAX_TURNS = 10_000
"""Turns of the event loop without a change of the fake clock, after which its tasks loop."""


class _FakeClockSelector(selectors.DefaultSelector):
    def __init__(self, loop: "FakeClockLoop") -> None:
        super().__init__()
        self._loop = loop
        self._num_turns, self._at_s = 0, -1.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "every task waits for something that does not happen"
            self._loop.now_s += timeout
        self._num_turns = self._num_turns + 1 if self._loop.now_s == self._at_s else 0
        self._at_s = self._loop.now_s
        assert self._num_turns <= _MAX_TURNS, "the tasks loop while the clock stands still"
        return ready


class FakeClockLoop(asyncio.SelectorEventLoop):
    """An event loop that jumps to the next timer when there is nothing else to do: hours pass in no time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        super().__init__(_FakeClockSelector(self))

    def time(self) -> float:
        return self.now_s


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run on a fake clock."""
    with asyncio.Runner(loop_factory=FakeClockLoop) as runner:
        return runner.run(work)


def with_fake_clock(test: Callable[Params, Coroutine[Any, Any, None]]) -> Callable[Params, None]:
    """Run a coroutine test on a fake clock."""

    @functools.wraps(test)
    def run_it(*args: Params.args, **kwargs: Params.kwargs) -> None:
        run(test(*args, **kwargs))

    return run_it


async def settle() -> None:
    """Run pending tasks until each waits for something."""
    for _ in range(20):
        await asyncio.sleep(0)


@dataclass
class GatedRunner:
    """Doubles numbers once its gate is open."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    batches: list[list[int]] = field(default_factory=list)
    poison: frozenset[int] = frozenset()

    async def __call__(self, items: list[int]) -> Sequence[int]:
        self.batches.append(list(items))
        await self.gate.wait()
        if self.poison & set(items):
            raise RuntimeError("poisoned")
        return [2 * item for item in items]


@dataclass(frozen=True)
class FakeDecoded:
    pixels: int
    wait_ms: float = 0.0
    decode_ms: float = 1.0


async def decode_digits(data: bytes | RawPixels) -> FakeDecoded:
    """An image is a decimal number here, and pixels are their sum."""
    if isinstance(data, RawPixels):
        return FakeDecoded(sum(data.data))
    if not data.isdigit():
        raise NotAnImage("no digits")
    return FakeDecoded(int(data))


@contextmanager
def reserve_digits(images: Sequence[bytes | RawPixels]) -> Iterator[list[Decode[int]]]:
    """Admit every image."""
    yield [functools.partial(decode_digits, image) for image in images]


class FakeOutput:
    """The output of a network that gives class 0 the score 1, class 1 the score 1/2 and so on, for every image."""

    scores = 1 / torch.arange(1.0, 11.0)

    def softmax(self, dim: int) -> torch.Tensor:
        return self.scores

    def sigmoid(self) -> torch.Tensor:
        return self.scores

    def topk(self, k: int) -> Any:
        return self.scores.topk(k)


def model_info(
    model_id: str = "acme/digits", revision: str = REVISION, weights_bytes: int = 0, num_channels: int = 3
) -> ModelInfo:
    return ModelInfo(
        model_id,
        revision,
        "resnet18",
        "eca",
        tuple(f"class {index}" for index in range(10)),
        32,
        32,
        11_689_512,
        "cpu",
        ParityReport("float32", 1.0, 0.0, 8),
        weights_bytes=weights_bytes,
        num_channels=num_channels,
        facts={"input_px": [32, 32], "crop": 1.0, "crop_mode": "center"},
    )


def fake_model(
    runner: Callable[[list[int]], Any] | None = None,
    *,
    model_id: str = "acme/digits",
    revision: str = REVISION,
    weights_bytes: int = 0,
    num_channels: int = 3,
    max_items: int = 8,
    max_batch: int = 4,
    max_queue_delay_s: float = 60.0,
    s_per_item: float = 0.0,
    deadline_s: float = 10.0,
    close: Callable[[], None] = lambda: None,
    is_healthy: Callable[[], bool] = lambda: True,
    optimize: Callable[[], Awaitable[ModelInfo]] | None = None,
) -> ServedModel[int, FakeOutput]:
    """A model of decimal numbers, whose runner gets the numbers; needs a running loop."""

    async def run_numbers(items: list[WorkItem]) -> list[FakeOutput]:
        if runner is not None:
            await runner([item.value for item in items])
        return [FakeOutput() for _ in items]

    batcher: Batcher[WorkItem, FakeOutput] = Batcher(
        [run_numbers],
        max_batch=max_batch,
        max_wait_ms=5,
        max_items=max_items,
        max_queue_delay_s=max_queue_delay_s,
        s_per_item=s_per_item,
    )
    batcher.start()
    return ServedModel(
        model_info(model_id, revision, weights_bytes, num_channels),
        reserve_decoding=reserve_digits,
        batcher=batcher,
        deadline_s=deadline_s,
        close=close,
        is_healthy=is_healthy,
        optimize=optimize,
        decode_waits_s=lambda: {"small": 0.5},
    )


def png(width: int = 8, height: int = 8, color: str = "red") -> bytes:
    """A small image."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), color).save(file, "PNG")
    return file.getvalue()


def make(*runners: GatedRunner, max_batch: int = 4, max_wait_ms: float = 5, max_items: int = 100) -> Batcher[int, int]:
    """Start a batcher of doubled numbers."""
    batcher: Batcher[int, int] = Batcher(runners, max_batch=max_batch, max_wait_ms=max_wait_ms, max_items=max_items)
    batcher.start()
    return batcher


@asynccontextmanager
async def batching(*runners: GatedRunner, **options: Any) -> AsyncIterator[Batcher[int, int]]:
    """A batcher of doubled numbers, closed when the block ends."""
    batcher = make(*runners, **options)
    yield batcher
    await batcher.close()


def open_runner() -> GatedRunner:
    """A runner that waits for nothing."""
    runner = GatedRunner()
    runner.gate.set()
    return runner


async def send(batcher: Batcher[int, int], item: int) -> ItemResult[int]:
    """Run one item."""
    with batcher.reserve(1) as (reservation,):
        return await reservation.run(item)
