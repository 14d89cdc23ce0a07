"""Everything that a hub keeps, in one folder, and the names under which it finds repositories.

Knows nothing about HTTP, tokens or rights.

    ROOT/hub.json          format, id of the store, key for signed links (0600)
    ROOT/lock              held by the one process that may write
    ROOT/names.json        which folder holds which repository; replaced in one step, which makes create, move and
                           delete atomic
    ROOT/repos/FOLDER/     one repository (repos.py)
    ROOT/blobs/ab/ab12..   bytes of files by sha256 (blobs.py)
    ROOT/xorbs/            what Xet uploads consist of, or where it lies in blobs (xorbs.py)
    ROOT/tmp/              unfinished files, emptied at start

Why not git objects (dulwich, pygit2), so that `git clone` works too? Weighed and left: the weights would lie outside of
git anyway, so a library would own the small half of the store, and a clone would bring pointers unless git-lfs and its
download protocol came along; git has no notion of the id that the client computes for LFS files; and a second way to
write, `git push`, would have to keep every promise again (one commit on a named parent, a full disk, kill -9). A folder
of JSON and raw bytes can be read, checked and repaired with a text editor and sha256sum; to get all files of a
revision, `hf download OWNER/NAME --revision REVISION` does what a clone would.
"""

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eca_hub.localhub.blobs import Blobs
from eca_hub.localhub.clock import now
from eca_hub.localhub.commits import StoredFile, git_blob_oid
from eca_hub.localhub.disk import canonical_json, make_folder, sync_folder, write_atomically
from eca_hub.localhub.errors import conflict, repo_not_found
from eca_hub.localhub.faults import faultpoint
from eca_hub.localhub.gitattributes import DEFAULT_GITATTRIBUTES
from eca_hub.localhub.repos import Repo, Settings
from eca_hub.localhub.validation import RepoId, RepoType
from eca_hub.localhub.xorbs import Xorbs


class StoreLocked(Exception):
    """Another process is using the folder."""


class StoreUnusable(Exception):
    """The folder is not one that a hub can keep its files in."""


