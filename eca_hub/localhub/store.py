"""All data of a hub in one folder, and the names of its repositories.

    ROOT/hub.json            format, id of the store, key for signed links
    ROOT/lock                held by the process that may write
    ROOT/names.json          which folder holds which repository; replaced atomically, so that create, move and delete
                             are atomic
    ROOT/repos/FOLDER/       one repository (repo.py)
    ROOT/blobs/ab/ab12..     content of files by SHA-256 (blobs.py)
    ROOT/xorbs/              what Xet uploads consist of, or where it is in blobs (xorbs.py)
    ROOT/uploads/USER/SHA256 empty files: which user has uploaded which blob
    ROOT/tmp/                unfinished files, removed at start

Files have the permissions 0600 and folders 0700.

Why not git objects (dulwich, pygit2), so that `git clone` works too? The weights would be outside of git anyway, so a
library would own the small half of the store, and a clone would bring pointers unless git-lfs and its download protocol
were served as well; git has no notion of the id that the client computes for LFS files; and a second way to write,
`git push`, would have to keep every guarantee again (one commit on a given parent, a full disk, kill -9). A folder of
JSON and raw bytes can be read, checked and repaired with a text editor and sha256sum; `hf download OWNER/NAME
--revision REVISION` gets all files of a revision.
"""

import contextlib
import json
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import filelock

from eca_hub.atomic import TEMPORARY_SUFFIX, fsync_folder, make_folder, write_atomic
from eca_hub.localhub.blobs import FILE_MODE, FOLDER_MODE, Blobs
from eca_hub.localhub.commits import StoredFile, canonical_json, git_blob_oid, utc_now
from eca_hub.localhub.errors import HubHTTPError, conflict, repo_not_found
from eca_hub.localhub.gitattributes import DEFAULT_GITATTRIBUTES
from eca_hub.localhub.repo import Repo, Settings
from eca_hub.localhub.validation import RepoId, RepoType
from eca_hub.localhub.xorbs import Xorbs

Result = TypeVar("Result")

CLOSE_TIMEOUT_S = 5.0
"""How long `Store.close` waits for calls that write: rebuilding a large file may take minutes."""

_FORMAT = 1
_IDENTITY_FILE, _NAMES_FILE = "hub.json", "names.json"
_SUBFOLDERS = ("repos", "blobs", "xorbs", "uploads", "tmp")


class StoreLocked(Exception):
    """Another process uses the folder."""


class StoreUnusable(Exception):
    """The folder cannot be used as a hub's folder."""


class NameTaken(HubHTTPError):
    """409: there is a repository of that name.

    Args:
        repo_id: Its name as its owner spells it.
    """

    def __init__(self, repo_id: RepoId) -> None:
        super().__init__(409, "conflict", f"You already created this {repo_id.type} repo")
        self.repo_id = repo_id


