"""The two hashes that a hub announces for a file: SHA-256 for LFS files, the git blob id for small text files.

The length of the announced hash distinguishes the two: 64 or 40 hexadecimal digits. Large files are hashed in a thread,
while they are read or downloaded.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

PIECE_BYTES = 4 << 20
_LINE_BYTES = 64


def new_hasher(announced: str, num_bytes: int) -> "hashlib._Hash":
    """Return the hash object that gives a hash of the announced kind.

    Args:
        announced: The hash to compare with.
        num_bytes: Size of the file, which is part of a git blob id.
    """
    if len(announced) == 64:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % num_bytes, usedforsecurity=False)


def hash_like_hub(content: bytes, announced: str) -> str:
    """Hash the content of a file that is in memory."""
    digest = new_hasher(announced, len(content))
    digest.update(content)
    return digest.hexdigest()


def read_and_hash(path: Path, digest: "hashlib._Hash") -> memoryview:
    """Read a file into memory once, and hash exactly these bytes: each piece while the next one is read.

    Args:
        path: The file.
        digest: Receives the bytes.

    Raises:
        OSError: the file cannot be read.
    """
    content = _allocate(path.stat().st_size)
    num_read = 0
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as hashing:
        while num_bytes := file.readinto(content[num_read : num_read + PIECE_BYTES]):
            hashing.submit(digest.update, content[num_read : num_read + num_bytes])
            num_read += num_bytes
    # Shorter if the file was truncated meanwhile.
    return content[:num_read]


class ReceivedFile:
    """Collects a file in memory and computes its SHA-256 while it is downloaded, so that it need not be read again.

    A download that was resumed or came from the cache is not collected; the caller then reads the file.
    """

    def __init__(self) -> None:
        self._content = memoryview(b"")
        self._num_received = 0
        self._num_hashed = 0
        self._digest = hashlib.sha256()
        self._hashing: ThreadPoolExecutor | None = None

    def begin(self, num_bytes: int) -> bool:
        """Start a file of `num_bytes`. Return False if it does not fit into memory; then `add` must not be called."""
        self._stop()
        self._digest, self._num_received, self._num_hashed = hashlib.sha256(), 0, 0
        try:
            self._content = _allocate(num_bytes)
        except MemoryError:
            self._content = memoryview(b"")
            return False
        self._hashing = ThreadPoolExecutor(1)
        return True

    def add(self, piece: bytes) -> None:
        """Append bytes; those beyond the announced size are dropped."""
        assert self._hashing is not None
        end = min(self._num_received + len(piece), len(self._content))
        self._content[self._num_received : end] = piece[: end - self._num_received]
        self._num_received = end
        # Submitting a small piece to the thread costs as much as hashing it.
        if end - self._num_hashed >= PIECE_BYTES or end == len(self._content):
            self._hashing.submit(self._digest.update, self._content[self._num_hashed : end])
            self._num_hashed = end

    def finish(self) -> tuple[memoryview, str] | None:
        """Return the bytes and their SHA-256; None if not all have arrived."""
        self._stop()
        is_complete = bool(self._content) and self._num_hashed == len(self._content)
        return (self._content, self._digest.hexdigest()) if is_complete else None

    def _stop(self) -> None:
        if self._hashing is not None:
            self._hashing.shutdown()
            self._hashing = None


def _allocate(num_bytes: int) -> memoryview:
    # numpy does not fill its memory with zeros, and takes it in large pages. The content starts at a cache line: its
    # alignment decides the order in which vector code adds, and the last bits of outputs must not change between runs.
    buffer = np.empty(num_bytes + _LINE_BYTES - 1, np.uint8)
    first = -buffer.ctypes.data % _LINE_BYTES
    return buffer[first : first + num_bytes].data


def file_has_hash(path: Path, announced: str) -> bool:
    """Return whether a file has the hash that a hub announces for it; the file is read in pieces.

    Args:
        path: The file.
        announced: Empty if the hub has no such file; then nothing is read.
    """
    if not announced:
        return False
    digest = new_hasher(announced, path.stat().st_size)
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest() == announced
