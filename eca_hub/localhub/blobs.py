"""Content of all files, each stored under its SHA-256.

A blob that no commit refers to is garbage, which `gc` removes. A blob is hashed while it is written and again before it
is read, so that damaged bytes are never sent.
"""

import contextlib
import hashlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from eca_hub.atomic import make_folder, rename_synced, sha256_of
from eca_hub.localhub.errors import HubHTTPError, blob_corrupt, invalid

READ_BYTES = 1 << 20
TRUST_S = 600.0
"""How long a blob that was verified and has not changed since is served without being hashed again."""

NUM_THREADS = 4
"""Threads that hash and unpack beside those that write; hashlib and lz4 release the interpreter lock."""

FILE_MODE, FOLDER_MODE = 0o600, 0o700
"""Permissions of everything the hub stores: private repositories share blobs with public ones."""

WRITEBACK_BYTES = 64 << 20
"""A large blob is written to the disk in steps while more of it arrives: otherwise all of it would wait for the last
fsync, and fill the page cache meanwhile."""
MAX_DIRTY_BYTES = 4 * WRITEBACK_BYTES
"""A client that is faster than the disk is slowed down while it sends; otherwise it would wait after its last byte,
longer than its timeout allows."""

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
# macOS and Windows have no fdatasync.
_fdatasync = getattr(os, "fdatasync", os.fsync)

FileState = tuple[int, int, int, int]
Bytes = bytes | bytearray | memoryview


def create_file(path: Path) -> BinaryIO:
    """Create a file that no other user of the machine can read."""
    return os.fdopen(os.open(path, _NEW_FILE, FILE_MODE), "wb")


