"""Binary format of Xet uploads.

xorb    chunks, each an 8-byte header (version, packed size, scheme, raw size) and the packed bytes
shard   a header, then for each file a header, its terms (xorb, first chunk, end chunk), and its sha256
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import lz4.frame

from eca_hub.localhub.errors import bad_request

MAX_XORB_BYTES = 64 << 20
# Headers come on top of 64 MiB of chunks: 8 bytes for each of at most MAX_CHUNKS of them, and a footer.
MAX_XORB_BODY_BYTES = MAX_XORB_BYTES + (4 << 20)
MAX_CHUNKS = 8192
MAX_CHUNK_BYTES = 128 << 10
MAX_SHARD_BYTES = 64 << 20
MAX_TERMS = MAX_SHARD_BYTES // 48

_ENTRY_BYTES = 48
_LAST_FILE = b"\xff" * 32
_HAS_VERIFICATION = 1 << 31
_HAS_METADATA = 1 << 30


@dataclass(frozen=True)
class Term:
    """A range of chunks of one xorb, as part of a file."""

    xorb: str
    num_bytes: int
    first_chunk: int
    end_chunk: int


@dataclass(frozen=True)
class ShardFile:
    """One file of a shard: its SHA-256 and the chunks it consists of."""

    sha256: str
    terms: tuple[Term, ...]

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return sum(term.num_bytes for term in self.terms)


@dataclass(frozen=True)
class Chunk:
    """Position of a chunk in its xorb, and its compression."""

    offset: int
    packed_bytes: int
    scheme: int
    raw_bytes: int

    def unpack(self, packed: memoryview) -> bytes | memoryview:
        """Decompress the chunk."""
        raw: bytes | memoryview = packed
        if self.scheme:
            try:
                # Bounded: a frame may claim any size.
                unpacked: bytes = lz4.frame.LZ4FrameDecompressor().decompress(packed, max_length=self.raw_bytes + 1)
            except (RuntimeError, ValueError, MemoryError):
                raise bad_request("A chunk is not valid LZ4.") from None
            raw = _ungroup(unpacked) if self.scheme == 2 else unpacked
        if len(raw) != self.raw_bytes:
            raise bad_request("A chunk does not have the size that its header says.")
        return raw


def read_chunks(file: BinaryIO) -> list[Chunk]:
    """List the chunks of a xorb by reading their headers.

    Raises:
        HubHTTPError: this is not a xorb.
    """
    chunks: list[Chunk] = []
    size_bytes = file.seek(0, 2)
    offset = 0
    while offset < size_bytes:
        file.seek(offset)
        header = file.read(8)
        # Newer clients append a table of the chunks with this mark; the headers have the same information.
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
            or not 0 < chunk.packed_bytes <= 2 * MAX_CHUNK_BYTES
            or offset > size_bytes
        ):
            raise bad_request("This is not a xorb: a chunk is empty, too large or cut.")
        if len(chunks) == MAX_CHUNKS:
            raise bad_request(f"A xorb has at most {MAX_CHUNKS} chunks.")
        chunks.append(chunk)
    return chunks


def read_shard(shard: bytes) -> Iterator[ShardFile]:
    """Yield the files of a shard.

    Raises:
        HubHTTPError: this is not a shard, or it lacks the SHA-256 of a file.
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
            raise bad_request("Every file of a shard must have its sha256.")
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
    """Undo the grouping of every fourth byte, which makes floats compress better."""
    raw = bytearray(len(grouped))
    start = 0
    for lane in range(4):
        length = (len(grouped) - lane + 3) // 4
        raw[lane::4] = grouped[start : start + length]
        start += length
    return bytes(raw)
