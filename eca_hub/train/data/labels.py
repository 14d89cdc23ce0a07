"""Class names and targets from the values of a table: words, numbers, or nothing.

Shapes: N images, K classes.
"""

import codecs
import re
from collections.abc import Iterable, Sequence

import numpy as np

from eca_hub.train.data.source import UNLABELED, readable_name


def label_name(text: str) -> str:
    """Return a class name without the spaces around it, as text that can be encoded as UTF-8."""
    return readable_name(text.strip())


def text_in(content: bytes) -> str:
    """Decode a small text file: UTF-8, UTF-16 with a byte order mark, or else Latin-1, as names of files."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def class_names(values: Iterable[str | Sequence[str] | None]) -> list[str]:
    """Return the distinct values, or members of lists, in order: by number if all are integers, else by the alphabet.

    None stands for no value.
    """
    names = {name for value in values if value is not None for name in ([value] if isinstance(value, str) else value)}
    is_numeric = all(re.fullmatch(r"-?\d{1,999}", name) for name in names)
    return sorted(names, key=lambda name: (int(name), name) if is_numeric else (0, name))


def read_values(cells: Sequence[str | None]) -> list[str | None]:
    """Return the class name in each cell of a text file, None where there is none or it is empty.

    pandas writes integers with gaps as 1.0, and a gap as nothing or, with na_rep, as nan.
    """
    values = [None if cell is None or cell.casefold() in ("nan", "<na>") else cell for cell in cells]
    is_integer = all(value is None or re.fullmatch(r"-?\d+\.0+", value) for value in values)
    return [value.partition(".")[0] if value is not None and is_integer else value for value in values]


def to_targets(values: Sequence[str | None], labels: Sequence[str]) -> np.ndarray:
    """Return the class index of each value, `UNLABELED` for None: int64 (N,)."""
    index_of = {label: index for index, label in enumerate(labels)}
    return np.array([UNLABELED if value is None else index_of[value] for value in values], dtype=np.int64)


def to_multi_hot(values: Sequence[Sequence[str] | None], labels: Sequence[str]) -> np.ndarray:
    """Return 1 for each class that applies to an image and 0 for the others, `UNLABELED` for None: int8 (N, K)."""
    index_of = {label: index for index, label in enumerate(labels)}
    targets_NK = np.zeros((len(values), len(labels)), dtype=np.int8)
    for row_K, value in zip(targets_NK, values, strict=True):
        if value is None:
            row_K[:] = UNLABELED
        else:
            row_K[[index_of[each] for each in value]] = 1
    return targets_NK
