"""The run-length code of masks is pycocotools' own, both ways."""

import numpy as np
import pytest

from eca_hub.errors import InvalidConfig
from eca_hub.images.rle import decode_mask, encode_mask

coco_mask = pytest.importorskip("pycocotools.mask")


def masks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    found = [rng.random((height, width)) < share for height, width, share in ((7, 9, 0.5), (40, 33, 0.02), (1, 1, 1))]
    found += [np.zeros((5, 6), bool), np.ones((5, 6), bool), np.tri(300, 200, dtype=bool)]
    for each in found[:3]:
        each[0, 0] = True
    return found


@pytest.mark.parametrize("index", range(6))
def test_a_mask_is_written_as_pycocotools_writes_it_and_read_again(index: int) -> None:
    mask_HW = masks()[index]
    encoded = encode_mask(mask_HW)
    expected = coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    assert encoded == {"size": expected["size"], "counts": expected["counts"].decode()}
    assert np.array_equal(decode_mask(encoded), mask_HW)


def test_runs_that_are_listed_are_read_as_well() -> None:
    assert decode_mask({"size": [2, 2], "counts": [1, 2, 1]}).tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize(
    "damaged",
    [
        {"size": [2, 2], "counts": [1, 2]},
        {"size": [2, 2], "counts": [5, -1]},
        {"size": [2, 2], "counts": "\x01"},
        {"size": [2, 2], "counts": "o"},
        {"size": [2], "counts": [4]},
        {"counts": [4]},
        {"size": [0, 2], "counts": []},
        {"size": [2, 2], "counts": "o" * 20},
    ],
)
def test_a_damaged_mask_is_refused(damaged: dict[str, object]) -> None:
    with pytest.raises(InvalidConfig, match="mask"):
        decode_mask(damaged)
