"""A commit: the whole list of a repository's files at one moment, named by the hash of itself.

Knows nothing about disks, branches or HTTP. Files carry the object ids that git would give them, because the stock
client computes those ids to find out what it need not upload; commits carry an id of our own, the sha1 of their
canonical JSON.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from eca_hub.localhub.disk import canonical_json


@dataclass(frozen=True)
class StoredFile:
    """One file of a commit: which bytes, and how it counts towards the client.

    Args:
        size_bytes: Its size.
        sha256: Which blob holds its bytes.
        git_oid: The git blob id of its bytes for a regular file; None for one that git would hold as an LFS pointer.
    """

    size_bytes: int
    sha256: str
    git_oid: str | None = None

    @property
    def is_lfs(self) -> bool:
        """Whether git would hold a pointer in place of the bytes."""
        return self.git_oid is None

    @cached_property
    def pointer(self) -> bytes:
        """The LFS pointer that git would hold."""
        lines = (
            "version https://git-lfs.github.com/spec/v1",
            f"oid sha256:{self.sha256}",
            f"size {self.size_bytes}",
            "",
        )
        return "\n".join(lines).encode()

    @property
    def oid(self) -> str:
        """The id of the git blob: of the bytes or of the pointer."""
        return self.git_oid or git_blob_oid(self.pointer)

    @property
    def etag(self) -> str:
        """What a download is cached under: the hash of the bytes themselves where it is known to the client."""
        return self.git_oid or self.sha256


@dataclass(frozen=True)
class Commit:
    """A moment in the history of a repository.

    Args:
        parent: Id of the commit before it, or None for the first.
        title: First line of the message.
        message: The rest of the message.
        author: Who made it.
        date: When, as `2026-01-31T12:00:00.000Z`. Order comes from parents, never from this.
        files: Every file by its path.
    """

    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: Mapping[str, StoredFile] = field(repr=False)

    @cached_property
    def encoded(self) -> bytes:
        """The canonical bytes that are stored and hashed."""
        files = {path: [file.size_bytes, file.sha256, file.git_oid] for path, file in self.files.items()}
        head = {name: getattr(self, name) for name in ("parent", "title", "message", "author", "date")}
        return canonical_json({"format": 1, **head, "files": files})

    @cached_property
    def id(self) -> str:
        """The 40 hexadecimal digits that name this commit."""
        return hashlib.sha1(self.encoded, usedforsecurity=False).hexdigest()

    @cached_property
    def folders(self) -> dict[str, str]:
        """Every folder by its path, with an id that changes when anything below it changes."""
        hashes: dict[str, Any] = {}
        for path, file in sorted(self.files.items()):
            for parent in parents_of(path):
                digest = hashes.setdefault(parent, hashlib.sha1(b"folder", usedforsecurity=False))
                digest.update(f"\0{path}\0{file.oid}".encode())
        return {path: digest.hexdigest() for path, digest in hashes.items()}

    def has_folder(self, path: str) -> bool:
        """Whether there is a folder of this path; the root, an empty path, always is."""
        return not path or path in self.folders

    def oid_of(self, path: str) -> str | None:
        """The id of a file or a folder, or None where there is neither."""
        file = self.files.get(path)
        return file.oid if file else self.folders.get(path)


def decode_commit(encoded: bytes, commit_id: str) -> Commit:
    """Read a stored commit.

    Raises:
        ValueError: The bytes are not those of this commit.
    """
    if hashlib.sha1(encoded, usedforsecurity=False).hexdigest() != commit_id:
        raise ValueError(f"the file of commit {commit_id} is damaged")
    value = json.loads(encoded)
    files = {path: StoredFile(*entry) for path, entry in value["files"].items()}
    return Commit(value["parent"], value["title"], value["message"], value["author"], value["date"], files)


def git_blob_oid(content: bytes) -> str:
    """The id that git gives to a file of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def parents_of(path: str) -> Iterator[str]:
    """Go through the folders that hold a path, outermost first, without the root."""
    pieces = path.split("/")[:-1]
    for depth in range(1, len(pieces) + 1):
        yield "/".join(pieces[:depth])
