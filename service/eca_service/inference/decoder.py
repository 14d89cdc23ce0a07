"""From the bytes of an image to the network's pixels, in threads beside the event loop, with admission by cost.

Three lanes share the processor. Small images have threads of normal priority. Images that cost more than a few
megapixels of PNG go through threads of low priority, so that they delay no small one; those above 16 megapixels go one
after the other, because each may need 400 MB (8 bytes a pixel). Each lane knows how much work it has accepted and how
fast its last images were decoded, and admits an image only if the wait is within the bound. Limits are checked before
pixels are made; a bad image fails here, alone, before it reaches a batch.
"""

import asyncio
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from eca_hub import EcaHubError, ImageLimits
from eca_service.errors import Overloaded
from eca_service.inference.image_cost import COSTLY_WORK, ImageCost, image_cost
from eca_service.inference.model import Decode
from eca_service.inference.types import RawPixels

_LARGE_MPX = 16.0
"""Above this size images are decoded one at a time."""
_NICENESS = 10
"""Of the threads for costly images: they get a tenth of a core where others want all of it."""
_INITIAL_S_PER_MPX = 0.02


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded image."""

    pixels: Any
    """The network's input."""
    wait_ms: float
    """Time until a thread was free."""
    decode_ms: float
    """Time in the thread."""


class Inputs(Protocol):
    """Makes the input of a network."""

    def from_file(self, data: bytes, limits: ImageLimits) -> Any:
        """Decode the bytes of an image; runs in a decoder thread.

        Raises:
            BadImage: the image is broken or beyond the limits.
        """

    def from_raw(self, image: RawPixels) -> Any:
        """Take pixels that have the network's size."""


class Lane:
    """Decoder threads and the work that waits for them; used in the event loop's thread only.

    Args:
        name: Name of the threads.
        num_threads: How many of them.
        is_nice: Whether they yield to all other threads.
    """

    def __init__(self, name: str, num_threads: int, *, is_nice: bool = False) -> None:
        self.threads = ThreadPoolExecutor(num_threads, name, initializer=_yield_to_others if is_nice else None)
        self._num_threads = num_threads
        self._pending_work = 0.0
        self._s_per_mpx = _INITIAL_S_PER_MPX

    @property
    def expected_wait_s(self) -> float:
        """Time until the threads have done the accepted work, judging by the last images."""
        return self._pending_work * self._s_per_mpx / self._num_threads

    def accept(self, work: float) -> None:
        """Add work."""
        self._pending_work += work

    def release(self, work: float) -> None:
        """Remove work that is done or cancelled."""
        self._pending_work = max(0.0, self._pending_work - work)

    def record(self, work: float, took_s: float) -> None:
        """Learn from one decoded image how long work takes."""
        self._s_per_mpx += 0.1 * (took_s / work - self._s_per_mpx)


class DecoderThreads:
    """The lanes of the process, which all models share.

    Args:
        num_threads: Threads for small images, and as many for costly ones.
    """

    def __init__(self, num_threads: int) -> None:
        self.small = Lane("decoder", num_threads)
        self.costly = Lane("costly decoder", num_threads, is_nice=True)
        self.large = Lane("large decoder", 1, is_nice=True)

    def expected_waits_s(self) -> dict[str, float]:
        """Return the expected wait of a new image in each lane."""
        lanes = {"small": self.small, "costly": self.costly, "large": self.large}
        return {name: lane.expected_wait_s for name, lane in lanes.items()}

    def close(self) -> None:
        """Let the threads end; work that has not begun is cancelled."""
        for lane in (self.small, self.costly, self.large):
            lane.threads.shutdown(wait=False, cancel_futures=True)


