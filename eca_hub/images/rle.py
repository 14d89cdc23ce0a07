"""COCO's run-length code of masks: runs of 0 and 1 in turn, column by column, written as text.

The text is that of pycocotools: five bits a character from '0' on, the sixth marks a continuation, and from the third
run on each number is the difference to the one two before.

Shapes: H height, W width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eca_hub.errors import InvalidConfig

_FIRST_CHARACTER = 48


def encode_mask(mask_HW: np.ndarray) -> dict[str, Any]:
    """Encode a bool mask as `{"size": [H, W], "counts": text}`."""
    height, width = mask_HW.shape
    flat = np.asarray(mask_HW, dtype=np.int8).reshape(-1, order="F")
    changes = np.diff(flat, prepend=0, append=0)
    return encode_runs(np.flatnonzero(changes == 1), np.flatnonzero(changes == -1), height, width)


def encode_runs(starts: np.ndarray, ends: np.ndarray, height: int, width: int) -> dict[str, Any]:
    """Encode a mask whose runs of 1 are known.

    Args:
        starts: Index of the first pixel of each run, in order; pixels are counted down the columns.
        ends: Index of the pixel behind each run. Empty runs are left out, and runs that touch become one.
        height: Of the mask.
        width: Of the mask.
    """
    is_run = starts < ends
    starts, ends = starts[is_run], ends[is_run]
    is_gap = starts[1:] > ends[:-1]
    starts, ends = starts[np.append(True, is_gap)[: len(starts)]], ends[np.append(is_gap, True)[: len(ends)]]
    edges = np.stack([starts, ends], axis=1).ravel()
    size = height * width
    if size and not (len(edges) and edges[-1] == size):
        edges = np.append(edges, size)
    return {"size": [height, width], "counts": _write_counts(np.diff(edges, prepend=0).tolist())}


def decode_mask(rle: Mapping[str, Any]) -> np.ndarray:
    """Decode a mask to bool (H, W); `counts` may also be the list of the runs.

    Raises:
        InvalidConfig: the runs do not fill the mask, or the text is not the code.
    """
    try:
        height, width = (int(side) for side in rle["size"])
        counts = rle["counts"]
        runs = read_counts(counts) if isinstance(counts, str | bytes) else [int(run) for run in counts]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidConfig(f"A mask is no run-length code of COCO: {error}.") from None
    if height < 1 or width < 1 or any(run < 0 for run in runs) or sum(runs) != height * width:
        raise InvalidConfig(f"The runs of a mask cover {sum(runs)} pixels; its size is {height} x {width}.")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape((height, width), order="F")


def read_counts(text: str | bytes) -> list[int]:
    """Read the runs from their text.

    Raises:
        ValueError: the text ends inside a number or has another character.
    """
    runs: list[int] = []
    number, shift = 0, 0
    for byte in text.encode() if isinstance(text, str) else text:
        character = byte - _FIRST_CHARACTER
        if not 0 <= character < 64 or shift > 50:
            raise ValueError("the text of the runs is damaged")
        number |= (character & 0x1F) << shift
        shift += 5
        if not character & 0x20:
            if character & 0x10:
                number -= 1 << shift
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number, shift = 0, 0
    if shift:
        raise ValueError("the text of the runs ends inside a number")
    return runs


def _write_counts(runs: Sequence[int]) -> str:
    characters: list[int] = []
    for index, run in enumerate(runs):
        number = run - runs[index - 2] if index > 2 else run
        while True:
            character = number & 0x1F
            number >>= 5
            is_last = number == (-1 if character & 0x10 else 0)
            characters.append((character if is_last else character | 0x20) + _FIRST_CHARACTER)
            if is_last:
                break
    return bytes(characters).decode("ascii")
