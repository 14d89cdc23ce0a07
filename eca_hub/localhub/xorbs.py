"""Xet uploads: the chunks that a client sends ("xorbs"), and the lists ("shards") of which chunks make which file.

Knows nothing about HTTP or repositories. Only writing: downloads are plain files, so nothing here is ever read by a
client. The hash that names a xorb is not checked, since the sha256 of every file that is put together from it is. Once
files hold all chunks of a xorb, the xorb gives way to a note of where they lie: the client may refer to chunks that it
sent before, also in files that it sends later.

    xorb    chunks, each an 8-byte header (version, packed size, scheme, raw size) and the packed bytes
    shard   a header, then for each file a header, its terms (xorb, first chunk, end chunk), and its sha256
"""

import contextlib
import hashlib
import json
import secrets
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

import lz4.frame

from .blobs import Blobs
from .disk import make_folder
from .errors import HubRefusal, bad_request
from .faults import faultpoint
from .names import check_sha256

MAX_XORB_BYTES = 64 << 20
# Headers come on top of 64 MiB of chunks: 8 bytes for each of at most 8192 of them, and a footer.
MAX_XORB_BODY_BYTES = MAX_XORB_BYTES + (4 << 20)
MAX_CHUNK_BYTES = 128 << 10
CHUNKS_AT_A_TIME = 64
MAX_SHARD_BYTES = 64 << 20
MAX_TERMS = MAX_SHARD_BYTES // 48

_ENTRY_BYTES = 48
_LAST_FILE = b"\xff" * 32
_HAS_VERIFICATION = 1 << 31
_HAS_METADATA = 1 << 30

Places = dict[str, dict[int, tuple[str, int, int]]]
"""By xorb and number of the chunk: which blob holds the chunk, from which byte on, and its size."""


@dataclass(frozen=True)
class Term:
    """A run of chunks of one xorb that stands in a file."""

    xorb: str
    num_bytes: int
    first_chunk: int
    end_chunk: int


@dataclass(frozen=True)
class ShardFile:
    """One file of a shard: the sha256 that its bytes must have, and where they come from."""

    sha256: str
    terms: tuple[Term, ...]

    @property
    def size_bytes(self) -> int:
        """Size of the file that the terms make."""
        return sum(term.num_bytes for term in self.terms)


@dataclass(frozen=True)
class Chunk:
    """Where a chunk lies in its xorb and how it is packed."""

    offset: int
    packed_bytes: int
    scheme: int
    raw_bytes: int

    def unpack(self, packed: memoryview) -> bytes | memoryview:
        """Return the chunk's bytes."""
        raw: bytes | memoryview = packed
        if self.scheme:
            try:
                # Bounded: a frame may claim any size.
                unpacked: bytes = lz4.frame.LZ4FrameDecompressor().decompress(packed, max_length=self.raw_bytes + 1)
            except (RuntimeError, ValueError, MemoryError):
                raise bad_request("A chunk is not what LZ4 packs.") from None
            raw = _ungroup(unpacked) if self.scheme == 2 else unpacked
        if len(raw) != self.raw_bytes:
            raise bad_request("A chunk does not have the size that its header says.")
        return raw


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
                xorb = self._open(term.xorb, writer, blobs)
                sizes = xorb.sizes[term.first_chunk : term.end_chunk]
                if len(sizes) != term.end_chunk - term.first_chunk or sum(sizes) != term.num_bytes:
                    raise bad_request(f"A file needs chunks that the xorb {term.xorb} does not have.")
                for piece in xorb.read(term.first_chunk, term.end_chunk):
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
        with self._file:
            for start in range(first, end, CHUNKS_AT_A_TIME):
                some = self._chunks[start : min(start + CHUNKS_AT_A_TIME, end)]
                origin = some[0].offset
                self._file.seek(origin)
                packed = memoryview(self._file.read(some[-1].offset + some[-1].packed_bytes - origin))
                yield b"".join([chunk.unpack(packed[chunk.offset - origin :][: chunk.packed_bytes]) for chunk in some])


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


def _missing(what: str) -> HubRefusal:
    return HubRefusal(400, "xorb_missing", f"Upload the xorb {what} before a file that needs it.")


def read_chunks(file: BinaryIO) -> list[Chunk]:
    """List the chunks of a xorb by reading their headers.

    Raises:
        HubRefusal: This is not a xorb.
    """
    chunks: list[Chunk] = []
    size_bytes = file.seek(0, 2)
    offset = 0
    while offset < size_bytes:
        file.seek(offset)
        header = file.read(8)
        # Newer clients end a xorb with a table of its chunks, marked so; the headers say the same.
        if header[:7] == b"XETBLOB":
            break
        if len(header) < 8 or header[0] != 0 or header[4] not in (0, 1, 2):
            raise bad_request("This is not a xorb.")
        chunk = Chunk(
            offset + 8, int.from_bytes(header[1:4], "little"), header[4], int.from_bytes(header[5:8], "little")
        )
        offset = chunk.offset + chunk.packed_bytes
        if (
            not 0 < chunk.raw_bytes <= MAX_CHUNK_BYTES
            or chunk.packed_bytes > 2 * MAX_CHUNK_BYTES
            or offset > size_bytes
        ):
            raise bad_request("This is not a xorb: a chunk is too large or cut.")
        chunks.append(chunk)
    return chunks


def read_shard(shard: bytes) -> Iterator[ShardFile]:
    """Go through the files of a shard.

    Raises:
        HubRefusal: This is not a shard, or a file of it does not say its sha256.
    """
    offset = _ENTRY_BYTES
    num_terms_left = MAX_TERMS
    while (entry := _entry(shard, offset))[:32] != _LAST_FILE:
        offset += _ENTRY_BYTES
        flags, num_terms = struct.unpack_from("<II", entry, 32)
        num_terms_left -= num_terms
        if num_terms_left < 0:
            raise bad_request("This is not a shard: too many terms.")
        terms = tuple(_read_term(_entry(shard, offset + index * _ENTRY_BYTES)) for index in range(num_terms))
        offset += num_terms * _ENTRY_BYTES * (2 if flags & _HAS_VERIFICATION else 1)
        if not flags & _HAS_METADATA:
            raise bad_request("Every file of a shard must say its sha256.")
        yield ShardFile(_hash_text(_entry(shard, offset)[:32]), terms)
        offset += _ENTRY_BYTES


def _entry(shard: bytes, offset: int) -> bytes:
    entry = shard[offset : offset + _ENTRY_BYTES]
    if len(entry) < _ENTRY_BYTES:
        raise bad_request("This is not a shard: it ends too early.")
    return entry


def _read_term(entry: bytes) -> Term:
    _, num_bytes, first_chunk, end_chunk = struct.unpack_from("<IIII", entry, 32)
    return Term(_hash_text(entry[:32]), num_bytes, first_chunk, end_chunk)


def _hash_text(hash_bytes: bytes) -> str:
    """Xet prints a hash as four little-endian numbers of 64 bits."""
    return "".join(hash_bytes[start : start + 8][::-1].hex() for start in range(0, 32, 8))


def _ungroup(grouped: bytes) -> bytes:
    """Undo the grouping of every fourth byte, by which floats pack better."""
    raw = bytearray(len(grouped))
    start = 0
    for lane in range(4):
        length = (len(grouped) - lane + 3) // 4
        raw[lane::4] = grouped[start : start + length]
        start += length
    return bytes(raw)
