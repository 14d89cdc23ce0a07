"""Xet uploads: xorbs hold the chunks that a client sends, shards list which chunks make up which file.

Uploads only: downloads are plain files. The hash that names a xorb is not checked, since the SHA-256 of every file
rebuilt from it is. Once blobs hold all chunks of a xorb, the xorb is replaced by a list of where they are: later files
of the client may refer to chunks that it has sent before.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Self

from eca_hub.localhub.blobs import FOLDER_MODE, Blobs, create_file
from eca_hub.localhub.errors import HubHTTPError, bad_request
from eca_hub.localhub.validation import check_sha256
from eca_hub.localhub.xet_format import ShardFile, read_chunks

CHUNKS_AT_A_TIME = 64

ChunkLocations = dict[str, dict[int, tuple[str, int, int]]]
"""By xorb and index of the chunk: blob that holds the chunk, offset in the blob, and size."""


class Xorbs:
    """The xorbs that clients have sent, separate for each user, so that one cannot inject bytes into another's upload.

    Args:
        folder: Holds the xorbs.
        temporary_folder: Holds unfinished files; on the same file system.
    """

    def __init__(self, folder: Path, temporary_folder: Path) -> None:
        self.folder = folder
        self.temporary_folder = temporary_folder

    def path(self, writer: str, xorb: str) -> Path:
        """Return where a xorb is, or would be."""
        return self.folder / writer / check_sha256(xorb)[:2] / xorb

    def commit_file(self, temporary: Path, writer: str, xorb: str) -> None:
        """Move a written file to its place if it is a xorb; it replaces an older one.

        Not synced: if a power cut damages a xorb, the file rebuilt from it fails its SHA-256 and the client sends all
        again.
        """
        with temporary.open("rb") as file:
            read_chunks(file)
        path = self.path(writer, xorb)
        # Not `parents=True`, which gives the folders above the default permissions.
        for folder in (path.parent.parent, path.parent):
            folder.mkdir(FOLDER_MODE, exist_ok=True)
        temporary.replace(path)

    def rebuild(self, shard_file: ShardFile, writer: str, blobs: Blobs, locations: ChunkLocations) -> None:
        """Rebuild a file from its chunks and store it as a blob.

        A blob that exists is rebuilt and compared without being written: only a user who has sent its bytes may use it.

        Args:
            shard_file: The file.
            writer: User whose xorbs it consists of.
            blobs: Gets the file.
            locations: Gets the location of each chunk in the blob.

        Raises:
            HubHTTPError: the chunks are not here, or do not make up the file.
            OSError: the disk has no room for it.
        """
        exists = blobs.size_bytes(shard_file.sha256) is not None
        if not exists and shard_file.size_bytes > shutil.disk_usage(self.folder).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))
        with _Comparison(shard_file.sha256) if exists else blobs.writer(shard_file.sha256) as blob:
            offset = 0
            for term in shard_file.terms:
                with contextlib.closing(self._open(term.xorb, writer, blobs)) as xorb:
                    sizes = xorb.sizes[term.first_chunk : term.end_chunk]
                    if len(sizes) != term.end_chunk - term.first_chunk or sum(sizes) != term.num_bytes:
                        raise bad_request(f"A file needs chunks that the xorb {term.xorb} does not have.")
                    for piece in _one_ahead(xorb.read(term.first_chunk, term.end_chunk), blobs.threads):
                        blob.write(piece)
                for chunk, size in enumerate(sizes, term.first_chunk):
                    locations.setdefault(term.xorb, {})[chunk] = (shard_file.sha256, offset, size)
                    offset += size
            blob.finish()

    def compact(self, writer: str, locations: ChunkLocations) -> None:
        """Replace xorbs by the locations of their chunks in blobs, so that the disk holds every byte once.

        A xorb with chunks that are in no blob stays. Like xorbs, the lists are not synced.
        """
        for xorb, chunks in locations.items():
            path = self.path(writer, xorb)
            try:
                with path.open("rb") as file:
                    num_chunks = len(read_chunks(file))
            except FileNotFoundError:
                continue
            if len(chunks) == num_chunks:
                listing = self.temporary_folder / secrets.token_hex(12)
                with create_file(listing) as file:
                    file.write(json.dumps([chunks[chunk] for chunk in range(num_chunks)]).encode())
                listing.replace(path.with_suffix(".json"))
                path.unlink(missing_ok=True)

    def _open(self, xorb: str, writer: str, blobs: Blobs) -> "_PackedXorb | _CompactedXorb":
        path = self.path(writer, xorb)
        with contextlib.suppress(FileNotFoundError):
            return _PackedXorb(path)
        try:
            return _CompactedXorb(json.loads(path.with_suffix(".json").read_bytes()), blobs)
        except FileNotFoundError:
            raise _missing(xorb) from None
        except ValueError:
            raise bad_request(f"The chunk list of the xorb {xorb} is damaged: send it again.") from None


class _PackedXorb:
    """A xorb as the client sent it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        with contextlib.ExitStack() as on_error:
            on_error.callback(self._file.close)
            self._chunks = read_chunks(self._file)
            on_error.pop_all()
        self.sizes = [chunk.raw_bytes for chunk in self._chunks]

    def read(self, first: int, end: int) -> Iterator[bytes]:
        """Unpack chunks, many at a time: hashing and writing small pieces takes longer than unpacking them."""
        for start in range(first, end, CHUNKS_AT_A_TIME):
            some = self._chunks[start : min(start + CHUNKS_AT_A_TIME, end)]
            origin = some[0].offset
            self._file.seek(origin)
            packed = memoryview(self._file.read(some[-1].offset + some[-1].packed_bytes - origin))
            yield b"".join([chunk.unpack(packed[chunk.offset - origin :][: chunk.packed_bytes]) for chunk in some])

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _CompactedXorb:
    """A xorb whose chunks are in blobs. Chunks are not verified: the SHA-256 of the rebuilt file is."""

    def __init__(self, locations: list[tuple[str, int, int]], blobs: Blobs) -> None:
        self._locations = locations
        self._blobs = blobs
        self.sizes = [size for _, _, size in locations]

    def read(self, first: int, end: int) -> Iterator[bytes]:
        """Read chunks out of the blobs."""
        for sha256, offset, size in self._locations[first:end]:
            try:
                with self._blobs.path(sha256).open("rb") as file:
                    file.seek(offset)
                    yield file.read(size)
            except FileNotFoundError:
                raise _missing(sha256) from None

    def close(self) -> None:
        """Nothing to close."""


class _Comparison:
    """Replaces a BlobWriter where the blob exists: compares the hash."""

    def __init__(self, sha256: str) -> None:
        self._expected = sha256
        self._hash = hashlib.sha256()

    def write(self, piece: bytes) -> None:
        """Hash bytes."""
        self._hash.update(piece)

    def finish(self) -> str:
        """Compare the hash."""
        if self._hash.hexdigest() != self._expected:
            raise bad_request(f"The chunks do not make up the file {self._expected}.")
        return self._expected

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def _one_ahead(pieces: Iterator[bytes], threads: Executor) -> Iterator[bytes]:
    """Produce the next piece in a thread while the current one is used."""
    coming = threads.submit(next, pieces, None)
    while (piece := coming.result()) is not None:
        coming = threads.submit(next, pieces, None)
        yield piece


def _missing(what: str) -> HubHTTPError:
    return HubHTTPError(400, "xorb_missing", f"Upload the xorb {what} before a file that needs it.")
