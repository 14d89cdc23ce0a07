"""Sources: the encoded images of a split, with their classes and names.

Shapes: N images, K classes.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeVar

import numpy as np

from eca_hub.errors import BadImage, InvalidConfig

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
SplitName = TypeVar("SplitName", bound=str)
"""A split, or one of several names of it."""
UNLABELED = -1
"""Target of an image whose class is not known."""

_POINTERS = (
    (re.compile(rb"version https://git-lfs\.github\.com/spec/"), "Git LFS", "git lfs pull"),
    # What git-annex leaves of an unlocked file, and of a link on a file system without links.
    (re.compile(rb"(/annex/objects/|(\.\./)*\.git/annex/objects/)"), "git-annex", "git annex get ."),
)


class Source(Protocol):
    """The images of one split, in a fixed order. It is pickled for worker processes, and threads share it."""

    @property
    def targets(self) -> np.ndarray:
        """Class index of each image, or `UNLABELED`: int64 (N,); or whether each class applies to it: int8 (N, K)."""
        ...

    def read(self, index: int) -> bytes:
        """Return one encoded image.

        Raises:
            OSError: it cannot be read.
            TooLarge: it has more bytes than are decoded.
        """
        ...

    def name(self, index: int) -> str:
        """Return the name of an image for messages and tables, encodable as UTF-8."""
        ...

    def fingerprint(self) -> str:
        """Hash what the split consists of, without reading every image."""
        ...


class MemorySource:
    """Encoded images in memory.

    Args:
        files: Bytes and class index of each.
        title: Prefix of their names.
    """

    def __init__(self, files: Iterable[tuple[bytes, int]], title: str) -> None:
        contents, targets = zip(*files, strict=True)
        self._contents: tuple[bytes, ...] = contents
        self._title = title
        self.targets = np.array(targets, dtype=np.int64)

    def read(self, index: int) -> bytes:
        """Return one encoded image."""
        return self._contents[index]

    def name(self, index: int) -> str:
        """Return title and index."""
        return f"{self._title} #{index}"

    def fingerprint(self) -> str:
        """Hash all bytes."""
        return fingerprint_of([self._title, *(hashlib.sha256(content).hexdigest() for content in self._contents)])


class SubsetSource:
    """Some images of another source.

    Args:
        source: The other source.
        indices: Which of its images, in order.
    """

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray) -> None:
        self._source = source
        self._indices = np.asarray(indices, dtype=np.int64)
        self.targets = source.targets[self._indices]

    def read(self, index: int) -> bytes:
        """Return one encoded image."""
        return self._source.read(int(self._indices[index]))

    def name(self, index: int) -> str:
        """Return its name in the other source."""
        return self._source.name(int(self._indices[index]))

    def fingerprint(self) -> str:
        """Hash the other source and the indices."""
        return fingerprint_of([self._source.fingerprint(), self._indices.tobytes().hex()])


def is_unlabeled(targets: np.ndarray) -> np.ndarray:
    """Whether an image has no label, (N,); of targets (N,) or (N, K)."""
    is_missing: np.ndarray = targets == UNLABELED
    return is_missing if targets.ndim == 1 else np.asarray(is_missing.any(axis=1))


def count_classes(targets: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the number of images of each class, (K,); of targets (N,) or (N, K)."""
    if targets.ndim == 1:
        return np.bincount(targets, minlength=num_classes)
    counts: np.ndarray = targets.sum(axis=0, dtype=np.int64)
    return counts


def fingerprint_of(parts: Iterable[object]) -> str:
    """Hash a description, line by line."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


class Pointer(NamedTuple):
    """A pointer file of Git LFS or git-annex, in the place of a file that was not fetched."""

    tool: str
    """The tool that fetches it."""
    command: str
    """The command line that fetches it."""


def pointer_in(content: bytes) -> Pointer | None:
    """Return the pointer that a file holds; None if it holds something else."""
    return next((Pointer(tool, command) for mark, tool, command in _POINTERS if mark.match(content)), None)


def broken_reason(error: BadImage | OSError, content: bytes = b"") -> str:
    """Return why an image is broken, for messages and tables.

    Args:
        error: What reading or decoding it raised.
        content: How its file begins, as far as it is known; it may be a pointer.
    """
    if pointer := pointer_in(content):
        return f"a pointer of {pointer.tool}; `{pointer.command}` fetches the image"
    # The hint of a BadImage addresses clients of the service, so only its message is shown.
    return error.message if isinstance(error, BadImage) else error.strerror or str(error)


def split_named_by(
    path: Path, root: Path, in_file: Mapping[SplitName, re.Pattern[str]], of_folder: Mapping[SplitName, re.Pattern[str]]
) -> SplitName | None:
    """Return the split that the name of a file states, or else that of its folder, if it lies below `root`.

    Args:
        path: The file.
        root: The folder of the data set, which may be named `test` for another reason.
        in_file: What the name of a file of each split holds.
        of_folder: The name of a folder of each split.

    Raises:
        InvalidConfig: the name states two splits.
    """
    named = [split for split, mark in in_file.items() if mark.search(path.name)]
    if not named and path.parent != root:
        named = [split for split, mark in of_folder.items() if mark.fullmatch(path.parent.name)]
    if len(named) > 1:
        raise InvalidConfig(
            f"{readable_name(str(path))} is named after the splits {' and '.join(named)}.",
            hint="Leave one of them in its name.",
        )
    return next(iter(named), None)


def readable_name(name: str) -> str:
    """Return a file name as text that can be encoded as UTF-8, in Unicode's composed form (NFC).

    Bytes that are not UTF-8 are taken for Latin-1, as in old ZIP archives. macOS stores names in the decomposed form.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        name = os.fsencode(name).decode("latin-1")
    return unicodedata.normalize("NFC", name)


def stratified_split(targets: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Split indices so that each class gives the same share, at least one image where it has two. Always the same.

    An image of several classes counts for the rarest of them.

    Args:
        targets: Class indices (N,), or whether each class applies (N, K).
        fraction: Share of the second part.

    Returns:
        Indices of the two parts, each in ascending order.
    """
    if targets.ndim == 2:
        counts_K = targets.sum(axis=0)
        rarity_NK = np.where(targets > 0, counts_K, len(targets) + 1)
        targets = np.where(targets.any(axis=1), rarity_NK.argmin(axis=1), len(counts_K))
    generator = np.random.default_rng(0)
    held_out = []
    for target in np.unique(targets):
        indices = np.flatnonzero(targets == target)
        num_held_out = min(max(round(fraction * len(indices)), 1), len(indices) - 1)
        held_out.append(generator.permutation(indices)[:num_held_out])
    second = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(targets)), second), second
