"""A served model with a decoder that reads digits and a gate before its engine."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import pytest

from eca_hub.errors import NotAnImage
from eca_service.errors import DeadlineExceeded, EngineFailed, InternalError, InvalidRequest, Overloaded
from eca_service.inference.model import Decode, ServedModel
from eca_service.inference.tasks import Classification, Embedding
from eca_service.inference.types import ImageResult, RawPixels
from tests.service.fakes import FakeDecoded, GatedRunner, decode_digits, fake_model, model_info, run, settle


def test_a_bad_image_fails_alone() -> None:
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


def test_an_image_whose_decoding_or_result_raises_anything_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def decode(data: bytes) -> FakeDecoded:
        if data == b"2":
            raise MemoryError("no memory")
        return FakeDecoded(int(data))

    @contextmanager
    def reserve(images: Sequence[Any]) -> Iterator[list[Decode[int]]]:
        yield [partial(decode, image) for image in images]

    class FailsOnThree(Classification):
        def postprocess(self, output: Any, item: Any, info: Any) -> Any:
            if item == 3:
                raise KeyError("no label")
            return super().postprocess(output, item, info)

    async def scene() -> None:
        model = fake_model()
        monkeypatch.setattr(model, "_reserve_decoding", reserve)
        outcomes = await model.run(FailsOnThree(), [b"1", b"2", b"3", b"4"])
        assert [type(outcome) for outcome in outcomes] == [ImageResult, InternalError, InternalError, ImageResult]
        assert model.batcher.num_items == 0
        await model.close()

    run(scene())


def test_an_image_that_breaks_the_engine_fails_alone() -> None:
    async def scene() -> None:
        runner = GatedRunner(poison=frozenset({2}))
        runner.gate.set()
        model = fake_model(runner)
        outcomes = await model.run(Classification(), [b"1", b"2", b"3"])
        assert [type(outcome) for outcome in outcomes] == [ImageResult, EngineFailed, ImageResult]
        await model.close()

    run(scene())


def test_a_late_result_is_an_error_and_its_reservation_is_released() -> None:
    async def scene() -> None:
        runner = GatedRunner()
        model = fake_model(runner, deadline_s=2.0, max_batch=1)
        with pytest.raises(DeadlineExceeded, match="2000 ms"):
            await model.run(Classification(), [b"1"])
        assert asyncio.get_running_loop().time() == pytest.approx(2.0)
        assert model.batcher.num_items == 1, "its batch still runs"
        with pytest.raises(DeadlineExceeded):
            await model.run(Classification(), [b"2"])
        runner.gate.set()
        await model.run(Classification(), [b"3"])
        assert runner.batches == [[1], [3]], "what was late is not run"
        assert model.batcher.num_items == 0
        await model.close()

    run(scene())


def test_a_client_that_disconnects_releases_all_reservations() -> None:
    async def scene() -> None:
        runner = GatedRunner()
        model = fake_model(runner)
        request = asyncio.create_task(model.run(Classification(), [b"1", b"2", b"3"]))
        await settle()
        assert model.batcher.num_items == 3
        request.cancel()
        await settle()
        runner.gate.set()
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


def test_five_classes_are_named_by_default() -> None:
    async def scene() -> None:
        model = fake_model()
        (outcome,) = await model.run(Classification(), [b"1"])
        assert isinstance(outcome, ImageResult)
        assert len(outcome.value) == 5
        await model.close()

    run(scene())


def test_a_request_of_more_images_than_there_is_capacity_is_refused_whole() -> None:
    async def scene() -> None:
        model = fake_model(max_items=2)
        with pytest.raises(Overloaded):
            await model.run(Classification(), [b"1", b"2", b"3"])
        assert len(await model.run(Classification(), [b"1", b"2"])) == 2
        await model.close()

    run(scene())


def test_an_explanation_is_admitted_before_its_image_is_decoded() -> None:
    decoded: list[bytes] = []

    @contextmanager
    def reserve_decoding(images: Sequence[bytes | RawPixels]) -> Iterator[list[Decode[int]]]:
        decoded.extend(image for image in images if isinstance(image, bytes))
        yield [partial(decode_digits, image) for image in images]

    class FullExplainer:
        def reserve(self) -> AbstractContextManager[None]:
            raise Overloaded("4 explanations are in flight; that is the limit.")

    async def scene() -> None:
        batcher = fake_model().batcher
        explainer: Any = FullExplainer()
        model = ServedModel(
            model_info(), reserve_decoding=reserve_decoding, batcher=batcher, deadline_s=10, explainer=explainer
        )
        with pytest.raises(Overloaded):
            await model.explain(b"1", None)
        assert decoded == []
        await model.close()

    run(scene())


def test_a_request_whose_images_cannot_be_decoded_in_time_leaves_no_reservation() -> None:
    def reserve_decoding(images: Sequence[bytes | RawPixels]) -> AbstractContextManager[list[Decode[int]]]:
        raise Overloaded("The images in flight take 2.0 s to decode and 1 s is the limit.")

    async def scene() -> None:
        batcher = fake_model().batcher
        model = ServedModel(model_info(), reserve_decoding=reserve_decoding, batcher=batcher, deadline_s=10)
        with pytest.raises(Overloaded):
            await model.run(Classification(), [b"1", b"2"])
        assert batcher.num_items == 0
        await model.close()

    run(scene())


def test_a_task_that_the_network_does_not_support_is_refused() -> None:
    async def scene() -> None:
        model = fake_model()
        with pytest.raises(InvalidRequest, match="cannot embed"):
            await model.run(Embedding(), [b"1"])
        await model.close()

    run(scene())