class BlobWriter:
    """Writes one blob piece by piece; it becomes visible by `finish` only.

    Use it as a context manager, or `close` it: without `finish` this removes what was written.
    """

    def __init__(self, blobs: "Blobs", expected_sha256: str | None) -> None:
        self._blobs = blobs
        self._expected_sha256 = expected_sha256
        self._hash = hashlib.sha256()
        self._temporary = blobs.new_temporary()
        self._descriptor = os.open(self._temporary, _NEW_FILE, FILE_MODE)
        self.size_bytes = 0
        self._num_dirty_bytes = 0
        self._writeback: Future[None] | None = None

    def write(self, piece: Bytes) -> None:
        """Append bytes."""
        self.writelines([piece])

    def writelines(self, pieces: Sequence[Bytes]) -> None:
        """Append bytes; they are hashed in another thread while they are written."""
        hashing = self._blobs.threads.submit(self._hash_each, pieces)
        try:
            num_bytes = sum(len(piece) for piece in pieces)
            self.size_bytes += num_bytes
            for piece in pieces:
                remaining = memoryview(piece)
                while remaining:
                    remaining = remaining[os.write(self._descriptor, remaining) :]
            self._start_writeback(num_bytes)
        finally:
            hashing.result()

    def _hash_each(self, pieces: Sequence[Bytes]) -> None:
        for piece in pieces:
            self._hash.update(piece)

    def _start_writeback(self, num_bytes: int) -> None:
        self._num_dirty_bytes += num_bytes
        if self._num_dirty_bytes < WRITEBACK_BYTES:
            return
        is_idle = self._writeback is None or self._writeback.done()
        if is_idle or self._num_dirty_bytes >= MAX_DIRTY_BYTES:
            self._wait_for_writeback()
            self._writeback = self._blobs.writeback_threads.submit(_fdatasync, self._descriptor)
            self._num_dirty_bytes = 0

    def _wait_for_writeback(self) -> None:
        if self._writeback is not None:
            self._writeback.result()
            self._writeback = None

    def finish(self) -> str:
        """Check the hash, make the blob durable and visible, and return its SHA-256."""
        self._wait_for_writeback()
        sha256 = self._hash.hexdigest()
        if self._expected_sha256 not in (None, sha256):
            raise invalid(f"The bytes have the sha256 {sha256}, not {self._expected_sha256}.")
        os.fsync(self._descriptor)
        self._blobs.commit_file(self._temporary, sha256)
        return sha256

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, and remove it unless it is finished; it may have to wait for the disk."""
        if self._writeback is not None:
            # Its descriptor must not be closed, and perhaps reused, under it. An error is that of `write` or `finish`.
            self._writeback.exception()
        os.close(self._descriptor)
        self._temporary.unlink(missing_ok=True)


class Blobs:
    """All blobs of a hub.

    Args:
        folder: Holds the blobs as `ab/ab12...`.
        temporary_folder: Holds unfinished blobs; on the same file system.
        clock: Monotonic time in seconds; replaced by tests.
    """

    def __init__(self, folder: Path, temporary_folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._temporary_folder = temporary_folder
        self._clock = clock
        self.threads = ThreadPoolExecutor(NUM_THREADS, "blobs")
        self.writeback_threads = ThreadPoolExecutor(NUM_THREADS, "writeback")
        self._lock = threading.Lock()
        self._verified: dict[str, tuple[FileState, float]] = {}
        self._damaged: dict[str, FileState] = {}

    def path(self, sha256: str) -> Path:
        """Return where a blob is, or would be."""
        return self._folder / sha256[:2] / sha256

    def new_temporary(self) -> Path:
        """Return a new name in the temporary folder."""
        make_folder(self._temporary_folder, mode=FOLDER_MODE)
        return self._temporary_folder / secrets.token_hex(12)

    def size_bytes(self, sha256: str) -> int | None:
        """Size of a blob, or None if it is missing or damaged and has to be uploaded again.

        A blob that was not verified lately is hashed first: damage that no reader has met must be repaired, too.
        """
        try:
            with self.open_verified(sha256) as file:
                return os.fstat(file.fileno()).st_size
        except HubHTTPError:
            return None

    def writer(self, expected_sha256: str | None = None) -> BlobWriter:
        """Start a new blob."""
        return BlobWriter(self, expected_sha256)

    def put(self, content: bytes) -> str:
        """Store bytes that are in memory and return their SHA-256."""
        sha256 = hashlib.sha256(content).hexdigest()
        if self.size_bytes(sha256) == len(content):
            return sha256
        with self.writer(sha256) as writer:
            writer.write(content)
            return writer.finish()

    def commit_file(self, temporary: Path, sha256: str) -> None:
        """Move a complete, synced and hashed file to its place."""
        path = self.path(sha256)
        make_folder(path.parent, mode=FOLDER_MODE)
        rename_synced(temporary, path)
        state = self.file_state(sha256)
        if state is not None:
            with self._lock:
                self._verified[sha256] = (state, self._clock() + TRUST_S)

    def open_verified(self, sha256: str) -> BufferedReader:
        """Open a blob for reading after its hash has been checked.

        Raises:
            HubHTTPError: 500, the blob is damaged or missing.
        """
        state = self.file_state(sha256)
        if state is None or self._damaged.get(sha256) == state:
            raise blob_corrupt(sha256)
        file = self.path(sha256).open("rb")
        try:
            with self._lock:
                verified, until = self._verified.get(sha256, (None, 0.0))
            if verified != state or self._clock() > until:
                self._verify(file, sha256, state)
        except BaseException:
            file.close()
            raise
        return file

    def read(self, sha256: str, limit_bytes: int) -> bytes:
        """Read the first `limit_bytes` of a blob.

        Raises:
            HubHTTPError: 500, the blob is damaged or missing.
        """
        with self.open_verified(sha256) as file:
            try:
                return file.read(limit_bytes)
            except OSError:
                with self._lock:
                    self._verified.pop(sha256, None)
                raise blob_corrupt(sha256) from None

    def is_intact(self, sha256: str) -> bool:
        """Hash a blob now, whatever was verified before."""
        try:
            return sha256_of(self.path(sha256)) == sha256
        except OSError:
            return False

    def walk(self) -> Iterator[Path]:
        """Yield the files of all blobs, and what other programs have left among them in a folder of blobs."""
        with contextlib.suppress(FileNotFoundError):
            for folder in sorted(self._folder.iterdir()):
                if folder.is_dir():
                    yield from sorted(folder.iterdir())

    def _verify(self, file: BufferedReader, sha256: str, state: FileState) -> None:
        try:
            is_intact = hashlib.file_digest(file, "sha256").hexdigest() == sha256
            file.seek(0)
        except OSError:
            # The disk cannot read it. Not remembered: it may be able to later.
            raise blob_corrupt(sha256) from None
        with self._lock:
            if is_intact:
                self._verified[sha256] = (state, self._clock() + TRUST_S)
            else:
                self._verified.pop(sha256, None)
                self._damaged[sha256] = state
        if not is_intact:
            raise blob_corrupt(sha256)

    def file_state(self, sha256: str) -> FileState | None:
        """Inode, size and times of a blob, which change with the file; a program cannot set the change time."""
        path = self.path(sha256)
        try:
            status = path.lstat()
        except FileNotFoundError:
            return None
        is_regular = path.is_file() and not path.is_symlink()
        return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns) if is_regular else None
