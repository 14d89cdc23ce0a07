"""A file against the hash that a hub announces for it: sha256 for weights, and for small text what git calls it.

The length of the announced hash tells which of the two it is.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

PIECE_BYTES = 4 << 20
_LINE_BYTES = 64


def digest_for(announced: str, num_bytes: int) -> "hashlib._Hash":
    """Begin to hash a file as the hub does.

    Args:
        announced: The hash to compare with in the end.
        num_bytes: Size of the file, which git hashes along with it.
    """
    if len(announced) == 64:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % num_bytes, usedforsecurity=False)


def git_or_lfs_hash(content: bytes, announced: str) -> str:
    """Hash a whole file that is in memory."""
    digest = digest_for(announced, len(content))
    digest.update(content)
    return digest.hexdigest()


def read_hashed(path: Path, digest: "hashlib._Hash") -> memoryview:
    """Read a file into memory once, and hash exactly what was read: each piece while the next one is read.

    Args:
        path: The file.
        digest: Gets the bytes.

    Raises:
        OSError: the file cannot be read.
    """
    # Memory of numpy's is not filled with zeros first, and comes in large pages. The file begins where a cache line
    # does, as what lies where decides how numbers are added up: a network's last bits must not change from run to run.
    room = np.empty(path.stat().st_size + _LINE_BYTES - 1, np.uint8)
    first = -room.ctypes.data % _LINE_BYTES
    content = room[first : first + len(room) - _LINE_BYTES + 1].data
    num_read = 0
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as hashing:
        while num_bytes := file.readinto(content[num_read : num_read + PIECE_BYTES]):
            hashing.submit(digest.update, content[num_read : num_read + num_bytes])
            num_read += num_bytes
    # Shorter if it was cut while it was read.
    return content[:num_read]


def has_hash(path: Path, announced: str) -> bool:
    """Whether a file has the hash that a hub announces for it; it is read piece by piece, however large.

    Args:
        path: The file.
        announced: Empty if the hub has no such file, which then need not be read.
    """
    if not announced:
        return False
    digest = digest_for(announced, path.stat().st_size)
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest() == announced
