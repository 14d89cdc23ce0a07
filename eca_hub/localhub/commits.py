"""A commit: the complete list of a repository's files, identified by its hash, and the operations that make one.

Files have the object ids that git would give them, because the stock client computes those ids to find out what it need
not upload. The id of a commit is the SHA-1 of its canonical JSON.
"""

import base64
import binascii
import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from eca_hub.localhub.blobs import Blobs
from eca_hub.localhub.errors import HubHTTPError, bad_request, entry_not_found, invalid
from eca_hub.localhub.validation import check_path, check_sha256
from eca_hub.names import is_commit

MAX_TITLE_CHARS = 1_000
MAX_MESSAGE_CHARS = 64_000
MAX_OPERATIONS = 100_000


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


@dataclass
class CommitOperations:
    """The content of one commit, collected line by line.

    Small files are stored as blobs at once; they are not visible before a commit refers to them.

    Args:
        blobs: Gets small files; must hold LFS files already.
        can_use_blob: Whether the user has uploaded these bytes or can read them in a repository: knowing the hash and
            the size of a file must not be enough to get it.
    """

    blobs: Blobs
    can_use_blob: Callable[[str], bool]
    title: str = ""
    message: str = ""
    expected_parent: str | None = None
    _written: dict[str, StoredFile] = field(default_factory=dict)
    _deleted: list[tuple[str, str]] = field(default_factory=list)
    _has_header: bool = False

    def read_line(self, line: bytes) -> None:
        """Parse one line.

        Raises:
            HubHTTPError: the line is not what the protocol allows.
        """
        try:
            item = json.loads(line)
            key, value = item["key"], item["value"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise bad_request('Each line must be a JSON object with "key" and "value".') from None
        if not isinstance(value, dict):
            raise bad_request('The "value" of a line must be an object.')
        if len(self._written) + len(self._deleted) >= MAX_OPERATIONS:
            raise bad_request(f"A commit has at most {MAX_OPERATIONS} operations.")
        if key == "header":
            self._read_header(value)
        elif key == "file":
            self._write(value, self._regular_file(value))
        elif key == "lfsFile":
            self._write(value, self._lfs_file(value))
        elif key in ("deletedFile", "deletedFolder"):
            self._deleted.append((key, check_path(_string(value, "path").rstrip("/"))))
        else:
            raise bad_request("The key of a line must be header, file, lfsFile, deletedFile or deletedFolder.")

    def check_complete(self) -> None:
        """Refuse a body without a header line."""
        if not self._has_header:
            raise bad_request('The first line must have the key "header" and a summary.')

    def apply_to(self, before: dict[str, StoredFile], commit_id: str | None) -> dict[str, StoredFile]:
        """Return the files after these operations: deletions first, then additions.

        Args:
            before: All files of the parent.
            commit_id: The parent, for the response to a missing file.
        """
        # By its kind: a request to delete the file `a` does not mean all files of a folder `a`.
        deleted_files = {path for key, path in self._deleted if key == "deletedFile"}
        deleted_folders = {path for key, path in self._deleted if key == "deletedFolder"}
        folders = {folder for path in before for folder in parents_of(path)} if deleted_folders else set()
        missing = sorted((deleted_files - before.keys()) | (deleted_folders - folders))
        if missing:
            raise entry_not_found(missing[0], commit_id)
        files = {
            path: file
            for path, file in before.items()
            if path not in deleted_files and deleted_folders.isdisjoint(parents_of(path))
        }
        files.update(self._written)
        _check_no_file_is_a_folder(files, self._written)
        _check_no_case_collision(files, before, self._written)
        return files

    def _read_header(self, value: dict[str, Any]) -> None:
        self.title = _string(value, "summary")[:MAX_TITLE_CHARS]
        self.message = _string({"description": "", **value}, "description")[:MAX_MESSAGE_CHARS]
        parent = value.get("parentCommit")
        if parent is not None and not (isinstance(parent, str) and is_commit(parent)):
            raise bad_request("parentCommit must be a commit id of 40 hexadecimal digits.")
        self.expected_parent = parent
        self._has_header = True

    def _regular_file(self, value: dict[str, Any]) -> StoredFile:
        content = _string(value, "content")
        if value.get("encoding", "utf-8") == "base64":
            try:
                content_bytes = base64.b64decode(content, validate=True)
            except (binascii.Error, ValueError):
                raise bad_request("The content of a file is not base64.") from None
        else:
            content_bytes = content.encode()
        check_path(_string(value, "path"))
        return StoredFile(len(content_bytes), self.blobs.put(content_bytes), git_blob_oid(content_bytes))

    def _lfs_file(self, value: dict[str, Any]) -> StoredFile:
        if value.get("algo", "sha256") != "sha256":
            raise invalid("The algo of an LFS file must be sha256.")
        sha256 = check_sha256(value.get("oid"))
        size_bytes = self.blobs.size_bytes(sha256) if self.can_use_blob(sha256) else None
        claimed_bytes = value.get("size", size_bytes)
        # One response for a missing blob and for another user's: it must not reveal which hashes the hub has.
        if size_bytes is None or claimed_bytes != size_bytes:
            message = f"LFS pointer pointed to a file that does not exist: {sha256}. Upload its bytes, then commit."
            raise HubHTTPError(400, "lfs_object_missing", message)
        return StoredFile(size_bytes, sha256)

    def _write(self, value: dict[str, Any], file: StoredFile) -> None:
        self._written[check_path(_string(value, "path"))] = file


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


def _string(value: dict[str, Any], key: str) -> str:
    text = value.get(key)
    if not isinstance(text, str):
        raise bad_request(f'A line lacks "{key}", a string.')
    try:
        text.encode()
    except UnicodeEncodeError:
        raise bad_request(f'"{key}" is not valid Unicode.') from None
    return text


def _check_no_case_collision(
    files: dict[str, StoredFile], before: dict[str, StoredFile], written: dict[str, StoredFile]
) -> None:
    """Refuse files and folders that differ from others only in case or Unicode form: macOS and Windows mix them up."""
    if not written:
        return
    existing = {name for path in before for name in (*parents_of(path), path)}
    spelled: dict[str, str] = {}
    for path in files:
        for name in (*parents_of(path), path):
            other = spelled.setdefault(unicodedata.normalize("NFC", name.casefold()), name)
            if other != name and not (name in existing and other in existing):
                form = "case" if name.casefold() == other.casefold() else "Unicode form"
                raise invalid(f"{name} and {other} differ only in {form}.")


def _check_no_file_is_a_folder(files: dict[str, StoredFile], written: dict[str, StoredFile]) -> None:
    folders = {folder for path in files for folder in parents_of(path)} if written else set()
    for path in written:
        if path in folders or any(folder in files for folder in parents_of(path)):
            raise invalid(f"{path} would be a file and a folder at once.")