class Store:
    """A hub's folder, opened for writing by this process alone.

    Args:
        root: The folder; created if it is missing. A folder with other content is refused before anything in it is
            changed.

    Raises:
        StoreLocked: another hub uses the folder.
        StoreUnusable: the folder cannot be written, or holds something else.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        if read_identity(root) is None:
            _check_empty(root)
        self._file_lock = _take_lock(root)
        try:
            self._lock = threading.RLock()
            self._idle = threading.Condition()
            self._num_running = 0
            self._is_closed = False
            self._repos: dict[str, Repo] = {}
            self._identity = read_identity(root) or self._create_identity()
            self._names = read_names(root)
            self._clean_up()
            self.blobs = Blobs(root / "blobs", root / "tmp")
            self.xorbs = Xorbs(root / "xorbs", root / "tmp")
        except BaseException:
            self._file_lock.release()
            raise

    def run(self, function: Callable[..., Result], *args: Any) -> Result:
        """Call a function that may write; the folder stays locked until it returns.

        A worker thread outlives its request if the server cancels that.

        Raises:
            HubHTTPError: 503, the store is closed.
        """
        with self._idle:
            if self._is_closed:
                raise HubHTTPError(503, "stopped", "The hub has been stopped.")
            self._num_running += 1
        try:
            return function(*args)
        finally:
            with self._idle:
                self._num_running -= 1
                self._idle.notify_all()

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Release the folder to other processes, after every call of `run` has returned.

        While a call takes longer than the timeout, the folder stays locked; the kernel releases it with the process.
        """
        with self._idle:
            self._is_closed = True
            is_idle = self._idle.wait_for(lambda: self._num_running == 0, timeout_s)
        if is_idle:
            self._file_lock.release()

    def current_name(self, repo_id: RepoId) -> RepoId | None:
        """Return the name of a repository as its owner spells it, following moves, or None. It may be damaged."""
        with self._lock:
            entry = self._entry(repo_id)
        return _named(repo_id.type, entry["name"]) if entry else None

    def find_repo(self, repo_id: RepoId) -> tuple[RepoId, Repo] | None:
        """Return a repository and its name as its owner spells it, following moves, or None.

        Raises:
            HubHTTPError: 500, the files of the repository are damaged.
        """
        with self._lock:
            entry = self._entry(repo_id)
            if entry is None:
                return None
            folder = entry["folder"]
            if folder not in self._repos:
                self._repos[folder] = Repo(self.root / "repos" / folder)
            return _named(repo_id.type, entry["name"]), self._repos[folder]

    def all_repos(self, repo_type: RepoType) -> Iterator[tuple[RepoId, Repo]]:
        """Yield the repositories of a type, without those whose files are damaged: one must not hide all others."""
        with self._lock:
            entries = [
                entry for key, entry in self._names.items() if key.startswith(f"{repo_type}s/") and "name" in entry
            ]
        for entry in entries:
            try:
                named_repo = self.find_repo(_named(repo_type, entry["name"]))
                if named_repo:
                    _, repo = named_repo
                    repo.commit(repo.resolve("main"))
                    yield named_repo
            except HubHTTPError:
                continue

    def folders(self) -> list[Path]:
        """Return the folders of all repositories that have a name."""
        return [self.root / "repos" / entry["folder"] for entry in self._names.values() if "folder" in entry]

    def create_repo(
        self, repo_id: RepoId, creator: str, is_private: bool, files: Mapping[str, str] | None = None
    ) -> Repo:
        """Create a repository with its first commit.

        Args:
            repo_id: Its name.
            creator: Author of the first commit.
            is_private: Whether only its owner can see it.
            files: Text files of the first commit besides `.gitattributes`, by path.

        Raises:
            NameTaken: the name is taken.
        """
        with self._lock:
            taken = self._names.get(repo_id.key, {})
            if "name" in taken:
                raise NameTaken(_named(repo_id.type, taken["name"]))
            readable = re.sub(r"[^a-z0-9._-]", "-", repo_id.full_name.lower())
            folder = f"{repo_id.type}s--{readable.replace('/', '--')}--{secrets.token_hex(4)}"
            texts = {".gitattributes": DEFAULT_GITATTRIBUTES, **(files or {})}
            stored = {path: _regular_file(self.blobs, text.encode()) for path, text in texts.items()}
            repo = Repo.create(self.root / "repos" / folder, Settings(creator, utc_now(), is_private), stored)
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
            # Older names lead straight to the new one, so that none of them can end at another user's repository.
            names = {key: moved if old == {"moved_to": source.key} else old for key, old in self._names.items()}
            self._set_names({**names, source.key: moved, target.key: entry})

    def delete_repo(self, repo_id: RepoId) -> None:
        """Delete a repository by its current name; its blobs stay until `gc`."""
        with self._lock:
            key = repo_id.key
            folder = self._names.get(key, {}).get("folder")
            if folder is None:
                raise repo_not_found(is_logged_in=True)
            alias = {"moved_to": key}
            self._set_names({name: other for name, other in self._names.items() if name != key and other != alias})
            repo = self._repos.pop(folder, None)
            if repo:
                repo.mark_deleted()
        # A request that reads it now may miss a file; in a deleted repository that becomes a 404.
        shutil.rmtree(self.root / "repos" / folder, ignore_errors=True)

    def record_upload(self, user: str, sha256: str) -> None:
        """Record that a user has uploaded a blob.

        Not synced: after a power cut the client uploads the blob again.
        """
        folder = self.root / "uploads" / user
        folder.mkdir(FOLDER_MODE, exist_ok=True)
        (folder / sha256).touch(FILE_MODE)

    def has_uploaded(self, user: str, sha256: str) -> bool:
        """Whether a user has uploaded a blob since the last `gc`."""
        return (self.root / "uploads" / user / sha256).exists()

    def renew_id(self) -> None:
        """Get a new id, and with it a new Xet address, so that clients send everything again."""
        with self._lock:
            self._write_identity({**self._identity, "store_id": secrets.token_hex(16)})

    @property
    def id(self) -> str:
        """Part of the Xet address: clients skip what they have sent to the same address."""
        return str(self._identity["store_id"])

    @property
    def signing_key(self) -> bytes:
        """Signs the links by which clients upload without a token."""
        return bytes.fromhex(self._identity["signing_key"])

    def _entry(self, repo_id: RepoId) -> dict[str, str] | None:
        """Return the names.json entry of a repository, following moves."""
        entry = self._names.get(repo_id.key)
        if entry and "moved_to" in entry:
            entry = self._names.get(entry["moved_to"])
        return entry if entry and "folder" in entry else None

    def _set_names(self, names: dict[str, dict[str, str]]) -> None:
        try:
            write_atomic(self.root / _NAMES_FILE, canonical_json(names), mode=FILE_MODE)
        finally:
            self._names = read_names(self.root)

    def _create_identity(self) -> dict[str, Any]:
        identity = {"format": _FORMAT, "store_id": secrets.token_hex(16), "signing_key": secrets.token_hex(32)}
        self._write_identity(identity)
        return identity

    def _write_identity(self, identity: dict[str, Any]) -> None:
        write_atomic(self.root / _IDENTITY_FILE, canonical_json(identity), mode=FILE_MODE)
        self._identity = identity

    def _clean_up(self) -> None:
        """Remove unfinished files, and hide from other users of the machine what older versions left readable."""
        shutil.rmtree(self.root / "tmp", ignore_errors=True)
        for name in (_IDENTITY_FILE, _NAMES_FILE):
            with contextlib.suppress(FileNotFoundError):
                _make_private(self.root / name, FILE_MODE)
            for leftover in self.root.glob(f".{name}.*{TEMPORARY_SUFFIX}"):
                leftover.unlink()
        for name in _SUBFOLDERS:
            make_folder(self.root / name, mode=FOLDER_MODE)
            _make_private(self.root / name, FOLDER_MODE)
        # All at once and now, instead of an fsync for each during an upload.
        for number in range(256):
            (self.root / "blobs" / f"{number:02x}").mkdir(FOLDER_MODE, exist_ok=True)
        fsync_folder(self.root / "blobs")


