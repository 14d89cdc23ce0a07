"""Decoding in threads, with the real decoder, and its admission by cost."""

import asyncio
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from PIL import Image

import eca_hub
from eca_hub.errors import NotAnImage, TooManyPixels
from eca_hub.images.decode import DecodedImage
from eca_service.errors import Overloaded
from eca_service.inference.decoder import Decoded, Decoder, DecoderThreads, Lane
from eca_service.inference.types import RawPixels
from eca_service.models.classifiers import ClassifierInputs
from tests.images.image_files import encode
from tests.service.fakes import png

TRANSFORM = eca_hub.EvalTransform(eca_hub.ImageConfig(24, 32, crop=1.0))


@contextmanager
def lanes(num_threads: int = 1) -> Iterator[DecoderThreads]:
    threads = DecoderThreads(num_threads)
    try:
        yield threads
    finally:
        threads.close()


def decode(decoder: Decoder, *images: bytes | RawPixels) -> list[Decoded]:
    async def work() -> list[Decoded]:
        with decoder.reserve(images) as decodes:
            found = await asyncio.gather(*(one() for one in decodes))
        assert all(isinstance(one, Decoded) for one in found)
        return found  # type: ignore[return-value]

    return asyncio.run(work())


def test_an_image_becomes_the_pixels_that_the_library_makes() -> None:
    with lanes() as threads:
        (decoded,) = decode(Decoder(ClassifierInputs(TRANSFORM), eca_hub.ImageLimits(), threads), png(50, 40, "teal"))
    assert torch.equal(decoded.pixels, TRANSFORM.resize_and_crop(eca_hub.decode_image(png(50, 40, "teal"))))
    assert decoded.pixels.shape == (3, 24, 32)
    assert decoded.decode_ms > 0
    assert decoded.wait_ms >= 0


def test_raw_pixels_keep_their_place_among_encoded_images() -> None:
    raw = RawPixels(bytes(range(256)) * 9)
    with lanes() as threads:
        first, second, third = decode(
            Decoder(ClassifierInputs(TRANSFORM), eca_hub.ImageLimits(), threads), png(), raw, png()
        )
    assert torch.equal(first.pixels, third.pixels)
    assert second.pixels.flatten().tolist() == list(raw.data)


def test_limits_hold() -> None:
    with lanes() as threads:
        decoder = Decoder(ClassifierInputs(TRANSFORM), eca_hub.ImageLimits(max_mpx=0.01), threads)
        with pytest.raises(TooManyPixels):
            decode(decoder, png(200, 100))
        with pytest.raises(NotAnImage):
            decode(decoder, png()[:30])
        assert threads.small.expected_wait_s == pytest.approx(0)


def test_jpegs_may_be_decoded_elsewhere_and_the_rest_is_not() -> None:
    usual, other = encode(Image.new("RGB", (50, 40), "teal"), "JPEG"), png(50, 40, "teal")
    seen: list[int] = []

    def decode_jpeg(jpeg: torch.Tensor) -> torch.Tensor:
        seen.append(len(jpeg))
        return torch.full((3, 40, 50), 7, dtype=torch.uint8)

    gpu_jpegs = eca_hub.GpuJpegDecoder(TRANSFORM, eca_hub.ImageLimits(), "cpu", decode=decode_jpeg)
    with lanes() as threads:
        decoder = Decoder(ClassifierInputs(TRANSFORM, gpu_jpegs), eca_hub.ImageLimits(), threads)
        jpeg, rest = decode(decoder, usual, other)
        assert bool((jpeg.pixels == 7).all())
        assert torch.equal(rest.pixels, TRANSFORM.resize_and_crop(eca_hub.decode_image(other)))
        with pytest.raises(NotAnImage):
            decode(decoder, usual[:300])
    assert seen == [len(usual)]


class RecordingTransform(eca_hub.EvalTransform):
    """Records the threads that it works in."""

    def __init__(self) -> None:
        super().__init__(TRANSFORM.config)
        self.threads: list[str] = []

    def resize_and_crop(self, image: DecodedImage | Image.Image) -> torch.Tensor:
        self.threads.append(threading.current_thread().name.rpartition("_")[0])
        return super().resize_and_crop(image)


def grey(width: int, height: int, file_format: str = "PNG") -> bytes:
    return encode(Image.new("L", (width, height)), file_format)


