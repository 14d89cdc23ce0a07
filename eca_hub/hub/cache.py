"""The client's cache on this machine: which of its files still are what a hub announced.

A disk loses bits and a crash leaves halves; the client itself never looks at a file again once it has it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from eca_hub.hub.client import check_model_id
from eca_hub.hub.hashes import has_hash


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
