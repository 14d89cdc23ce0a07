"""Reads and hashes a file while the client still downloads it, so that it need not be read again afterwards.

The client writes a download to a new file, `blobs/*.incomplete` in its cache, and renames that at the end. A thread
reads the file as it grows. The result counts only if its hash is the announced one. In every other case, such as no new
file, several, or a download by Xet, the caller reads the file from the cache as usual.
"""

import contextlib
import hashlib
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Self

from eca_hub.hub.hashes import PIECE_BYTES, allocate

MIN_BYTES = 16 << 20
"""Smaller files are read afterwards: 16 MiB take 15 ms to read and hash."""


class DownloadReader:
    """Follows one download.

    Args:
        blobs: The folder in which the client's cache keeps the files of the repository.
    """

    def __init__(self, blobs: Path) -> None:
        self._blobs = blobs
        self._earlier = self._incomplete_files()
        self._content = memoryview(b"")
        self._num_received = 0
        self._arrivals: SimpleQueue[bool] = SimpleQueue()  # False at the end
        self._thread: Thread | None = None
        self._result: tuple[memoryview, str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._arrivals.put(False)
            self._thread.join()

    @property
    def result(self) -> tuple[memoryview, str] | None:
        """The bytes and their SHA-256, once the block has ended; None if they were not followed to the end."""
        return self._result

    def start(self, num_bytes: int) -> None:
        """Follow a response body of so many bytes, if it is the first large one."""
        if num_bytes >= MIN_BYTES and self._thread is None:
            # RuntimeError: the system has no thread left.
            with contextlib.suppress(MemoryError, RuntimeError):
                self._content = allocate(num_bytes)
                thread = Thread(target=self._follow, name="download reader", daemon=True)
                thread.start()
                self._thread = thread

    def advance(self, num_bytes: int) -> None:
        """Note that so many bytes more have arrived."""
        before = self._num_received // PIECE_BYTES
        self._num_received += num_bytes
        if self._num_received // PIECE_BYTES > before:
            self._arrivals.put(True)

    def _follow(self) -> None:
        if not self._arrivals.get():
            return
        # The client creates the file before it sends the request, so it is there when bytes arrive.
        new = self._incomplete_files() - self._earlier
        if len(new) != 1:
            return
        digest = hashlib.sha256()
        num_read = 0
        # What fails here, such as a file that was deleted, is reported when the caller reads the file.
        with contextlib.suppress(OSError), new.pop().open("rb", buffering=0) as file:
            is_arriving = True
            while is_arriving:
                is_arriving = self._arrivals.get()
                while num_bytes := file.readinto(self._content[num_read : num_read + PIECE_BYTES]):
                    digest.update(self._content[num_read : num_read + num_bytes])
                    num_read += num_bytes
            if num_read == len(self._content):
                self._result = self._content, digest.hexdigest()

    def _incomplete_files(self) -> set[Path]:
        try:
            return set(self._blobs.glob("*.incomplete"))
        except OSError:
            # The client reports a cache that cannot be read.
            return set()
