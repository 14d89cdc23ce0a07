"""The engine's thread, with functions in place of networks."""

import asyncio
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from eca_service.errors import WorkerLost
from eca_service.inference.engine import Engine, RunBatch
from eca_service.inference.tasks import Classification, WorkItem, run_batch


def count_up(pixels_N3HW: Tensor) -> Tensor:
    """Logits that identify the image they belong to."""
    first_N1 = pixels_N3HW[:, 0, 0, :1].float()
    return first_N1 + torch.arange(3.0)


def is_healthy(engine: Engine) -> bool:
    return engine.is_healthy


def image(value: int) -> WorkItem:
    return WorkItem(Classification, torch.full((3, 2, 2), value, dtype=torch.uint8))


def batched(forward: Callable[[Tensor], Tensor]) -> RunBatch:
    return lambda items: run_batch({"classify": forward}, items)


def test_each_image_gets_its_own_logits_from_the_engines_thread() -> None:
    threads = []

    def forward(pixels_N3HW: Tensor) -> Tensor:
        threads.append(threading.current_thread().name)
        assert torch.is_inference_mode_enabled()
        return count_up(pixels_N3HW)

    engine = Engine(batched(forward))
    first, second = asyncio.run(engine.run([image(5), image(9)]))
    engine.close()
    assert first.tolist() == [5, 6, 7]
    assert second.tolist() == [9, 10, 11]
    assert threads == ["engine"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_logit_that_is_not_a_number_is_never_returned(value: float) -> None:
    engine = Engine(batched(lambda pixels_N3HW: torch.full((len(pixels_N3HW), 3), value)))
    with pytest.raises(ArithmeticError):
        asyncio.run(engine.run([image(1)]))
    engine.close()


def test_every_batch_size_is_warmed_up() -> None:
    sizes = []

    def forward(pixels_N3HW: Tensor) -> Tensor:
        sizes.append(len(pixels_N3HW))
        return count_up(pixels_N3HW)

    engine = Engine(batched(forward))
    asyncio.run(engine.warm_up([[image(0)] * size for size in (1, 2, 4)]))
    engine.close()
    assert sizes == [1, 1, 2, 2, 4, 4]


def test_another_network_takes_over_after_the_batch_that_is_being_run() -> None:
    begun, gate = threading.Event(), threading.Event()

    def forward(pixels_N3HW: Tensor) -> Tensor:
        begun.set()
        assert gate.wait(60)
        return count_up(pixels_N3HW)

    async def scene() -> None:
        engine = Engine(batched(forward))
        running = asyncio.create_task(engine.run([image(1)]))
        assert await asyncio.to_thread(begun.wait, 60)
        engine.replace_network(batched(lambda pixels_N3HW: -count_up(pixels_N3HW)), None)
        gate.set()
        assert (await running)[0].tolist() == [1, 2, 3]
        assert (await engine.run([image(1)]))[0].tolist() == [-1, -2, -3]
        engine.close()

    asyncio.run(scene())


def test_the_event_loop_goes_on_while_the_network_works() -> None:
    gate = threading.Event()

    def forward(pixels_N3HW: Tensor) -> Tensor:
        assert gate.wait(60)
        return count_up(pixels_N3HW)

    async def scene() -> None:
        engine = Engine(batched(forward))
        running = asyncio.create_task(engine.run([image(1)]))
        await asyncio.sleep(0)
        assert not running.done()
        gate.set()
        assert len(await running) == 1
        engine.close()

    asyncio.run(scene())


def test_a_thread_that_hangs_is_replaced() -> None:
    gate = threading.Event()
    is_first = iter([True])

    def forward(pixels_N3HW: Tensor) -> Tensor:
        if next(is_first, False):
            gate.wait(60)
        return count_up(pixels_N3HW)

    async def scene() -> None:
        # The second batch, which is answered in microseconds, must not count as hung on a busy machine.
        engine = Engine(batched(forward), hang_timeout_s=0.5)
        with pytest.raises(WorkerLost):
            await engine.run([image(1)])
        (logits,) = await engine.run([image(4)])
        assert logits.tolist() == [4, 5, 6]
        engine.close()
        gate.set()

    asyncio.run(scene())


def test_while_a_thread_hangs_the_engine_is_unhealthy_and_recovers_by_its_own_probe() -> None:
    gate, hangs, probes = threading.Event(), threading.Event(), []

    def forward(pixels_N3HW: Tensor) -> Tensor:
        if hangs.is_set():
            hangs.clear()
            gate.wait(60)
        elif not gate.is_set():
            probes.append(len(pixels_N3HW))
        return count_up(pixels_N3HW)

    async def scene() -> None:
        engine = Engine(batched(forward), hang_timeout_s=0.4)
        await engine.warm_up([[image(0)]])
        assert is_healthy(engine)
        hangs.set()
        running = asyncio.create_task(engine.run([image(1)]))
        while is_healthy(engine):
            await asyncio.sleep(0.01)
        assert not running.done(), "it is unhealthy before it is replaced"
        with pytest.raises(WorkerLost):
            await running
        assert not is_healthy(engine), "the new thread has shown nothing yet"
        while not is_healthy(engine):
            await asyncio.sleep(0.01)
        assert probes == [1, 1, 1], "two runs of the warm-up, one probe"
        engine.close()
        gate.set()

    asyncio.run(scene())


def test_a_thread_that_dies_is_replaced_and_does_not_take_the_process_with_it() -> None:
    dies = iter([True])

    def forward(pixels_N3HW: Tensor) -> Tensor:
        if next(dies, False):
            raise SystemExit
        return count_up(pixels_N3HW)

    async def scene() -> None:
        engine = Engine(batched(forward), hang_timeout_s=10)
        with pytest.raises(WorkerLost, match="died"):
            await engine.run([image(1)])
        assert (await engine.run([image(4)]))[0].tolist() == [4, 5, 6]
        assert is_healthy(engine)
        engine.close()

    asyncio.run(scene())


def test_when_the_device_fails_its_batch_fails_and_a_rebuilt_forward_runs_the_next() -> None:
    def broken(pixels_N3HW: Tensor) -> Tensor:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    async def scene() -> None:
        engine = Engine(batched(broken), rebuild=lambda: batched(count_up))
        with pytest.raises(WorkerLost, match="lost its device"):
            await engine.run([image(1), image(2)])
        assert not is_healthy(engine)
        assert (await engine.run([image(4)]))[0].tolist() == [4, 5, 6]
        assert is_healthy(engine)
        engine.close()

    asyncio.run(scene())


def test_after_a_hang_on_a_device_the_next_thread_has_a_forward_of_its_own() -> None:
    gate = threading.Event()

    def stuck(pixels_N3HW: Tensor) -> Tensor:
        gate.wait(60)
        return count_up(pixels_N3HW)

    async def scene() -> None:
        num_made = 0

        def rebuild() -> RunBatch:
            nonlocal num_made
            num_made += 1
            return batched(count_up)

        engine = Engine(batched(stuck), rebuild=rebuild, hang_timeout_s=0.05, waits_for_device=True)
        with pytest.raises(WorkerLost, match="hung"):
            await engine.run([image(1)])
        for _ in range(2):
            assert (await engine.run([image(4)]))[0].tolist() == [4, 5, 6]
        assert num_made == 1
        gate.set()
        engine.close()

    asyncio.run(scene())


def test_after_a_hang_on_a_device_the_new_forward_has_the_time_of_a_warm_up_to_capture_each_size() -> None:
    hangs, gate, capture = threading.Event(), threading.Event(), threading.Event()
    captured: list[int] = []

    def forward(pixels_N3HW: Tensor) -> Tensor:
        if hangs.is_set():
            gate.wait(60)
        return count_up(pixels_N3HW)

    def rebuild() -> RunBatch:
        sizes = set()

        def capturing(pixels_N3HW: Tensor) -> Tensor:
            if len(pixels_N3HW) not in sizes:
                assert capture.wait(60)
                sizes.add(len(pixels_N3HW))
                captured.append(len(pixels_N3HW))
            return count_up(pixels_N3HW)

        return batched(capturing)

    async def scene() -> None:
        engine = Engine(batched(forward), rebuild=rebuild, hang_timeout_s=0.5, waits_for_device=True)
        await engine.warm_up([[image(0)] * size for size in (1, 2, 4)])
        hangs.set()
        with pytest.raises(WorkerLost, match="hung"):
            await engine.run([image(1)])
        running = asyncio.create_task(engine.run([image(4)] * 2))
        assert not (await asyncio.wait({running}, timeout=1.5))[0], "three times the timeout"
        assert not is_healthy(engine)
        capture.set()
        assert (await running)[1].tolist() == [4, 5, 6]
        assert is_healthy(engine)
        assert captured == [1, 2, 4], "once, before the batch"
        engine.close()
        gate.set()

    asyncio.run(scene())


def test_a_device_that_fails_repeatedly_is_a_fatal_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eca_service.inference.engine._FIRST_PAUSE_S", 0.01)
    works = threading.Event()
    works.set()

    def forward(pixels_N3HW: Tensor) -> Tensor:
        if not works.is_set():
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return count_up(pixels_N3HW)

    async def scene() -> None:
        loop, is_fatal = asyncio.get_running_loop(), asyncio.Event()

        def on_fatal_error() -> None:
            loop.call_soon_threadsafe(is_fatal.set)

        engine = Engine(batched(forward), rebuild=lambda: batched(forward), on_fatal_error=on_fatal_error)
        await engine.warm_up([[image(0)]])
        works.clear()
        with pytest.raises(WorkerLost):
            await engine.run([image(1)])
        assert not is_fatal.is_set(), "one failure may be an accident"
        await asyncio.wait_for(is_fatal.wait(), 10)
        assert not is_healthy(engine)
        engine.close()

    asyncio.run(scene())


def test_an_idle_thread_counts_as_hung_early_however_long_its_batch_may_take() -> None:
    gate = threading.Event()

    def forward(pixels_N3HW: Tensor) -> Tensor:
        gate.wait(60)
        return count_up(pixels_N3HW)

    async def scene() -> None:
        engine = Engine(batched(forward), hang_timeout_s=0.05)
        engine._s_per_image = 60.0
        with pytest.raises(WorkerLost, match="hung"):
            await asyncio.wait_for(engine.run([image(1)]), 59)
        engine.close()
        gate.set()

    asyncio.run(scene())


def test_a_thread_that_works_or_waits_for_a_device_has_the_full_time_of_its_batch() -> None:
    for waits in (False, True):
        gate = threading.Event()

        def forward(pixels_N3HW: Tensor, waits: bool = waits, gate: threading.Event = gate) -> Tensor:
            while not gate.is_set():
                if waits:
                    gate.wait(60)
            return count_up(pixels_N3HW)

        async def scene(
            waits: bool = waits, gate: threading.Event = gate, forward: Callable[[Tensor], Tensor] = forward
        ) -> None:
            engine = Engine(batched(forward), hang_timeout_s=0.02, waits_for_device=waits)
            engine._s_per_image = 60.0
            running = asyncio.create_task(engine.run([image(4)]))
            assert not (await asyncio.wait({running}, timeout=0.3))[0], "fifteen times the timeout"
            gate.set()
            assert (await running)[0].tolist() == [4, 5, 6]
            engine.close()

        asyncio.run(scene())


def test_a_batch_that_should_take_long_may_take_long() -> None:
    engine = Engine(batched(count_up), hang_timeout_s=1.5)
    assert engine.max_batch_s(8) == 1.5
    engine._s_per_image = 0.1
    assert engine.max_batch_s(8) == pytest.approx(8.0)
    engine.close()


def test_a_warm_up_may_be_idle_as_while_it_compiles_and_its_first_run_is_not_timed() -> None:
    is_first, compiled = iter([True]), threading.Event()

    def forward(pixels_N3HW: Tensor) -> Tensor:
        if next(is_first, False):
            assert compiled.wait(60), "idle for many times the hang timeout"
        return count_up(pixels_N3HW)

    async def scene() -> None:
        engine = Engine(batched(forward), hang_timeout_s=0.02)
        warming = asyncio.create_task(engine.warm_up([[image(0)]]))
        assert not (await asyncio.wait({warming}, timeout=0.3))[0]
        compiled.set()
        await warming
        assert engine.s_per_image < 0.3
        engine.close()

    asyncio.run(scene())
