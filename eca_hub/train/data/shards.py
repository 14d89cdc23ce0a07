"""Tar shards of WebDataset that are read from front to back: opened from a file or over HTTP, and buffered.

Files are grouped to samples by the `webdataset` library.

Shapes: N samples of all shards of a split.
"""

import io
import json
import re
import tarfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from http.client import HTTPException
from typing import IO, Any
from urllib.parse import urlsplit

import numpy as np

from eca_hub.errors import InvalidConfig
from eca_hub.images import folders
from eca_hub.train.data.labels import label_name, text_in
from eca_hub.train.data.source import UNLABELED, fingerprint_of, readable_name
from eca_hub.train.errors import TrainingStopped

IMAGE_ENDINGS = (*(ending.removeprefix(".") for ending in folders.IMAGE_ENDINGS), "img")
LABEL_ENDINGS = ("cls", "label", "txt", "json")
_JSON_KEYS = ("label", "class", "cls", "category", "target")
_JSON_LIST_KEYS = ("labels", "classes", "categories", "targets", *_JSON_KEYS)

_META = re.compile(r"__[^/]*__($|/)")
"""Names of files that `tar_file_iterator` leaves out."""
_WAITS_S = (1.0, 2.0, 4.0)
"""Before a lost connection is opened again."""
_TIMEOUT_S = 60.0
_MAX_OPEN = 32
_ERRORS = (OSError, EOFError, HTTPException, tarfile.TarError)
"""What a broken connection or a damaged shard raises."""

Sample = dict[str, Any]
"""Its key under `__key__`, and the bytes of each of its files under the file's ending."""


def label_in(content: bytes, ending: str) -> str | None:
    """Return the class in a file beside an image: a number, a word, or a value of a JSON object."""
    text = text_in(content)
    if ending != "json":
        return label_name(text) or None
    try:
        values = json.loads(text)
    except ValueError:
        return None
    if isinstance(values, dict):
        values = next((values[key] for key in _JSON_KEYS if key in values), None)
    return None if isinstance(values, dict | list) else _name_of(values)


def _name_of(value: Any) -> str | None:
    """Return the class that a JSON value names, None for null or NaN; the float 1.0 names the class 1."""
    if isinstance(value, float):
        if value != value:
            return None
        value = int(value) if value.is_integer() else value
    return None if value is None else label_name(str(value)) or None


def labels_in(content: bytes, ending: str) -> list[str] | None:
    """Return the classes in a file beside an image, any number of them; None if it does not say.

    A text has commas, semicolons, vertical bars or line ends between them, or spaces between numbers; JSON has a list.
    """
    text = text_in(content)
    if ending.rsplit(".", 1)[-1] != "json":
        parts = [name for part in re.split(r"[,;|\n]", text) if (name := label_name(part))]
        numbers = [number for part in parts for number in part.split()]
        return numbers if all(number.isdecimal() for number in numbers) else parts
    try:
        values = json.loads(text)
    except ValueError:
        return None
    if isinstance(values, dict):
        values = next((values[key] for key in _JSON_LIST_KEYS if key in values), None)
    if not isinstance(values, list) or any(isinstance(each, dict | list) for each in values):
        return None
    return [label for each in values if (label := _name_of(each)) is not None]


def image_in(sample: Sample) -> bytes | None:
    """Return the encoded image of a sample, if it has one.

    Raises:
        OSError: it has several.
    """
    ending = ending_among(sample, IMAGE_ENDINGS)
    return None if ending is None else sample[ending]


def label_of(sample: Sample) -> str | None:
    """Return the class of a sample; without a file that says so, the folder of its files is its class.

    Raises:
        OSError: several files could say so.
    """
    files = [(ending, sample[ending]) for ending in label_endings(sample)]
    if not files:
        folder = str(sample["__key__"]).rpartition("/")[0].rpartition("/")[2]
        return label_name(folder) if folder not in ("", ".") else None
    return next((label for ending, file in files if (label := label_in(file, ending)) is not None), None)


def labels_of(sample: Sample) -> list[str] | None:
    """Return the classes of a sample with any number of them; None if no file says so.

    Raises:
        OSError: several files could say so.
    """
    candidates = (labels_in(sample[ending], ending) for ending in label_endings(sample))
    return next((labels for labels in candidates if labels is not None), None)


