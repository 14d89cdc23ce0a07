"""What is made of the answers that a crowd got."""

import pytest
from PIL import Image

from eca_hub.errors import EcaHubError
from eca_hub.images.decode import decode_reduced
from experiments.bench.clients import Answer, request_of, samples_in
from experiments.bench.decompression_bombs import bombs
from experiments.bench.overload import Promise, goodput, median_s, most_overtaken, quantile


def test_only_pictures_that_were_named_in_time_count() -> None:
    answers = [Answer(200, 0.0, 1.0), Answer(429, 0.1, 0.1), Answer(200, 9.0, 0.9), Answer(200, 9.0, 2.0)]
    assert goodput(answers, 10.0) == pytest.approx(0.2)
    assert median_s(answers) == 1.0


def test_a_request_is_overtaken_by_those_who_came_later_and_were_answered_sooner() -> None:
    in_order = [Answer(200, place, 5.0) for place in range(6)]
    assert most_overtaken(in_order) == 0
    assert most_overtaken([Answer(200, -1.0, 9.5), *in_order]) == 4


def test_a_promise_is_kept_up_to_its_bound() -> None:
    assert Promise("G1", "share", 0.9, 0.9, at_least=True).is_kept
    assert not Promise("G1", "share", 0.89, 0.9, at_least=True).is_kept
    assert not Promise("G2", "time", 2.1, 2.0).is_kept
    assert quantile(list(range(101))) == 99


def test_samples_are_found_whatever_their_labels() -> None:
    text = (
        '# TYPE eca_images gauge\neca_images{model="a b"} 3\neca_images{model="c"} 4\neca_images_bound{model="c"} 9\n'
    )
    assert samples_in(text, "eca_images") == [3, 4]
    assert request_of(b"abc").endswith(b"Content-Length: 3\r\n\r\nabc")


def test_bombs_are_small_files_and_some_of_them_are_pictures() -> None:
    seen, refused = set(), set()
    for name, data in bombs().items():
        assert len(data) < 2**20, name
        try:
            assert isinstance(decode_reduced(data, min_side_px=256).image, Image.Image)
            seen.add(name)
        except EcaHubError:
            refused.add(name)
    assert len(seen) >= 4
    assert len(refused) >= 4
