"""The arithmetic of the bench of overload, and its decompression bombs."""

import pytest
from PIL import Image

from eca_hub.errors import EcaHubError
from eca_hub.images.decode import decode_reduced
from experiments.bench.clients import Response
from experiments.bench.decompression_bombs import bombs
from experiments.bench.overload import Guarantee, goodput, median_s, most_overtaken, quantile


def test_only_images_that_were_served_in_time_count() -> None:
    responses = [Response(200, 0.0, 1.0), Response(429, 0.1, 0.1), Response(200, 9.0, 0.9), Response(200, 9.0, 2.0)]
    assert goodput(responses, 10.0) == pytest.approx(0.2)
    assert median_s(responses) == 1.0


def test_a_request_is_overtaken_by_later_requests_that_end_sooner() -> None:
    in_order = [Response(200, index, 5.0) for index in range(6)]
    assert most_overtaken(in_order) == 0
    assert most_overtaken([Response(200, -1.0, 9.5), *in_order]) == 4


def test_a_guarantee_is_met_up_to_its_bound() -> None:
    assert Guarantee("G1", "share", 0.9, 0.9, at_least=True).is_met
    assert not Guarantee("G1", "share", 0.89, 0.9, at_least=True).is_met
    assert not Guarantee("G2", "time", 2.1, 2.0).is_met
    assert quantile(list(range(101))) == 99


@pytest.mark.slow
def test_bombs_are_small_files_and_some_of_them_are_valid_images() -> None:
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
