"""Class names and targets from the values of a table: words, numbers, or nothing.

Shapes: N images.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from eca_hub.train.data.source import UNLABELED


def class_names(values: Iterable[str | None]) -> list[str]:
    """Return the distinct values in order: by number if all are integers, else by the alphabet."""
    names = {value for value in values if value is not None}
    is_numeric = all(re.fullmatch(r"-?\d+", name) for name in names)
    return sorted(names, key=lambda name: (int(name), name) if is_numeric else (0, name))


def to_targets(values: Sequence[str | None], labels: Sequence[str]) -> np.ndarray:
    """Return the class index of each value, `UNLABELED` for None: int64 (N,)."""
    index_of = {label: index for index, label in enumerate(labels)}
    return np.array([UNLABELED if value is None else index_of[value] for value in values], dtype=np.int64)
