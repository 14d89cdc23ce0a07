"""A Xet upload written out by hand, so that tests can break each of its bytes."""

import hashlib
import struct
from collections.abc import Mapping, Sequence

import httpx2
import lz4.frame

from tests.localhub.push_client import REPO, push

CHUNK_BYTES = 64 << 10
XORB = "0123456789abcdef" * 4
END = b"\xff" * 32 + bytes(16)


def raw_hash(text: str) -> bytes:
    """The bytes of a hash that Xet prints as four little-endian numbers."""
    return b"".join(bytes.fromhex(text[start : start + 16])[::-1] for start in range(0, 64, 16))


def pack_chunk(raw: bytes, scheme: int) -> bytes:
    """A chunk with its header."""
    packed = raw
    if scheme == 2:
        raw_lanes = b"".join(raw[lane::4] for lane in range(4))
        packed = lz4.frame.compress(raw_lanes)
    if scheme == 1:
        packed = lz4.frame.compress(raw)
    header = bytes([0]) + len(packed).to_bytes(3, "little") + bytes([scheme]) + len(raw).to_bytes(3, "little")
    return header + packed


def pack_xorb(content: bytes, schemes: Sequence[int] = (0, 1, 2)) -> bytes:
    """A xorb that holds this content."""
    pieces = [content[start : start + CHUNK_BYTES] for start in range(0, len(content), CHUNK_BYTES)]
    return b"".join(pack_chunk(piece, schemes[index % len(schemes)]) for index, piece in enumerate(pieces))


def pack_shard(files: Sequence[tuple[str, Sequence[tuple[str, int, int, int]]]]) -> bytes:
    """A shard: for each file its sha256 and its terms (xorb, bytes, first chunk, end chunk)."""
    shard = bytes(48)
    for sha256, terms in files:
        shard += bytes(32) + struct.pack("<IIQ", 1 << 30, len(terms), 0)
        for xorb, num_bytes, first, end in terms:
            shard += raw_hash(xorb) + struct.pack("<IIII", 0, num_bytes, first, end)
        shard += raw_hash(sha256) + bytes(16)
    return shard + END


def xet_session(client: httpx2.Client, repo: str = REPO) -> tuple[str, dict[str, str]]:
    """Request an address and the headers to write there."""
    body = client.get(f"/api/models/{repo}/xet-write-token/main").raise_for_status().json()
    return body["casUrl"], {"Authorization": f"Bearer {body['accessToken']}"}


def push_by_xet(client: httpx2.Client, small: Mapping[str, bytes], big: Mapping[str, bytes]) -> str:
    """Create the repository, send the big files by Xet and commit everything."""
    push(client, {}, {})
    cas, headers = xet_session(client)
    for content in big.values():
        sha256 = hashlib.sha256(content).hexdigest()
        num_chunks = -(-len(content) // CHUNK_BYTES)
        client.post(f"{cas}/v1/xorbs/default/{XORB}", content=pack_xorb(content), headers=headers).raise_for_status()
        shard = pack_shard([(sha256, [(XORB, len(content), 0, num_chunks)])])
        client.post(f"{cas}/v1/shards", content=shard, headers=headers).raise_for_status()
    return push(client, small, big)
