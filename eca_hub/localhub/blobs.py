"""The bytes of all files, each under its sha256.

Knows nothing about repositories: a blob that no commit names is garbage, which `gc` removes. A blob is hashed while it
is written and again before it is read, so that what goes out is what came in.
"""

import contextlib
import hashlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Self

from eca_hub.localhub.disk import make_folder, replace_durably
from eca_hub.localhub.errors import blob_corrupt, invalid
from eca_hub.localhub.faults import faultpoint

READ_BYTES = 1 << 20
TRUST_S = 600.0
"""How long a blob that was found whole and has not been touched since is served without being checked again."""

NUM_THREADS = 4
"""Threads that hash and unpack beside those that write; both let others run meanwhile."""

_Signature = tuple[int, int, int, int]


class BlobWriter:
    """Takes the bytes of one blob, piece by piece; they become visible only by `finish`.

    Use it as a context manager: leaving without `finish` removes what was written.
    """

    def __init__(self, blobs: "Blobs", expected_sha256: str | None) -> None:
        faultpoint("blob.before_write")
        self._blobs = blobs
        self._expected_sha256 = expected_sha256
        self._hash = hashlib.sha256()
        self._temporary = blobs.new_temporary()
        self._file = self._temporary.open("xb", buffering=0)
        self.size_bytes = 0

    def write(self, piece: bytes | bytearray | memoryview) -> None:
        """Append bytes; they are hashed while they are written."""
        view = memoryview(piece)
        hashed = self._blobs.threads.submit(self._hash.update, view)
        try:
            self.size_bytes += len(view)
            while view:
                view = view[self._file.write(view) :]
        finally:
            hashed.result()
        faultpoint("blob.half_written")

    def finish(self) -> str:
        """Check the hash, make the blob durable and visible, and return its sha256."""
        sha256 = self._hash.hexdigest()
        if self._expected_sha256 not in (None, sha256):
            raise invalid(f"The bytes have the sha256 {sha256}, not {self._expected_sha256}.")
        os.fsync(self._file.fileno())
        self._file.close()
        faultpoint("blob.before_rename")
        self._blobs.adopt(self._temporary, sha256)
        faultpoint("blob.after_rename")
        return sha256

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)


class Blobs:
    """All blobs of a hub.

    Args:
        folder: Where they lie, as `ab/ab12...`.
        temporary_folder: Where they are written first; on the same file system.
        clock: Seconds that never go back; a test passes its own.
    """

    def __init__(self, folder: Path, temporary_folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._temporary_folder = temporary_folder
        self._clock = clock
        self.threads = ThreadPoolExecutor(NUM_THREADS, "blobs")
        self._lock = threading.Lock()
        self._found_whole: dict[str, tuple[_Signature, float]] = {}
        self._found_damaged: dict[str, _Signature] = {}

    def path(self, sha256: str) -> Path:
        """Say where a blob lies, or would lie."""
        return self._folder / sha256[:2] / sha256

    def new_temporary(self) -> Path:
        """Name a file that does not exist yet, beside the blobs."""
        make_folder(self._temporary_folder)
        return self._temporary_folder / secrets.token_hex(12)

    def size_bytes(self, sha256: str) -> int | None:
        """Size of a blob, or None where there is none or a damaged one, so that its bytes are welcome again."""
        signature = self._signature(sha256)
        if signature is None or self._found_damaged.get(sha256) == signature:
            return None
        return signature[1]

    def writer(self, expected_sha256: str | None = None) -> BlobWriter:
        """Begin a new blob."""
        return BlobWriter(self, expected_sha256)

    def put(self, content: bytes) -> str:
        """Store bytes that are in memory already and return their sha256."""
        sha256 = hashlib.sha256(content).hexdigest()
        if self.size_bytes(sha256) == len(content):
            return sha256
        with self.writer(sha256) as writer:
            writer.write(content)
            return writer.finish()

    def adopt(self, temporary: Path, sha256: str) -> None:
        """Give a fully written, synced and hashed file its place."""
        replace_durably(temporary, self.path(sha256))
        signature = self._signature(sha256)
        if signature is not None:
            with self._lock:
                self._found_whole[sha256] = (signature, self._clock() + TRUST_S)

    def open_checked(self, sha256: str) -> BufferedReader:
        """Open a blob for reading after its bytes have been found to be the right ones.

        Raises:
            HubRefusal: The blob is damaged or gone.
        """
        signature = self._signature(sha256)
        if signature is None or self._found_damaged.get(sha256) == signature:
            raise blob_corrupt(sha256)
        file = self.path(sha256).open("rb")
        try:
            with self._lock:
                seen, until = self._found_whole.get(sha256, (None, 0.0))
            if seen != signature or self._clock() > until:
                self._check(file, sha256, signature)
        except BaseException:
            file.close()
            raise
        return file

    def read(self, sha256: str, limit_bytes: int) -> bytes:
        """Read a small blob whole, or its first `limit_bytes`."""
        with self.open_checked(sha256) as file:
            return file.read(limit_bytes)

    def is_whole(self, sha256: str) -> bool:
        """Read a blob now, whatever was found before, and say whether its bytes are the right ones."""
        try:
            with self.path(sha256).open("rb") as file:
                return sha256_of(file) == sha256
        except OSError:
            return False

    def walk(self) -> Iterator[Path]:
        """Go through the files of all blobs."""
        with contextlib.suppress(FileNotFoundError):
            for folder in sorted(self._folder.iterdir()):
                yield from sorted(folder.iterdir())

    def _check(self, file: BufferedReader, sha256: str, signature: _Signature) -> None:
        is_whole = sha256_of(file) == sha256
        file.seek(0)
        with self._lock:
            if is_whole:
                self._found_whole[sha256] = (signature, self._clock() + TRUST_S)
            else:
                self._found_whole.pop(sha256, None)
                self._found_damaged[sha256] = signature
        if not is_whole:
            raise blob_corrupt(sha256)

    def _signature(self, sha256: str) -> _Signature | None:
        """What changes whenever somebody touches the file; the change time among it cannot be set back."""
        path = self.path(sha256)
        try:
            status = path.lstat()
        except FileNotFoundError:
            return None
        is_ours = path.is_file() and not path.is_symlink()
        return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns) if is_ours else None


def sha256_of(file: BufferedReader) -> str:
    """Hash a file from where it stands to its end."""
    return hashlib.file_digest(file, "sha256").hexdigest()
