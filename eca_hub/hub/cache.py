"""The client's cache on this machine: which of its files still are what a hub announced.

A disk loses bits and a crash leaves halves; the client itself never looks at a file again once it has it.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from eca_hub.hub.client import check_model_id


@dataclass(frozen=True)
class CachedFile:
    """One stored file, and whether its bytes have the hash that is its name."""

    model_id: str
    path: Path
    num_bytes: int
    is_whole: bool


def check_cache(model_id: str | None = None) -> Iterator[CachedFile]:
    """Read and hash every stored file, of one model or of all.

    Args:
        model_id: Hub `owner/name`; every model in the cache when none is given.

    Raises:
        InvalidConfig: the name cannot be one.
    """
    if model_id is not None:
        check_model_id(model_id)
    wanted = "*" if model_id is None else model_id.replace("/", "--")
    for blobs in sorted(Path(constants.HF_HUB_CACHE).glob(f"models--{wanted}/blobs")):
        name = blobs.parent.name.removeprefix("models--").replace("--", "/", 1)
        for blob in sorted(blobs.iterdir()):
            # What is still being fetched ends in .incomplete.
            if blob.is_file() and not blob.suffix:
                yield CachedFile(name, blob, blob.stat().st_size, has_hash(blob, blob.name))


def has_hash(path: Path, announced: str) -> bool:
    """Whether a file has the hash that a hub announces for it; it is read piece by piece, however large.

    Args:
        path: The file.
        announced: A sha256, or for small text what git calls the file; its length tells the kind. Empty if the hub has
            no such file, which then need not be read.
    """
    if not announced:
        return False
    with path.open("rb") as file:
        if len(announced) == 64:
            return hashlib.file_digest(file, "sha256").hexdigest() == announced
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest() == announced