def read_identity(root: Path) -> dict[str, Any] | None:
    """Read hub.json, without changing anything; None if there is none.

    Raises:
        StoreUnusable: it is damaged, of another format, or not a hub's.
    """
    identity = _read_json_object(root / _IDENTITY_FILE)
    if identity is None:
        return None
    if not re.fullmatch(r"[0-9a-f]{64}", str(identity.get("signing_key"))) or "store_id" not in identity:
        raise StoreUnusable(f"{root / _IDENTITY_FILE} does not belong to a local hub")
    if identity.get("format") != _FORMAT:
        raise StoreUnusable(f"{root} was written by another version of the hub (format {identity.get('format')})")
    return identity


def read_names(root: Path) -> dict[str, dict[str, str]]:
    """Read names.json, without changing anything; an empty one if there is none.

    Raises:
        StoreUnusable: it is damaged.
    """
    names = _read_json_object(root / _NAMES_FILE) or {}
    if not all(_is_names_entry(entry) for entry in names.values()):
        raise StoreUnusable(f"{root / _NAMES_FILE} is damaged: an entry names neither a repository nor where it moved")
    return names


def _is_names_entry(entry: object) -> bool:
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        return False
    if entry.keys() == {"moved_to"}:
        return True
    # A folder elsewhere would be served, and deleted with the repository.
    return entry.keys() == {"name", "folder"} and "/" in entry["name"] and Path(entry["folder"]).name == entry["folder"]


def _check_empty(root: Path) -> None:
    """Refuse a folder with content that is not what a hub killed at its first start leaves."""
    try:
        entries = sorted(root.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreUnusable(f"{root} cannot be read: {error.strerror}") from None
    for path in entries:
        is_ours = (
            (path.name in ("lock", "token") and path.is_file())
            or (path.name in _SUBFOLDERS and path.is_dir() and not any(path.iterdir()))
            or (path.name.startswith(f".{_IDENTITY_FILE}.") and path.name.endswith(TEMPORARY_SUFFIX))
        )
        if not is_ours:
            raise StoreUnusable(f"{root} is not a hub's folder and not empty: it holds {path.name!r}")


def _take_lock(root: Path) -> filelock.BaseFileLock:
    try:
        make_folder(root, mode=FOLDER_MODE)
        lock = filelock.FileLock(root / "lock", timeout=0, mode=FILE_MODE, thread_local=False)
        lock.acquire()
    except filelock.Timeout:
        raise StoreLocked(f"another local hub is using {root}") from None
    except NotImplementedError:
        raise StoreUnusable(f"{root} cannot be locked: its file system has no file locks") from None
    except OSError as error:
        raise StoreUnusable(f"{root} cannot be written: {error.strerror}") from None
    return lock


def _make_private(path: Path, mode: int) -> None:
    try:
        path.chmod(mode)
    except PermissionError as error:
        raise StoreUnusable(
            f"{path} cannot be made private to its owner: {error.strerror}; FAT and exFAT keep no permissions"
        ) from None


def _read_json_object(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise StoreUnusable(f"{path.parent} cannot be written: {error.strerror}") from None
    except OSError as error:
        raise StoreUnusable(f"{path} cannot be read: {error.strerror}") from None
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