def ending_among(endings: Iterable[str], allowed: Sequence[str]) -> str | None:
    """Return the ending of a sample's file that is allowed, such as `jpg`, or else whose last part is: `left.jpg`.

    A key ends at the first dot of a file's name, so that what follows is the ending.

    Raises:
        OSError: there are several to choose from.
    """
    candidates = [ending for ending in endings if ending.rsplit(".", 1)[-1] in allowed]
    plain = [ending for ending in candidates if ending in allowed]
    if len(candidates) > 1 and not plain:
        raise OSError(
            f"it has {' and '.join(f'.{ending}' for ending in candidates[:2])}, one of which is meant; a key ends at "
            "the first dot of a file's name"
        )
    return next(iter(plain or candidates), None)


def label_endings(endings: Iterable[str]) -> list[str]:
    """Return the endings of files that can say the class, in the order in which they are asked; `a.cls` only alone.

    Raises:
        OSError: there are several such as `a.cls` and `b.cls`.
    """
    names = list(endings)
    if plain := [ending for ending in LABEL_ENDINGS if ending in names]:
        return plain
    ending = ending_among(names, LABEL_ENDINGS[:1])
    return [] if ending is None else [ending]


def open_shard(url: str) -> IO[bytes]:
    """Open a shard for reading.

    Raises:
        OSError: it is missing or cannot be reached.
    """
    if urlsplit(url).scheme in ("http", "https"):
        opened: IO[bytes] = urllib.request.urlopen(url, timeout=_TIMEOUT_S)  # noqa: S310  http or https
        return opened
    return io.FileIO(url.removeprefix("file://"))


def samples_of(url: str, file: IO[bytes]) -> Iterator[Sample]:
    """Yield the samples of an opened shard."""
    from webdataset.tariterators import group_by_keys

    yield from group_by_keys(_files_of(url, file))


def count_samples(names: Iterable[str]) -> int:
    """Count the samples that `samples_of` yields of a shard with files of these names, in order.

    Raises:
        ValueError: a sample has two files of one name.
    """
    from webdataset.tariterators import group_by_keys

    files = ({"fname": name, "data": b"", "__url__": ""} for name in names if not _META.match(name))
    return sum(1 for _ in group_by_keys(files))


def _files_of(url: str, file: IO[bytes]) -> Iterator[dict[str, Any]]:
    from webdataset.tariterators import tar_file_iterator

    for each in tar_file_iterator(file):
        yield each | {"__url__": url}
    file.read()
    # A tar file that is cut off between two files ends as a whole one does, in the midst of a sample.
    if num_missing := getattr(file, "length", 0):
        raise EOFError(f"the connection was lost {num_missing} bytes before its end")


class ShardReader:
    """The samples of one shard by their position; those that are passed over are buffered until they are taken.

    A lost connection is opened again.

    Args:
        url: Path or address.
        num_samples: Samples that the shard holds.
    """

    def __init__(self, url: str, num_samples: int) -> None:
        self._url = url
        self._num_samples = num_samples
        self._samples: Iterator[Sample] | None = None
        self._file: IO[bytes] | None = None
        self._next = 0
        self.buffered: dict[int, Sample] = {}
        """Samples by their positions, in that order."""

    def take(self, position: int) -> Sample:
        """Return a sample, and read up to it first.

        Raises:
            TrainingStopped: the shard cannot be read, or does not hold as many samples as it should.
        """
        if position not in self.buffered:
            if position < self._next:
                # It was dropped, or has been taken before.
                self.close()
                self._next = 0
            is_remote = urlsplit(self._url).scheme in ("http", "https")
            for wait_s in (*(_WAITS_S if is_remote else ()), None):
                try:
                    self._read_up_to(position)
                    break
                except (*_ERRORS, ValueError) as error:
                    self.close()
                    if wait_s is None or isinstance(error, urllib.error.HTTPError | ValueError):
                        raise TrainingStopped(
                            f"The shard {self._url} cannot be read: {error}.", hint="--resume continues."
                        ) from None
                    time.sleep(wait_s)
        return self.buffered.pop(position)

    def close(self) -> None:
        """Close the file; what is buffered stays."""
        if self._file is not None:
            self._file.close()
        self._file = self._samples = None

    def _read_up_to(self, position: int) -> None:
        num_known = self._next
        if self._samples is None:
            self._file = open_shard(self._url)
            self._samples = samples_of(self._url, self._file)
            self._next = 0
        while self._next <= position:
            sample = next(self._samples, None)
            if sample is None:
                # Over HTTP, a lost connection looks the same.
                raise EOFError(f"it ends after {self._next} samples, and {self._num_samples} are expected")
            if self._next >= num_known:
                self.buffered[self._next] = sample
            self._next += 1
        if self._next == self._num_samples:
            if next(self._samples, None) is not None:
                raise ValueError(f"it holds more than the {self._num_samples} samples that are expected")
            self.close()


