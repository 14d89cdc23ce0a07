"""A running model with a decoder that reads digits and a gate before its engine."""

import asyncio

import pytest

from eca_hub.errors import NotAnImage
from eca_service.errors import DeadlineExceeded, EngineFailed, InvalidRequest, Overloaded
from eca_service.inference.tasks import Classification
from eca_service.inference.types import ImageResult
from tests.service.fakes import GatedRunner, fake_model, run, settle


def test_a_bad_picture_fails_alone() -> None:
    async def scene() -> None:
        model = fake_model()
        first, bad, last = await model.run(Classification(2), [b"1", b"x", b"3"])
        assert isinstance(first, ImageResult)
        assert isinstance(bad, NotAnImage)
        assert isinstance(last, ImageResult)
        assert [one.label for one in last.value] == ["class 0", "class 1"]
        assert model.batcher.num_items == 0
        await model.close()

    run(scene())


def test_a_picture_that_breaks_the_engine_fails_alone() -> None:
    async def scene() -> None:
        runner = GatedRunner(poison=frozenset({2}))
        runner.gate.set()
        model = fake_model(runner)
        outcomes = await model.run(Classification(), [b"1", b"2", b"3"])
        assert [type(outcome) for outcome in outcomes] == [ImageResult, EngineFailed, ImageResult]
        await model.close()

    run(scene())


def test_a_late_answer_is_an_error_and_its_seat_is_free() -> None:
    async def scene() -> None:
        runner = GatedRunner()
        model = fake_model(runner, deadline_s=2.0, max_batch=1)
        with pytest.raises(DeadlineExceeded, match="2000 ms"):
            await model.run(Classification(), [b"1"])
        assert asyncio.get_running_loop().time() == pytest.approx(2.0)
        assert model.batcher.num_items == 0
        with pytest.raises(DeadlineExceeded):
            await model.run(Classification(), [b"2"])
        runner.gate.set()
        await model.run(Classification(), [b"3"])
        assert runner.batches == [[1], [3]], "what was late is not run"
        await model.close()

    run(scene())


def test_a_caller_who_goes_frees_all_seats() -> None:
    async def scene() -> None:
        model = fake_model(GatedRunner())
        asked = asyncio.create_task(model.run(Classification(), [b"1", b"2", b"3"]))
        await settle()
        assert model.batcher.num_items == 3
        asked.cancel()
        await settle()
        assert model.batcher.num_items == 0

    run(scene())


@pytest.mark.parametrize("top_k", [0, -1, 11, 2**31])
def test_top_k_must_fit_the_labels(top_k: int) -> None:
    async def scene() -> None:
        model = fake_model()
        with pytest.raises(InvalidRequest, match="1 to 10"):
            await model.run(Classification(top_k), [b"1"])
        await model.close()

    run(scene())


def test_five_classes_are_named_unless_told() -> None:
    async def scene() -> None:
        model = fake_model()
        (outcome,) = await model.run(Classification(), [b"1"])
        assert isinstance(outcome, ImageResult)
        assert len(outcome.value) == 5
        await model.close()

    run(scene())


def test_more_pictures_than_seats_are_refused_whole() -> None:
    async def scene() -> None:
        model = fake_model(max_items=2)
        with pytest.raises(Overloaded):
            await model.run(Classification(), [b"1", b"2", b"3"])
        assert len(await model.run(Classification(), [b"1", b"2"])) == 2
        await model.close()

    run(scene())