def test_an_image_goes_to_the_lane_of_its_cost() -> None:
    transform = RecordingTransform()
    with lanes(2) as threads:
        decoder = Decoder(ClassifierInputs(transform), eca_hub.ImageLimits(max_mpx=20), threads)
        for data in (png(50, 40), grey(3000, 1000), grey(3000, 3000), grey(3000, 3000, "JPEG"), grey(4500, 4000)):
            decode(decoder, data)
        with pytest.raises(TooManyPixels, match="the limit is 20 Mpx"):
            decode(decoder, grey(5000, 5000))
    assert transform.threads == ["decoder", "decoder", "costly decoder", "decoder", "large decoder"]


def test_an_image_whose_pixels_take_more_memory_than_its_size_suggests_is_decoded_in_the_large_lane() -> None:
    transform = RecordingTransform()
    with lanes() as threads:
        decode(Decoder(ClassifierInputs(transform), eca_hub.ImageLimits(), threads), grey(3000, 3000, "WEBP"))
    assert transform.threads == ["large decoder"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads share the niceness of their process")
def test_costly_images_are_decoded_by_threads_of_low_priority() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    with lanes() as threads:
        own = niceness()
        assert threads.small.threads.submit(niceness).result() == own
        assert threads.costly.threads.submit(niceness).result() == min(own + 10, 19)
        assert threads.large.threads.submit(niceness).result() == min(own + 10, 19)


def test_a_lane_with_more_work_than_the_bound_refuses_and_the_others_do_not() -> None:
    costly, small = grey(3000, 3000), png()
    with lanes() as threads:
        decoder = Decoder(ClassifierInputs(TRANSFORM), eca_hub.ImageLimits(), threads, max_wait_s=1.0)
        # 9 megapixels at 0.02 s each: six of them take 1.09 s.
        with decoder.reserve([costly] * 6):
            with pytest.raises(Overloaded, match=r"take 1\.1 s to decode and 1 s is the limit") as refusal:
                decoder.reserve([small, costly]).__enter__()
            assert refusal.value.retry_after_s == 2
            with decoder.reserve([small] * 10):
                pass
        assert threads.small.expected_wait_s == pytest.approx(0), "a refused request leaves nothing behind"
        with decoder.reserve([costly]):
            pass


def test_decoded_images_count_no_longer_and_teach_the_lane_its_speed() -> None:
    async def work() -> tuple[float, float, float]:
        with (
            lanes() as threads,
            Decoder(ClassifierInputs(TRANSFORM), eca_hub.ImageLimits(), threads).reserve([png()] * 2) as decodes,
        ):
            before_s = threads.small.expected_wait_s
            await decodes[0]()
            between_s = threads.small.expected_wait_s
            await decodes[1]()
            return before_s, between_s, threads.small.expected_wait_s

    before_s, between_s, after_s = asyncio.run(work())
    assert before_s > between_s > 0
    assert after_s == pytest.approx(0)


def test_an_image_whose_size_was_not_found_is_costly_and_teaches_the_lane_nothing() -> None:
    transform = RecordingTransform()
    photo = encode(Image.new("L", (300, 200)), "JPEG")
    with lanes() as threads:
        decoder = Decoder(ClassifierInputs(transform), eca_hub.ImageLimits(), threads)
        before = wait_of_one(threads.costly)
        decode(decoder, photo[:2] + b"\xff\xfe\0\2" * 600 + photo[2:])
        assert wait_of_one(threads.costly) == before
    assert transform.threads == ["costly decoder"]


def wait_of_one(lane: Lane) -> float:
    lane.accept(1.0)
    try:
        return lane.expected_wait_s
    finally:
        lane.release(1.0)


def test_a_size_beyond_all_limits_is_refused_while_every_lane_is_full() -> None:
    with lanes() as threads:
        decoder = Decoder(ClassifierInputs(TRANSFORM), eca_hub.ImageLimits(max_mpx=20), threads, max_wait_s=1.0)
        for lane in (threads.small, threads.costly, threads.large):
            lane.accept(1000.0)
        with pytest.raises(TooManyPixels, match="the limit is 20 Mpx"):
            decode(decoder, grey(5000, 5000))


def test_a_size_beyond_all_limits_costs_the_other_requests_nothing() -> None:
    header = png()[:16] + (2**31 - 1).to_bytes(4, "big") * 2 + png()[24:]
    with lanes() as threads:
        decoder = Decoder(ClassifierInputs(TRANSFORM), eca_hub.ImageLimits(), threads, max_wait_s=1.0)
        with decoder.reserve([header] * 8), decoder.reserve([png()]):
            pass
        with pytest.raises((TooManyPixels, NotAnImage)):
            decode(decoder, header)