class StreamSource:
    """The images of a split, by their number in the stream of all shards; shards are read from front to back.

    Images must be asked for nearly in that order: within a window of `buffer_size` in any order, and each once.

    Args:
        urls: Paths or addresses of the shards.
        counts: Samples in each.
        labels: Class names; a sample has one of them, or its index.
        buffer_size: Samples that are asked for out of order, at most.
        is_multi_label: Whether any number of classes applies to an image.
    """

    def __init__(
        self,
        urls: Sequence[str],
        counts: Sequence[int],
        labels: Sequence[str],
        buffer_size: int,
        *,
        is_multi_label: bool = False,
    ) -> None:
        self.urls = list(urls)
        self.counts = list(counts)
        self._starts = np.cumsum([0, *counts])
        self._labels = list(labels)
        self._buffer_size = buffer_size
        self._is_multi_label = is_multi_label
        num_images, num_classes = sum(counts), len(self._labels)
        self.targets = (
            np.zeros((num_images, num_classes), dtype=np.int8)
            if is_multi_label
            else np.full(num_images, UNLABELED, dtype=np.int64)
        )
        """Class index of each image (N,), or whether each class applies (N, K); known once the image has been read."""
        self._start_reading()

    def read(self, index: int) -> bytes:
        """Return one encoded image, and learn its class.

        Raises:
            OSError: the sample has no image, or none of the classes.
            TrainingStopped: the shard cannot be read.
        """
        shard = self._shard_of(index)
        with self._lock:
            reader = self._readers.pop(shard, None) or ShardReader(self.urls[shard], self.counts[shard])
            # The one that was used last is the last.
            self._readers[shard] = reader
            sample = reader.take(index - int(self._starts[shard]))
            self._drop_oldest()
        content = image_in(sample)
        if content is None:
            raise OSError("the sample has no image")
        if self._is_multi_label:
            labels = labels_of(sample)
            if labels is None:
                raise OSError("the sample has no list of classes")
            self.targets[index, [self._target(label) for label in labels]] = 1
        else:
            self.targets[index] = self._target(label_of(sample))
        return content

    def name(self, index: int) -> str:
        """Return the name of the shard and the position in it."""
        shard = self._shard_of(index)
        return f"{readable_name(self.urls[shard].rsplit('/', 1)[-1])} #{index - int(self._starts[shard])}"

    def fingerprint(self) -> str:
        """Hash the names of the shards and their numbers of samples."""
        names = [url.rsplit("/", 1)[-1] for url in self.urls]
        return fingerprint_of([*zip(names, self.counts, strict=True), self._buffer_size, *self._labels])

    def close(self) -> None:
        """Close all shards."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()

    def __getstate__(self) -> dict[str, Any]:
        """Leave open shards to this process."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_readers")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin to read in another process."""
        self.__dict__.update(state)
        self._start_reading()

    def _start_reading(self) -> None:
        self._lock = threading.Lock()
        self._readers: dict[int, ShardReader] = {}

    def _shard_of(self, index: int) -> int:
        return int(np.searchsorted(self._starts, index, side="right")) - 1

    def _drop_oldest(self) -> None:
        """Forget the oldest samples that were passed over, which belong to another process, and close old shards."""
        num_excess = sum(len(reader.buffered) for reader in self._readers.values()) - 2 * self._buffer_size
        for reader in self._readers.values():
            for position in list(reader.buffered)[: max(num_excess, 0)]:
                del reader.buffered[position]
                num_excess -= 1
        for shard in list(self._readers)[:-_MAX_OPEN]:
            self._readers.pop(shard).close()

    def _target(self, label: str | None) -> int:
        if label is None:
            raise OSError("the sample has no class")
        if label in self._labels:
            return self._labels.index(label)
        if label.isdecimal() and int(label) < len(self._labels):
            return int(label)
        raise OSError(f"its class {label!r} is none of the {len(self._labels)} of --data.labels")


def check_url(url: str) -> None:
    """Refuse what is neither a path nor an address of the web.

    Raises:
        InvalidConfig: another scheme, such as `pipe:`, which would run a command.
    """
    scheme, colon, _ = url.partition(":")
    if colon and scheme not in ("http", "https", "file"):
        reason = "it would run a command" if scheme == "pipe" else "this scheme is not supported"
        raise InvalidConfig(
            f"{url} cannot be streamed: {reason}.", hint="Give a path, or an address with http:// or https://."
        )
