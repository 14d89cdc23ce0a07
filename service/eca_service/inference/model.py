"""A running model: from pictures to named scores, each picture with its own fate.

Joins a decoder, a batcher and the labels. Knows nothing of HTTP, and of tensors only that they pass through.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

from eca_hub import EcaHubError
from eca_service.errors import DeadlineExceeded, InvalidRequest, NotEnabled
from eca_service.inference.batcher import Batcher, Reservation

if TYPE_CHECKING:
    from eca_hub import Explanation, Prediction

Activation = Literal["softmax", "sigmoid", "none"]
"""How logits become scores."""

Pixels = TypeVar("Pixels")
Scores = TypeVar("Scores")
PixelsOut = TypeVar("PixelsOut", covariant=True)


@dataclass(frozen=True, slots=True)
class RawPixels:
    """A picture that needs no decoding: it has the network's size already."""

    data: bytes
    """Height x width numbers for each colour, red first."""


class DecodedImage(Protocol[PixelsOut]):
    """What a decoder gives: pixels, and what they cost."""

    @property
    def pixels(self) -> PixelsOut:
        """The network's input."""

    @property
    def wait_ms(self) -> float:
        """Time before the decoder began."""

    @property
    def decode_ms(self) -> float:
        """Time that the decoder took."""


@dataclass(frozen=True, slots=True)
class ImageResult:
    """The answer for one picture."""

    predictions: "list[Prediction]"
    """The likeliest classes, the likeliest first."""
    decode_ms: float
    """Time in the decoder."""
    queue_ms: float
    """Time spent waiting, for the decoder and for a batch."""
    engine_ms: float
    """Time of the batch in the engine."""
    total_ms: float
    """From the request to this answer."""
    batch_size: int
    """Pictures that went through the engine together."""


@dataclass(frozen=True)
class ParityReport:
    """How the network that runs compares with the network that was loaded, on pictures made at the start."""

    precision: str
    """Number format that it computes in."""
    same_top1: float
    """Share of the pictures with the same likeliest class."""
    max_difference: float
    """How far the probability of a class moved, at most."""
    num_pictures: int
    """How many pictures were compared."""


@dataclass(frozen=True)
class ModelInfo:
    """What a caller may know of a running model."""

    model_id: str
    """Hub `owner/name`, or the path of a folder."""
    revision: str
    """40 hexadecimal digits."""
    architecture: str
    """Name of the network."""
    attention: str
    """Name of the attention inside it."""
    labels: tuple[str, ...]
    """Names of the classes."""
    height_px: int
    """Height of the network's input."""
    width_px: int
    """Width of the network's input."""
    num_parameters: int
    """Numbers that were learned."""
    device: str
    """Where the network runs."""
    parity: ParityReport
    """Proof that the network answers as it did before it was made faster."""
    weights_bytes: int = 0
    """Size of the weights in memory."""


