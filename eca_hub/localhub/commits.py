"""A commit: the complete list of a repository's files, identified by its hash.

Files have the object ids that git would give them, because the stock client computes those ids to find out what it need
not upload. The id of a commit is the SHA-1 of its canonical JSON.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class StoredFile:
    """One file of a commit.

    Args:
        size_bytes: Its size.
        sha256: The blob with its content.
        git_oid: The git blob id of a regular file; None for one that git would store as an LFS pointer.
    """

    size_bytes: int
    sha256: str
    git_oid: str | None = None

    @property
    def is_lfs(self) -> bool:
        """Whether git would store a pointer in place of the content."""
        return self.git_oid is None

    @cached_property
    def pointer(self) -> bytes:
        """The LFS pointer that git would store."""
        lines = (
            "version https://git-lfs.github.com/spec/v1",
            f"oid sha256:{self.sha256}",
            f"size {self.size_bytes}",
            "",
        )
        return "\n".join(lines).encode()

    @property
    def oid(self) -> str:
        """The id of the git blob: of the content or of the pointer."""
        return self.git_oid or git_blob_oid(self.pointer)

    @property
    def etag(self) -> str:
        """ETag of a download: the hash of the content where the client knows it."""
        return self.git_oid or self.sha256


@dataclass(frozen=True)
class Commit:
    """A commit of a repository.

    Args:
        parent: Id of the parent commit, or None for the first.
        title: First line of the message.
        message: The rest of the message.
        author: Name of the user.
        date: `2026-01-31T12:00:00.000Z`. Order comes from parents, never from dates.
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
        """The commit id, 40 hexadecimal digits."""
        return hashlib.sha1(self.encoded, usedforsecurity=False).hexdigest()

    @cached_property
    def folders(self) -> dict[str, str]:
        """Id of every folder by its path; it changes when anything below the folder changes."""
        hashes: dict[str, Any] = {}
        for path, file in sorted(self.files.items()):
            for parent in parents_of(path):
                digest = hashes.setdefault(parent, hashlib.sha1(b"folder", usedforsecurity=False))
                digest.update(f"\0{path}\0{file.oid}".encode())
        return {path: digest.hexdigest() for path, digest in hashes.items()}

    def has_folder(self, path: str) -> bool:
        """Whether there is a folder of this path; the root is the empty path."""
        return not path or path in self.folders

    def oid_of(self, path: str) -> str | None:
        """Id of a file or a folder, or None if there is neither."""
        file = self.files.get(path)
        return file.oid if file else self.folders.get(path)


def decode_commit(encoded: bytes, commit_id: str) -> Commit:
    """Read a stored commit.

    Raises:
        ValueError: the bytes do not have the hash of this commit.
    """
    if hashlib.sha1(encoded, usedforsecurity=False).hexdigest() != commit_id:
        raise ValueError(f"the file of commit {commit_id} is damaged")
    value = json.loads(encoded)
    files = {path: StoredFile(*entry) for path, entry in value["files"].items()}
    return Commit(value["parent"], value["title"], value["message"], value["author"], value["date"], files)


def git_blob_oid(content: bytes) -> str:
    """The id that git gives to a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def parents_of(path: str) -> Iterator[str]:
    """Yield the folders above a path, outermost first, without the root."""
    pieces = path.split("/")[:-1]
    for depth in range(1, len(pieces) + 1):
        yield "/".join(pieces[:depth])


def canonical_json(value: Any) -> bytes:
    """Encode a value as JSON that depends on nothing but the value, so that it can be hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def utc_now() -> str:
    """The current time as the Hub writes it: `2026-01-31T12:00:00.000Z`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
