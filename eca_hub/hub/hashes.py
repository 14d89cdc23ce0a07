"""The two hashes that a hub announces for a file: SHA-256 for LFS files, the git blob id for small text files.

The length of the announced hash distinguishes them: 64 or 40 hexadecimal digits.
"""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
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


def allocate(num_bytes: int) -> memoryview:
    """Return memory for the content of a file.

    Raises:
        MemoryError: there is not enough.
    """
    # numpy does not fill its memory with zeros, and takes it in large pages. The content starts at a cache line: its
    # alignment decides the order in which vector code adds, and the last bits of outputs must not change between runs.
    buffer = np.empty(num_bytes + _LINE_BYTES - 1, np.uint8)
    first = -buffer.ctypes.data % _LINE_BYTES
    return buffer[first : first + num_bytes].data


def read_and_hash(path: Path, digest: "hashlib._Hash") -> memoryview:
    """Read a file into memory once, and hash exactly these bytes: each piece while the next one is read.

    Args:
        path: The file.
        digest: Receives the bytes.

    Raises:
        OSError: the file cannot be read.
    """
    content = allocate(path.stat().st_size)
    num_read = 0
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as hashing:
        while num_bytes := file.readinto(content[num_read : num_read + PIECE_BYTES]):
            hashing.submit(digest.update, content[num_read : num_read + num_bytes])
            num_read += num_bytes
    # Shorter if the file was truncated meanwhile.
    return content[:num_read]


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
