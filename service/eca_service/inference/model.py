"""A served model: admission, decoding, batching and the task's result, separately for each image.

Imports no torch and no HTTP: tensors are passed on unread.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from eca_hub import EcaHubError
from eca_service.errors import DeadlineExceeded, InternalError, InvalidRequest, NotEnabled
from eca_service.inference.batcher import Batcher, Reservation
from eca_service.inference.tasks import Classification, Task, WorkItem
from eca_service.inference.types import DecodedImage, ImageResult, ModelInfo, RawPixels

if TYPE_CHECKING:
    from eca_hub import Explanation
    from eca_service.inference.explainer import Explainer

_logger = logging.getLogger(__name__)

Pixels = TypeVar("Pixels")
Output = TypeVar("Output")
Value = TypeVar("Value")

Decode = Callable[[], Awaitable[DecodedImage[Pixels]]]
"""Decodes one admitted image to an item of a batch."""
ReserveDecoding = Callable[[Sequence[bytes | RawPixels]], AbstractContextManager[Sequence[Decode[Pixels]]]]
"""Admits the decoding of all images of a request, or raises `Overloaded`."""


class ServedModel(Generic[Pixels, Output]):
    """A model that serves requests.

    Args:
        info: What clients may read about it.
        reserve_decoding: Admits the decoding of a request's images.
        batcher: Runs batches of decoded images.
        deadline_s: Time from admission to `DeadlineExceeded`.
        close: Frees what the model holds, after the last result.
        is_healthy: Whether every engine is healthy.
        explainer: Explains single images; None where that is not switched on.
        optimize: Replaces the network by a faster form and returns what is known of that; None where there is none.
        decode_waits_s: Returns the expected wait for a decoder in each lane, of which all models have the same.
    """

    def __init__(
        self,
        info: ModelInfo,
        *,
        reserve_decoding: ReserveDecoding[Pixels],
        batcher: Batcher[WorkItem, Output],
        deadline_s: float,
        close: Callable[[], None] = lambda: None,
        is_healthy: Callable[[], bool] = lambda: True,
        explainer: "Explainer | None" = None,
        optimize: Callable[[], Awaitable[ModelInfo]] | None = None,
        decode_waits_s: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self.info = info
        self.model_id = info.model_id
        """The id that clients use: that of `info`, with the revision where several are served."""
        self.batcher = batcher
        self._deadline_s = deadline_s
        self._reserve_decoding = reserve_decoding
        self._close = close
        self._engines_are_healthy = is_healthy
        self._explainer = explainer
        self._optimize = optimize
        self.decode_waits_s = decode_waits_s
        self._num_holders = 0
        self._is_released = asyncio.Event()
        self._is_released.set()

    @property
    def is_healthy(self) -> bool:
        """Whether every engine is healthy now."""
        return self.batcher.is_alive and self._engines_are_healthy()

    @property
    def num_explanations(self) -> int:
        """Explanations in flight."""
        return self._explainer.num_in_flight if self._explainer else 0

    @property
    def max_explanations(self) -> int:
        """Limit of `num_explanations`; 0 where explaining is not switched on."""
        return self._explainer.max_in_flight if self._explainer else 0

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Delay `close` until the block ends."""
        self._num_holders += 1
        self._is_released.clear()
        try:
            yield
        finally:
            self._num_holders -= 1
            if not self._num_holders:
                self._is_released.set()

    async def run(
        self,
        task: Task[Value],
        images: Sequence[bytes | RawPixels | EcaHubError],
        *,
        received_at_s: float | None = None,
    ) -> list[ImageResult[Value] | EcaHubError]:
        """Run a task on each image; return the results in order, an error for each image that has one.

        Args:
            task: What is asked for, with the options of the request.
            images: Their bytes, or the error of an image that was refused before, which is returned as it is.
            received_at_s: When the request arrived, on `time.perf_counter`; None is now.

        Raises:
            InvalidRequest: the task or one of its options does not suit the model.
            Overloaded: decoding or inference has no capacity for all images.
            DeadlineExceeded: the result is late.
        """
        self.check_supports(type(task))
        task.check(self.info)
        started_s = time.perf_counter() if received_at_s is None else received_at_s
        valid = [image for image in images if not isinstance(image, EcaHubError)]
        with self.batcher.reserve(len(images)) as reservations, self._reserve_decoding(valid) as decodes:
            decode_next = iter(decodes)
            try:
                async with asyncio.timeout(self._deadline_s):
                    results = [
                        self._run_one(
                            task, image if isinstance(image, EcaHubError) else next(decode_next), reservation, started_s
                        )
                        for reservation, image in zip(reservations, images, strict=True)
                    ]
                    # One image needs no task of its own.
                    return [await results[0]] if len(results) == 1 else await asyncio.gather(*results)
            except TimeoutError:
                raise self._late() from None

    def check_supports(self, task: type[Task[Any]]) -> None:
        """Refuse a task that the network does not support, naming the routes of those that it does.

        Raises:
            InvalidRequest: it does not support the task.
        """
        if task.name not in self.info.tasks:
            routes = " or ".join(f"/v1/{name}" for name in self.info.tasks)
            raise InvalidRequest(f"{self.info.model_id} cannot {task.name}.", hint=f"Send images for it to {routes}.")

    async def explain(self, image: bytes, class_index: int | None) -> "Explanation":
        """Show where in an image the evidence for a class lies.

        Args:
            image: Its bytes.
            class_index: Class to explain; None is the most likely one.

        Raises:
            NotEnabled: explaining is not switched on.
            InvalidRequest: the network is no classifier, or there is no class of that index.
            BadImage: the image is broken, too large, or none.
            Overloaded: several explanations are in flight, or decoding has no capacity.
            DeadlineExceeded: the result is late.
        """
        self.check_supports(Classification)
        if self._explainer is None:
            raise NotEnabled("Explaining is not switched on.", hint="Start the service with --explain.")
        num_classes = len(self.info.labels)
        if class_index is not None and not 0 <= class_index < num_classes:
            raise InvalidRequest(f"class_index must be 0 to {num_classes - 1}.")
        with self._explainer.reserve(), self._reserve_decoding([image]) as (decode,):
            try:
                async with asyncio.timeout(self._deadline_s):
                    decoded: Any = await decode()
                    return await self._explainer.explain(decoded.pixels, class_index)
            except TimeoutError:
                raise self._late() from None

    async def optimize(self) -> None:
        """Replace the network by a faster form, where there is one; requests are served meanwhile."""
        optimize, self._optimize = self._optimize, None
        if optimize is not None:
            self.info = await optimize()

    async def close(self) -> None:
        """Finish the requests that hold the model, then free it."""
        await self._is_released.wait()
        await self.batcher.close()
        self._close()

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"There was no result within {self._deadline_s * 1000:g} ms.",
            hint="Send the request again, or raise ECA_DEADLINE_MS.",
        )

    async def _run_one(
        self,
        task: Task[Value],
        decode: Decode[Pixels] | EcaHubError,
        reservation: Reservation[WorkItem, Output],
        started_s: float,
    ) -> ImageResult[Value] | EcaHubError:
        try:
            if isinstance(decode, EcaHubError):
                return decode
            decoded = await decode()
            item = await reservation.run(WorkItem(type(task), decoded.pixels))
            output: Any = item.value
            finish = partial(task.postprocess, output, decoded.pixels, self.info)
            return ImageResult(
                value=await asyncio.to_thread(finish) if task.is_slow_to_postprocess else finish(),
                decode_ms=decoded.decode_ms,
                queue_ms=decoded.wait_ms + item.queue_ms,
                engine_ms=item.engine_ms,
                total_ms=(time.perf_counter() - started_s) * 1000,
                batch_size=item.batch_size,
                decoder_wait_ms=decoded.wait_ms,
            )
        except EcaHubError as error:
            return error
        except Exception as error:
            _logger.exception("an image failed")
            return InternalError(f"The image could not be processed: {type(error).__name__}.", hint="See the log.")
        finally:
            reservation.release()
