"""Where the files of a split come from: names, classes and bytes. Knows nothing of pixels or batches."""

import hashlib
from collections.abc import Iterable
from typing import Literal, Protocol

import numpy as np

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Source(Protocol):
    """The files of one split, in an order that never changes. It travels to worker processes; threads share it."""

    @property
    def targets(self) -> np.ndarray:
        """Class of each file, as an index."""
        ...

    def read(self, index: int) -> bytes:
        """Return one file.

        Raises:
            OSError: it cannot be read.
        """
        ...

    def name(self, index: int) -> str:
        """Say which file it is, for people."""
        ...

    def fingerprint(self) -> str:
        """Hash what the split consists of, without reading every file."""
        ...


class MemorySource:
    """Files held in memory.

    Args:
        files: Bytes and class of each.
        title: What to call the set.
    """

    def __init__(self, files: Iterable[tuple[bytes, int]], title: str) -> None:
        contents, targets = zip(*files, strict=True)
        self._contents: tuple[bytes, ...] = contents
        self._title = title
        self.targets = np.array(targets, dtype=np.int64)

    def read(self, index: int) -> bytes:
        """Return one file."""
        return self._contents[index]

    def name(self, index: int) -> str:
        """Say which file it is."""
        return f"{self._title} #{index}"

    def fingerprint(self) -> str:
        """Hash all bytes: they are few."""
        return fingerprint_of([self._title, *(hashlib.sha256(content).hexdigest() for content in self._contents)])


def fingerprint_of(parts: Iterable[object]) -> str:
    """Hash a description, line by line."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]