class Store:
    """A hub's folder, opened for writing by this process alone.

    Args:
        root: The folder; created if it is missing.

    Raises:
        StoreLocked: Another hub uses the folder.
        StoreUnusable: The folder cannot be written, or holds something else.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock_file = _take_lock(root)
        self._lock = threading.RLock()
        self._repos: dict[str, Repo] = {}
        tmp = root / "tmp"
        shutil.rmtree(tmp, ignore_errors=True)
        make_folder(tmp)
        for leftover in root.glob(".*.tmp"):
            leftover.unlink()
        self._read_identity()
        self._names: dict[str, dict[str, str]] = _read_json(root / "names.json", {})
        self.blobs = Blobs(root / "blobs", tmp)
        self.xorbs = Xorbs(root / "xorbs", tmp)

    def close(self) -> None:
        """Let another process use the folder."""
        os.close(self._lock_file)

    def find(self, repo_id: RepoId) -> tuple[RepoId, Repo] | None:
        """Return a repository and its name as its owner spells it, following moves, or None."""
        with self._lock:
            entry = self._names.get(repo_id.key)
            if entry and "moved_to" in entry:
                entry = self._names.get(entry["moved_to"])
            if entry is None or "folder" not in entry:
                return None
            folder = entry["folder"]
            if folder not in self._repos:
                self._repos[folder] = Repo(self.root / "repos" / folder)
            return _named(repo_id.type, entry["name"]), self._repos[folder]

    def all_repos(self, repo_type: RepoType) -> Iterator[tuple[RepoId, Repo]]:
        """Go through the repositories of a type."""
        with self._lock:
            entries = [
                entry for key, entry in self._names.items() if key.startswith(f"{repo_type}s/") and "name" in entry
            ]
        for entry in entries:
            found = self.find(_named(repo_type, entry["name"]))
            if found:
                yield found

    def folders(self) -> list[Path]:
        """The folders of all repositories that have a name."""
        return [self.root / "repos" / entry["folder"] for entry in self._names.values() if "folder" in entry]

    def create_repo(
        self, repo_id: RepoId, creator: str, is_private: bool, files: Mapping[str, str] | None = None
    ) -> Repo:
        """Make a repository with its first commit.

        Args:
            repo_id: Its name.
            creator: Who is to be the author of the first commit.
            is_private: Whether only its owner may see it.
            files: Texts that the first commit holds besides `.gitattributes`, by path.

        Raises:
            HubRefusal: 409, the name is taken.
        """
        with self._lock:
            if "name" in self._names.get(repo_id.key, {}):
                raise conflict(f"You already created this {repo_id.type} repo: {repo_id.full_name}")
            readable = re.sub(r"[^a-z0-9._-]", "-", repo_id.full_name.lower())
            folder = f"{repo_id.type}s--{readable.replace('/', '--')}--{secrets.token_hex(4)}"
            texts = {".gitattributes": DEFAULT_GITATTRIBUTES, **(files or {})}
            stored = {path: _regular_file(self.blobs, text.encode()) for path, text in texts.items()}
            repo = Repo.create(self.root / "repos" / folder, Settings(creator, now(), is_private), stored)
            faultpoint("repo.before_names")
            self._set_names({**self._names, repo_id.key: {"name": repo_id.full_name, "folder": folder}})
            self._repos[folder] = repo
            return repo

    def move_repo(self, source: RepoId, target: RepoId) -> None:
        """Rename a repository; its old name keeps leading to it."""
        with self._lock:
            if "name" in self._names.get(target.key, {}) and target.key != source.key:
                raise conflict(f"A {target.type} repository called {target.full_name} already exists")
            if "folder" not in self._names.get(source.key, {}):
                raise repo_not_found(is_logged_in=True)
            entry = {"name": target.full_name, "folder": self._names[source.key]["folder"]}
            moved = {"moved_to": target.key}
            # Older names lead straight to the new one, so that none of them can end at a stranger's repository.
            names = {key: moved if old == {"moved_to": source.key} else old for key, old in self._names.items()}
            self._set_names({**names, source.key: moved, target.key: entry})

    def delete_repo(self, repo_id: RepoId) -> None:
        """Forget a repository; its blobs stay until `gc`."""
        with self._lock:
            found = self.find(repo_id)
            if found is None:
                raise repo_not_found(is_logged_in=True)
            repo_id, repo = found
            folder = repo.folder.name
            alias = {"moved_to": repo_id.key}
            self._set_names({key: entry for key, entry in self._names.items() if key != repo_id.key and entry != alias})
            self._repos.pop(folder, None)
            repo.mark_deleted()
        # Who reads it at this moment may find a file gone, which a deleted repository answers with 404.
        shutil.rmtree(self.root / "repos" / folder, ignore_errors=True)

    def upload_path(self, upload: str) -> Path:
        """Name the file in which the parts of one upload come together."""
        return self.root / "tmp" / f"upload-{upload}"

    def drop_old_uploads(self, max_age_s: float) -> None:
        """Remove what clients began to upload in parts and never finished."""
        for path in (self.root / "tmp").glob("upload-*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > max_age_s:
                    path.unlink()

    def renew_id(self) -> None:
        """Become another store in the eyes of clients that remember what they sent before."""
        with self._lock:
            self._write_identity({**self._identity, "store_id": secrets.token_hex(16)})

    @property
    def id(self) -> str:
        """Stands in the Xet address: clients skip what they already sent to the same address."""
        return str(self._identity["store_id"])

    @property
    def signing_key(self) -> bytes:
        """Signs the links by which bytes are uploaded without a token."""
        return bytes.fromhex(self._identity["signing_key"])

    def _set_names(self, names: dict[str, dict[str, str]]) -> None:
        try:
            write_atomically(self.root / "names.json", canonical_json(names), "names")
        finally:
            self._names = _read_json(self.root / "names.json", {})

    def _read_identity(self) -> None:
        self._identity: dict[str, Any] = _read_json(self.root / "hub.json", {})
        if not self._identity:
            strangers = {path.name for path in self.root.iterdir()} - {"lock", "tmp", "token"}
            if strangers:
                raise StoreUnusable(
                    f"{self.root} is not a hub's folder and not empty: it holds {sorted(strangers)[0]!r}"
                )
            identity = {"format": 1, "store_id": secrets.token_hex(16), "signing_key": secrets.token_hex(32)}
            self._write_identity(identity)
        elif self._identity.get("format") != 1:
            raise StoreUnusable(
                f"{self.root} was written by another version of the hub (format {self._identity.get('format')})"
            )

    def _write_identity(self, identity: dict[str, Any]) -> None:
        write_atomically(self.root / "hub.json", canonical_json(identity), "identity", mode=0o600)
        self._identity = identity


def _take_lock(root: Path) -> int:
    try:
        make_folder(root)
        descriptor = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreUnusable(f"{root} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise StoreLocked(f"another local hub is using {root}") from None
    sync_folder(root)
    return descriptor


def _read_json(path: Path, default: dict[str, Any]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return default
    except ValueError:
        raise StoreUnusable(f"{path} is damaged: it is not JSON") from None
    if not isinstance(value, dict):
        raise StoreUnusable(f"{path} is damaged: it is not a JSON object")
    return value


def _named(repo_type: RepoType, full_name: str) -> RepoId:
    owner, _, name = full_name.partition("/")
    return RepoId(repo_type, owner, name)


def _regular_file(blobs: Blobs, content: bytes) -> StoredFile:
    return StoredFile(len(content), blobs.put(content), git_blob_oid(content))
