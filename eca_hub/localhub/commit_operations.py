"""Operations of a commit: the lines of the client's ndjson, parsed one at a time, and their effect on the files."""

import base64
import binascii
import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from eca_hub.localhub.blobs import Blobs
from eca_hub.localhub.commits import StoredFile, git_blob_oid, parents_of
from eca_hub.localhub.errors import HubHTTPError, bad_request, entry_not_found, invalid
from eca_hub.localhub.validation import check_path, check_sha256, is_commit_id

MAX_TITLE_CHARS = 1_000
MAX_MESSAGE_CHARS = 64_000
MAX_OPERATIONS = 100_000


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
        files = dict(before)
        for key, path in self._deleted:
            inside = [name for name in before if name.startswith(f"{path}/")]
            if path not in before and not inside:
                raise entry_not_found(path, commit_id)
            if path in before and key == "deletedFile":
                inside.append(path)
            for name in inside:
                files.pop(name, None)
        files.update(self._written)
        _check_no_file_is_a_folder(files, self._written)
        _check_no_case_collision(files, before, self._written)
        return files

    def _read_header(self, value: dict[str, Any]) -> None:
        self.title = _string(value, "summary")[:MAX_TITLE_CHARS]
        self.message = _string({"description": "", **value}, "description")[:MAX_MESSAGE_CHARS]
        parent = value.get("parentCommit")
        if parent is not None and not (isinstance(parent, str) and is_commit_id(parent)):
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
        size_bytes = self.blobs.size_bytes(sha256)
        claimed_bytes = value.get("size", size_bytes)
        # One response for a missing blob and for another user's: it must not reveal which hashes the hub has.
        if size_bytes is None or claimed_bytes != size_bytes or not self.can_use_blob(sha256):
            message = f"LFS pointer pointed to a file that does not exist: {sha256}. Upload its bytes, then commit."
            raise HubHTTPError(400, "lfs_object_missing", message)
        return StoredFile(size_bytes, sha256)

    def _write(self, value: dict[str, Any], file: StoredFile) -> None:
        self._written[check_path(_string(value, "path"))] = file


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
                raise invalid(f"{name} and {other} differ only in case.")


def _check_no_file_is_a_folder(files: dict[str, StoredFile], written: dict[str, StoredFile]) -> None:
    folders = {folder for path in files for folder in parents_of(path)} if written else set()
    for path in written:
        if path in folders or any(folder in files for folder in parents_of(path)):
            raise invalid(f"{path} would be a file and a folder at once.")