class Decoder:
    """Decode for one model.

    Args:
        inputs: The model's preprocessing.
        limits: What an image may cost.
        threads: Where the work is done.
        max_wait_s: Expected wait above which a request is refused.
    """

    def __init__(
        self,
        inputs: Inputs,
        limits: ImageLimits,
        threads: DecoderThreads,
        *,
        max_wait_s: float = math.inf,
    ) -> None:
        self._inputs = inputs
        self._limits = limits
        self._ordinary_limits = replace(limits, max_mpx=min(limits.max_mpx, _LARGE_MPX))
        self._threads = threads
        self._max_wait_s = max_wait_s

    @contextmanager
    def reserve(self, images: Sequence[bytes | RawPixels]) -> Iterator[list[Decode[Any]]]:
        """Admit all images of a request, or none; yield for each a function that decodes it.

        Raises:
            Overloaded: a lane has more work than it can do within the bound. Only work that was accepted before counts,
                so that a request of many images is admitted while the service is idle.
        """
        plans = [self._plan(image) for image in images]
        admissions = [admission for admission, _ in plans if admission is not None]
        for lane in {admission.lane for admission in admissions}:
            self._check_capacity(lane)
        for admission in admissions:
            admission.lane.accept(admission.work)
        try:
            yield [decode for _, decode in plans]
        finally:
            for admission in admissions:
                admission.release()

    def _plan(self, image: bytes | RawPixels) -> "tuple[_Admission | None, Decode[Any]]":
        """Return the admission that decoding needs, if any, and what decodes."""
        if not isinstance(image, bytes):
            return None, partial(self._view, image)
        cost = image_cost(image)
        if cost.mpx > self._limits.max_mpx:
            return None, partial(self._refuse, cost)
        if cost.mpx > _LARGE_MPX:
            lane = self._threads.large
        else:
            lane = self._threads.small if cost.work < COSTLY_WORK else self._threads.costly
        admission = _Admission(lane, cost.work, is_estimate=cost.mpx > 0)
        return admission, partial(self._decode_in_lane, admission, image)

    def _check_capacity(self, lane: Lane) -> None:
        if (wait_s := lane.expected_wait_s) > self._max_wait_s:
            raise Overloaded(
                f"The images in flight take {wait_s:.1f} s to decode and {self._max_wait_s:g} s is the limit.",
                retry_after_s=min(max(math.ceil(wait_s), 1), 60),
            )

    async def _refuse(self, cost: ImageCost) -> Decoded:
        self._limits.check_size(cost.width, cost.height)
        raise AssertionError("the size was within the limits")

    async def _view(self, image: RawPixels) -> Decoded:
        return Decoded(self._inputs.from_raw(image), 0.0, 0.0)

    async def _decode_in_lane(self, admission: "_Admission", data: bytes) -> Decoded:
        """Decode in a thread. Cancelling takes the image out of the queue for one."""
        asked_s = time.perf_counter()
        try:
            try:
                decoded = await self._decode_in_thread(admission.lane, data, asked_s)
            except EcaHubError as error:
                # Pixels of some formats take more memory than others, which only the decoder knows.
                if error.code != "too_many_pixels" or admission.lane is self._threads.large:
                    raise
                self._check_capacity(self._threads.large)
                admission.move_to(self._threads.large)
                decoded = await self._decode_in_thread(admission.lane, data, asked_s)
            if admission.is_estimate:
                admission.lane.record(admission.work, decoded.decode_ms / 1000)
            return decoded
        finally:
            admission.release()

    async def _decode_in_thread(self, lane: Lane, data: bytes, asked_s: float) -> Decoded:
        limits = self._limits if lane is self._threads.large else self._ordinary_limits

        def decode() -> Decoded:
            started_s = time.perf_counter()
            pixels = self._inputs.from_file(data, limits)
            ended_s = time.perf_counter()
            return Decoded(pixels, (started_s - asked_s) * 1000, (ended_s - started_s) * 1000)

        return await asyncio.get_running_loop().run_in_executor(lane.threads, decode)


class _Admission:
    """Accepted work of one image, released once.

    Args:
        lane: Where the work is done.
        work: How much it is.
        is_estimate: Whether the work was estimated from the size of the image, so that its time says how long work
            takes.
    """

    def __init__(self, lane: Lane, work: float, *, is_estimate: bool) -> None:
        self.lane = lane
        self.work = work
        self.is_estimate = is_estimate
        self._is_released = False

    def move_to(self, lane: Lane) -> None:
        self.lane.release(self.work)
        lane.accept(self.work)
        self.lane = lane

    def release(self) -> None:
        if not self._is_released:
            self._is_released = True
            self.lane.release(self.work)


def _yield_to_others() -> None:
    """Lower the priority of the calling thread."""
    if sys.platform == "linux":
        # There a thread has a niceness of its own; elsewhere the whole process would get it.
        niceness = min(os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS, 19)
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
