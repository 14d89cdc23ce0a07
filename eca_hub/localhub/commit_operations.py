"""What a commit does to the files before it: the lines of the client's ndjson, read one at a time, and their effect.

Knows nothing about repositories or HTTP; needs the blobs, to put small files there and to look for big ones.
"""

import base64
import binascii
import json
from dataclasses import dataclass, field
from typing import Any

from eca_hub.localhub.blobs import Blobs
from eca_hub.localhub.commits import StoredFile, git_blob_oid, parents_of
from eca_hub.localhub.errors import HubRefusal, bad_request, entry_not_found, invalid
from eca_hub.localhub.validation import check_path, check_sha256, is_commit_id

MAX_TITLE_CHARS = 1_000
MAX_MESSAGE_CHARS = 64_000
MAX_OPERATIONS = 100_000


@dataclass
class Changes:
    """The content of one commit, collected line by line.

    Small files go to the blobs at once; nothing of it can be seen before a commit names them.

    Args:
        blobs: Where the bytes of small files go and those of LFS files must already be.
    """

    blobs: Blobs
    title: str = ""
    message: str = ""
    expected_parent: str | None = None
    _written: dict[str, StoredFile] = field(default_factory=dict)
    _deleted: list[tuple[str, str]] = field(default_factory=list)
    _has_header: bool = False

    def read_line(self, line: bytes) -> None:
        """Take one line.

        Raises:
            HubRefusal: The line is not what the protocol allows.
        """
        try:
            item = json.loads(line)
            key, value = item["key"], item["value"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise bad_request('Each line must be a JSON object with "key" and "value".') from None
        if not isinstance(value, dict):
            raise bad_request('The "value" of a line must be an object.')
        if len(self._written) + len(self._deleted) >= MAX_OPERATIONS:
            raise bad_request(f"At most {MAX_OPERATIONS} operations fit into one commit.")
        if key == "header":
            self._read_header(value)
        elif key == "file":
            self._write(value, self._regular_file(value))
        elif key == "lfsFile":
            self._write(value, self._lfs_file(value))
        elif key in ("deletedFile", "deletedFolder"):
            self._deleted.append((key, check_path(_text(value, "path").rstrip("/"))))
        else:
            raise bad_request("Add a line with the key header, file, lfsFile, deletedFile or deletedFolder.")

    def check_complete(self) -> None:
        """Refuse a body that ended before it said what the commit is."""
        if not self._has_header:
            raise bad_request('The first line must have the key "header" and a summary.')

    def apply_to(self, before: dict[str, StoredFile], commit_id: str | None) -> dict[str, StoredFile]:
        """Return the files after these changes, which all apply to the state before: deletions first, then additions.

        Args:
            before: All files of the parent.
            commit_id: The parent, named in the answer when a file to delete is missing.
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
        _check_no_twins(files, before)
        return files

    def _read_header(self, value: dict[str, Any]) -> None:
        self.title = _text(value, "summary")[:MAX_TITLE_CHARS]
        self.message = _text({"description": "", **value}, "description")[:MAX_MESSAGE_CHARS]
        parent = value.get("parentCommit")
        if parent is not None and not (isinstance(parent, str) and is_commit_id(parent)):
            raise bad_request("parentCommit must be a commit id of 40 hexadecimal digits.")
        self.expected_parent = parent
        self._has_header = True

    def _regular_file(self, value: dict[str, Any]) -> StoredFile:
        content = _text(value, "content")
        if value.get("encoding", "utf-8") == "base64":
            try:
                content_bytes = base64.b64decode(content, validate=True)
            except (binascii.Error, ValueError):
                raise bad_request("The content of a file is not base64.") from None
        else:
            content_bytes = content.encode()
        check_path(_text(value, "path"))
        return StoredFile(len(content_bytes), self.blobs.put(content_bytes), git_blob_oid(content_bytes))

    def _lfs_file(self, value: dict[str, Any]) -> StoredFile:
        if value.get("algo", "sha256") != "sha256":
            raise invalid("The algo of an LFS file must be sha256.")
        sha256 = check_sha256(value.get("oid"))
        size_bytes = self.blobs.size_bytes(sha256)
        claimed_bytes = value.get("size", size_bytes)
        if size_bytes is None or claimed_bytes != size_bytes:
            message = f"LFS pointer pointed to a file that does not exist: {sha256}. Upload its bytes, then commit."
            raise HubRefusal(400, "lfs_object_missing", message)
        return StoredFile(size_bytes, sha256)

    def _write(self, value: dict[str, Any], file: StoredFile) -> None:
        self._written[check_path(_text(value, "path"))] = file


def _text(value: dict[str, Any], key: str) -> str:
    text = value.get(key)
    if not isinstance(text, str):
        raise bad_request(f'A line lacks "{key}", a text.')
    try:
        text.encode()
    except UnicodeEncodeError:
        raise bad_request(f'"{key}" is not valid Unicode.') from None
    return text


def _check_no_twins(files: dict[str, StoredFile], before: dict[str, StoredFile]) -> None:
    """Refuse a path that differs from another only in case: on a Mac or Windows one of the two would be lost."""
    seen: dict[str, str] = {}
    for path in files:
        other = seen.setdefault(path.casefold(), path)
        if other != path and not (path in before and other in before):
            raise invalid(f"{path} and {other} differ only in case.")


def _check_no_file_is_a_folder(files: dict[str, StoredFile], written: dict[str, StoredFile]) -> None:
    folders = {folder for path in files for folder in parents_of(path)} if written else set()
    for path in written:
        if path in folders or any(folder in files for folder in parents_of(path)):
            raise invalid(f"{path} would be a file and a folder at once.")