class ServedModel(Generic[Pixels, Scores]):
    """A model that answers.

    Args:
        facts: What it is.
        decode: Bytes, or pixels as somebody else made them, to pixels.
        batcher: Pixels to scores.
        postprocess: Scores, a number of classes and an activation to their names, the likeliest first.
        deadline_s: When a caller gets an error instead of an answer.
        close: Frees what the model holds, after the last answer.
        is_healthy: Whether the engines answer.
        explain: Pixels and the index of a class, or None for the likeliest, to what the network looked at; None where
            explaining is not switched on.
    """

    def __init__(
        self,
        facts: ModelInfo,
        *,
        decode: Callable[[bytes | RawPixels], Awaitable[DecodedImage[Pixels]]],
        batcher: Batcher[Pixels, Scores],
        postprocess: "Callable[[Scores, int, Activation], list[Prediction]]",
        deadline_s: float,
        close: Callable[[], None] = lambda: None,
        is_healthy: Callable[[], bool] = lambda: True,
        explain: "Callable[[Pixels, int | None], Awaitable[Explanation]] | None" = None,
    ) -> None:
        self.info = facts
        self.batcher = batcher
        self._decode = decode
        self._postprocess = postprocess
        self._deadline_s = deadline_s
        self._close = close
        self._engines_are_healthy = is_healthy
        self._explain = explain
        self._num_users = 0
        self._no_user = asyncio.Event()
        self._no_user.set()

    @property
    def is_healthy(self) -> bool:
        """Whether pictures would be answered now."""
        return self.batcher.is_alive and self._engines_are_healthy()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep `close` from beginning until the block ends."""
        self._num_users += 1
        self._no_user.clear()
        try:
            yield
        finally:
            self._num_users -= 1
            if not self._num_users:
                self._no_user.set()

    async def classify(
        self,
        pictures: Sequence[bytes | RawPixels | EcaHubError],
        top_k: int | None = None,
        *,
        activation: Activation = "softmax",
        received_at_s: float | None = None,
    ) -> list[ImageResult | EcaHubError]:
        """Answer for each picture, in order: its classes, or what is wrong with it.

        Args:
            pictures: Their bytes; an error stands for a picture that was refused before, and comes back as it is.
            top_k: How many classes to name; None means five, or all where there are fewer.
            activation: How the network's outputs become scores.
            received_at_s: When the request came, on `time.perf_counter`; None means now.

        Raises:
            InvalidRequest: top_k is more than there are classes, or below 1.
            Overloaded: there are not enough seats for all pictures.
            DeadlineExceeded: the answer is late.
        """
        num_classes = len(self.info.labels)
        if top_k is None:
            top_k = min(5, num_classes)
        if not 1 <= top_k <= num_classes:
            raise InvalidRequest(f"top_k must be 1 to {num_classes}, the number of classes of this model.")
        started_s = time.perf_counter() if received_at_s is None else received_at_s
        with self.batcher.reserve(len(pictures)) as seats:
            try:
                async with asyncio.timeout(self._deadline_s):
                    answers = [
                        self._answer(seat, picture, top_k, activation, started_s)
                        for seat, picture in zip(seats, pictures, strict=True)
                    ]
                    # One picture needs no task of its own.
                    return [await answers[0]] if len(answers) == 1 else await asyncio.gather(*answers)
            except TimeoutError:
                raise self._late() from None

    async def explain(self, picture: bytes, class_index: int | None) -> "Explanation":
        """Say what the network looked at.

        Args:
            picture: Its bytes.
            class_index: Which class to explain; None means the likeliest.

        Raises:
            NotEnabled: explaining is not switched on.
            InvalidRequest: there is no class of that index.
            BadImage: the picture is broken, too large, or none.
            Overloaded: several explanations wait already.
            DeadlineExceeded: the answer is late.
        """
        if self._explain is None:
            raise NotEnabled("Explaining is not switched on.", hint="Start the service with --explain.")
        num_classes = len(self.info.labels)
        if class_index is not None and not 0 <= class_index < num_classes:
            raise InvalidRequest(f"class_index must be 0 to {num_classes - 1}.")
        try:
            async with asyncio.timeout(self._deadline_s):
                decoded = await self._decode(picture)
                return await self._explain(decoded.pixels, class_index)
        except TimeoutError:
            raise self._late() from None

    async def close(self) -> None:
        """Answer whoever uses the model and what is in the house, then free the network."""
        await self._no_user.wait()
        await self.batcher.close()
        self._close()

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"There was no answer within {self._deadline_s * 1000:g} ms.", hint="Ask again, or raise ECA_DEADLINE_MS."
        )

    async def _answer(
        self,
        seat: Reservation[Pixels, Scores],
        picture: bytes | RawPixels | EcaHubError,
        top_k: int,
        activation: Activation,
        started_s: float,
    ) -> ImageResult | EcaHubError:
        try:
            if isinstance(picture, EcaHubError):
                return picture
            decoded = await self._decode(picture)
            answered = await seat.answer(decoded.pixels)
            return ImageResult(
                predictions=self._postprocess(answered.value, top_k, activation),
                decode_ms=decoded.decode_ms,
                queue_ms=decoded.wait_ms + answered.queue_ms,
                engine_ms=answered.engine_ms,
                total_ms=(time.perf_counter() - started_s) * 1000,
                batch_size=answered.batch_size,
            )
        except EcaHubError as error:
            return error
        finally:
            seat.leave()
