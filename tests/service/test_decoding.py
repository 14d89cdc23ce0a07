"""Decoding in threads, with the real decoder."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import eca_hub
from eca_hub.errors import NotAnImage, TooManyPixels
from service.decoding import Decoder
from tests.service.house import png

TRANSFORM = eca_hub.EvalTransform(eca_hub.ImageConfig(24, 32, crop=1.0))


def decoder(threads: ThreadPoolExecutor) -> Decoder:
    return Decoder(TRANSFORM, eca_hub.ImageLimits(max_mpx=0.01), threads)


def test_a_picture_becomes_the_pixels_that_the_library_makes() -> None:
    with ThreadPoolExecutor(1) as threads:
        decoded = asyncio.run(decoder(threads).decode(png(50, 40, "teal")))
    assert torch.equal(decoded.pixels, TRANSFORM.to_pixels(eca_hub.decode_image(png(50, 40, "teal"))))
    assert decoded.pixels.shape == (3, 24, 32)
    assert decoded.decode_ms > 0
    assert decoded.wait_ms >= 0


def test_limits_hold() -> None:
    with ThreadPoolExecutor(1) as threads:
        with pytest.raises(TooManyPixels):
            asyncio.run(decoder(threads).decode(png(200, 100)))
        with pytest.raises(NotAnImage):
            asyncio.run(decoder(threads).decode(png()[:30]))
