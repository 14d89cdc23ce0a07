"""Decoding in threads, with the real decoder."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

import eca_hub
from eca_hub.errors import NotAnImage, TooManyPixels
from eca_hub.images.decode import DecodedImage
from eca_service.inference.decoder import Decoder
from tests.images.image_files import encode
from tests.service.house import png

TRANSFORM = eca_hub.EvalTransform(eca_hub.ImageConfig(24, 32, crop=1.0))


def decoder(threads: ThreadPoolExecutor) -> Decoder:
    return Decoder(TRANSFORM, eca_hub.ImageLimits(max_mpx=0.01), threads, threads)


def test_a_picture_becomes_the_pixels_that_the_library_makes() -> None:
    with ThreadPoolExecutor(1) as threads:
        decoded = asyncio.run(decoder(threads).decode(png(50, 40, "teal")))
    assert torch.equal(decoded.pixels, TRANSFORM.resize_and_crop(eca_hub.decode_image(png(50, 40, "teal"))))
    assert decoded.pixels.shape == (3, 24, 32)
    assert decoded.decode_ms > 0
    assert decoded.wait_ms >= 0


def test_limits_hold() -> None:
    with ThreadPoolExecutor(1) as threads:
        with pytest.raises(TooManyPixels):
            asyncio.run(decoder(threads).decode(png(200, 100)))
        with pytest.raises(NotAnImage):
            asyncio.run(decoder(threads).decode(png()[:30]))


def test_jpegs_may_be_decoded_elsewhere_and_the_rest_is_not() -> None:
    usual, other = encode(Image.new("RGB", (50, 40), "teal"), "JPEG"), png(50, 40, "teal")
    seen: list[int] = []

    def decode(jpeg: torch.Tensor) -> torch.Tensor:
        seen.append(len(jpeg))
        return torch.full((3, 40, 50), 7, dtype=torch.uint8)

    gpu_jpegs = eca_hub.GpuJpegDecoder(TRANSFORM, eca_hub.ImageLimits(), "cpu", decode=decode)
    with ThreadPoolExecutor(1) as threads:
        both = Decoder(TRANSFORM, eca_hub.ImageLimits(), threads, threads, gpu_jpegs=gpu_jpegs)
        assert bool((asyncio.run(both.decode(usual)).pixels == 7).all())
        assert torch.equal(asyncio.run(both.decode(other)).pixels, asyncio.run(decoder(threads).decode(other)).pixels)
        with pytest.raises(NotAnImage):
            asyncio.run(both.decode(usual[:300]))
    assert seen == [len(usual)]


class NotingTransform(eca_hub.EvalTransform):
    """Remembers which threads it worked in."""

    def __init__(self) -> None:
        super().__init__(TRANSFORM.config)
        self.threads: list[str] = []

    def resize_and_crop(self, image: DecodedImage | Image.Image) -> torch.Tensor:
        self.threads.append(threading.current_thread().name.partition("_")[0])
        return super().resize_and_crop(image)


def test_a_picture_of_very_many_pixels_keeps_no_thread_from_the_others() -> None:
    transform = NotingTransform()
    with ThreadPoolExecutor(2, "ordinary") as threads, ThreadPoolExecutor(1, "large") as large_thread:
        decoder = Decoder(transform, eca_hub.ImageLimits(max_mpx=20), threads, large_thread)
        for data in (encode(Image.new("L", (4500, 4000)), "PNG"), png(50, 40)):
            asyncio.run(decoder.decode(data))
        with pytest.raises(TooManyPixels, match="the limit is 20 Mpx"):
            asyncio.run(decoder.decode(encode(Image.new("L", (5000, 5000)), "PNG")))
    assert transform.threads == ["large", "ordinary"]
