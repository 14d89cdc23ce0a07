"""Xet uploads: the chunks that a client sends ("xorbs"), and the lists ("shards") of which chunks make which file.

Knows nothing about HTTP or repositories. Only writing: downloads are plain files, so nothing here is ever read by a
client. The hash that names a xorb is not checked, since the sha256 of every file that is put together from it is. Once
files hold all chunks of a xorb, the xorb gives way to a note of where they lie: the client may refer to chunks that it
sent before, also in files that it sends later.
"""

import contextlib
import hashlib
import json
import secrets
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Self

from eca_hub.localhub.blobs import Blobs
from eca_hub.localhub.disk import make_folder
from eca_hub.localhub.errors import HubRefusal, bad_request
from eca_hub.localhub.faults import faultpoint
from eca_hub.localhub.validation import check_sha256
from eca_hub.localhub.xetformat import ShardFile, read_chunks

CHUNKS_AT_A_TIME = 64

Places = dict[str, dict[int, tuple[str, int, int]]]
"""By xorb and number of the chunk: which blob holds the chunk, from which byte on, and its size."""


class Xorbs:
    """The xorbs that clients have sent, apart for each writer, so that nobody can foist bytes on another's upload.

    Args:
        folder: Where they lie.
        temporary_folder: Where they are written first; on the same file system.
    """

    def __init__(self, folder: Path, temporary_folder: Path) -> None:
        self.folder = folder
        self.temporary_folder = temporary_folder

    def path(self, writer: str, xorb: str) -> Path:
        """Say where a xorb lies, or would lie."""
        return self.folder / writer / check_sha256(xorb)[:2] / xorb

    def adopt(self, temporary: Path, writer: str, xorb: str) -> None:
        """Give a written file its place, if it can be read as a xorb; a newer one replaces an older one.

        Nothing is synced: a xorb that a power cut damages makes an upload fail its sha256, after which the client sends
        all again.
        """
        with temporary.open("rb") as file:
            read_chunks(file)
        faultpoint("xorb.before_rename")
        path = self.path(writer, xorb)
        make_folder(path.parent)
        temporary.replace(path)

    def rebuild(self, shard_file: ShardFile, writer: str, blobs: Blobs, places: Places) -> None:
        """Put a file together from its chunks and store it as a blob.

        A file that is there already is put together all the same, without being written: only who has sent its bytes
        may say that they are theirs.

        Args:
            shard_file: What to put together.
            writer: Whose xorbs it consists of.
            blobs: Where it goes.
            places: Gets where each chunk lies from now on.
        """
        faultpoint("shard.before_rebuild")
        is_there = blobs.size_bytes(shard_file.sha256) is not None
        with _Comparison(shard_file.sha256) if is_there else blobs.writer(shard_file.sha256) as blob:
            offset = 0
            for term in shard_file.terms:
                with contextlib.closing(self._open(term.xorb, writer, blobs)) as xorb:
                    sizes = xorb.sizes[term.first_chunk : term.end_chunk]
                    if len(sizes) != term.end_chunk - term.first_chunk or sum(sizes) != term.num_bytes:
                        raise bad_request(f"A file needs chunks that the xorb {term.xorb} does not have.")
                    for piece in _one_ahead(xorb.read(term.first_chunk, term.end_chunk), blobs.threads):
                        blob.write(piece)
                for chunk, size in enumerate(sizes, term.first_chunk):
                    places.setdefault(term.xorb, {})[chunk] = (shard_file.sha256, offset, size)
                    offset += size
            blob.finish()
        faultpoint("shard.after_rebuild")

    def settle(self, writer: str, places: Places) -> None:
        """Replace xorbs by a note of where their chunks lie in blobs, so that the disk holds every byte once.

        A xorb of which some chunks lie in no blob stays. Like xorbs, notes are not synced.
        """
        for xorb, chunks in places.items():
            path = self.path(writer, xorb)
            try:
                with path.open("rb") as file:
                    num_chunks = len(read_chunks(file))
            except FileNotFoundError:
                continue
            if len(chunks) == num_chunks:
                note = self.temporary_folder / secrets.token_hex(12)
                note.write_text(json.dumps([chunks[chunk] for chunk in range(num_chunks)]))
                note.replace(path.with_suffix(".json"))
                path.unlink(missing_ok=True)

    def _open(self, xorb: str, writer: str, blobs: Blobs) -> "_PackedXorb | _SettledXorb":
        path = self.path(writer, xorb)
        with contextlib.suppress(FileNotFoundError):
            return _PackedXorb(path)
        try:
            return _SettledXorb(json.loads(path.with_suffix(".json").read_bytes()), blobs)
        except FileNotFoundError:
            raise _missing(xorb) from None
        except ValueError:
            raise bad_request(f"What the hub noted of the xorb {xorb} is damaged: send it again.") from None


class _PackedXorb:
    """A xorb as it was sent."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        with contextlib.ExitStack() as on_error:
            on_error.callback(self._file.close)
            self._chunks = read_chunks(self._file)
            on_error.pop_all()
        self.sizes = [chunk.raw_bytes for chunk in self._chunks]

    def read(self, first: int, end: int) -> Iterator[bytes]:
        """Unpack chunks, many at a time: hashing and writing small pieces costs more than unpacking them."""
        for start in range(first, end, CHUNKS_AT_A_TIME):
            some = self._chunks[start : min(start + CHUNKS_AT_A_TIME, end)]
            origin = some[0].offset
            self._file.seek(origin)
            packed = memoryview(self._file.read(some[-1].offset + some[-1].packed_bytes - origin))
            yield b"".join([chunk.unpack(packed[chunk.offset - origin :][: chunk.packed_bytes]) for chunk in some])

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


class _SettledXorb:
    """A xorb whose chunks lie in blobs. What is read is not checked here: the file that it makes up is."""

    def __init__(self, places: list[tuple[str, int, int]], blobs: Blobs) -> None:
        self._places = places
        self._blobs = blobs
        self.sizes = [size for _, _, size in places]

    def read(self, first: int, end: int) -> Iterator[bytes]:
        """Read chunks out of the blobs."""
        for sha256, offset, size in self._places[first:end]:
            try:
                with self._blobs.path(sha256).open("rb") as file:
                    file.seek(offset)
                    yield file.read(size)
            except FileNotFoundError:
                raise _missing(sha256) from None

    def close(self) -> None:
        """Hold nothing."""


class _Comparison:
    """Takes the bytes of a blob that is there already, and checks that they are its bytes."""

    def __init__(self, sha256: str) -> None:
        self._expected = sha256
        self._hash = hashlib.sha256()

    def write(self, piece: bytes) -> None:
        """Take bytes."""
        self._hash.update(piece)

    def finish(self) -> str:
        """Compare."""
        if self._hash.hexdigest() != self._expected:
            raise bad_request(f"The chunks do not make up the file {self._expected}.")
        return self._expected

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def _one_ahead(pieces: Iterator[bytes], threads: Executor) -> Iterator[bytes]:
    """Make the next piece while the caller works on one."""
    coming = threads.submit(next, pieces, None)
    while (piece := coming.result()) is not None:
        coming = threads.submit(next, pieces, None)
        yield piece


def _missing(what: str) -> HubRefusal:
    return HubRefusal(400, "xorb_missing", f"Upload the xorb {what} before a file that needs it.")
