"""The parity check and its stored images."""

import pytest
import torch

import eca_hub
from eca_service.optimize.parity import compare, is_passed, parity_images

TRANSFORM = eca_hub.EvalTransform(eca_hub.ImageConfig(32, 32, crop=1.0))


def test_the_stored_images_are_a_batch_of_different_ones() -> None:
    found = parity_images(TRANSFORM)
    assert found.shape == (4, 3, 32, 32)
    assert found.dtype == torch.uint8
    assert len({image.float().mean().item() for image in found}) == 4
    assert all(image.float().std() > 20 for image in found)


EXPECTED = torch.tensor([[0.60, 0.40], [0.505, 0.495]])


@pytest.mark.parametrize(
    ("moved_by", "is_accepted"),
    [
        ([0.0, 0.0], True),
        ([-0.015, 0.015], True),
        ([-0.021, 0.021], False),
    ],
)
def test_probabilities_may_move_within_the_bound_of_the_format(moved_by: list[float], is_accepted: bool) -> None:
    report = compare(EXPECTED[:1], EXPECTED[:1] + torch.tensor(moved_by), torch.bfloat16)
    assert is_passed(report) is is_accepted
    assert report.allowed_difference == 0.02
    assert report.max_difference == pytest.approx(moved_by[1], abs=1e-6)


def test_every_image_must_have_the_same_class_even_where_two_are_close() -> None:
    report = compare(EXPECTED, EXPECTED + torch.tensor([[0.0, 0.0], [-0.006, 0.006]]), torch.bfloat16)
    assert report.same_top1 == 0.5
    assert not is_passed(report)


def test_a_probability_that_is_not_a_number_never_passes() -> None:
    assert not is_passed(compare(EXPECTED, EXPECTED * float("nan"), torch.bfloat16))
