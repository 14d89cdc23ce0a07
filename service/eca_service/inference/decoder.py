"""From the bytes of a picture to the network's pixels, in a few threads beside the event loop.

The threads are few because each decode may need a hundred megabytes: 8 bytes a pixel, for at most 16 megapixels (8 in
WebP). Larger pictures go one after the other through a thread of their own, which gets what others leave of the
processor: each may need 400 MB and half a second, for which nobody else shall wait. Limits are checked before pixels
are made; a bad picture fails here, alone, before it meets a batch. Never sees HTTP, and knows of the network only what
it wants as input.

Shapes: H height, W width; 3 colours, red first.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eca_hub import EcaHubError, EvalTransform, GpuJpegDecoder, ImageLimits
from eca_service.inference.model import RawPixels

_LARGE_MPX = 16.0


@dataclass(frozen=True, slots=True)
class Decoded:
    """A picture as the network wants it."""

    pixels: Tensor
    """uint8 (3, H, W)."""
    wait_ms: float
    """How long it waited for a thread."""
    decode_ms: float
    """How long the thread worked on it."""


class Decoder:
    """Decode for one model.

    Args:
        transform: The model's preprocessing.
        limits: What a picture may cost.
        threads: Where the work is done; models share it.
        large_thread: Where it is done for pictures of more than 16 megapixels; models share it, too.
        gpu_jpegs: What decodes ordinary JPEGs, if not the processor.
    """

    def __init__(
        self,
        transform: EvalTransform,
        limits: ImageLimits,
        threads: ThreadPoolExecutor,
        large_thread: ThreadPoolExecutor,
        *,
        gpu_jpegs: GpuJpegDecoder | None = None,
    ) -> None:
        self._transform = transform
        self._limits = limits
        self._ordinary_limits = replace(limits, max_mpx=min(limits.max_mpx, _LARGE_MPX))
        self._threads = threads
        self._large_thread = large_thread
        self._gpu_jpegs = gpu_jpegs

    async def decode(self, data: bytes | RawPixels) -> Decoded:
        """Decode, resize and crop one picture. Cancelling takes it out of the queue for a thread.

        Raises:
            BadImage: a picture that is broken, too large, or none.
        """
        asked_s = time.perf_counter()
        if isinstance(data, RawPixels):
            config = self._transform.config
            flat = torch.frombuffer(bytearray(data.data), dtype=torch.uint8)
            return Decoded(flat.view(config.in_chans, config.height_px, config.width_px), 0.0, 0.0)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, self._decode, data, asked_s, self._ordinary_limits)
        except EcaHubError as error:
            if error.code != "too_many_pixels" or self._ordinary_limits == self._limits:
                raise
            return await loop.run_in_executor(self._large_thread, self._decode, data, asked_s, self._limits)

    def _decode(self, data: bytes, asked_s: float, limits: ImageLimits) -> Decoded:
        started_s = time.perf_counter()
        pixels = self._gpu_jpegs.decode(data) if self._gpu_jpegs else None
        if pixels is None:
            pixels = self._transform.resize_and_crop(self._transform.decode(data, limits=limits))
        ended_s = time.perf_counter()
        return Decoded(pixels, (started_s - asked_s) * 1000, (ended_s - started_s) * 1000)
