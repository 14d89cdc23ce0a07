"""One repository: its settings, its commits, and the references that make commits visible.

A commit is visible to readers from the moment `refs.json` refers to it or to a descendant of it. That file is replaced
atomically after the commit and all of its blobs are on disk, so a crash leaves the old state or the new one.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from eca_hub.atomic import make_folder, write_atomic
from eca_hub.localhub.blobs import FILE_MODE, FOLDER_MODE
from eca_hub.localhub.commits import Commit, CommitOperations, StoredFile, canonical_json, decode_commit, utc_now
from eca_hub.localhub.errors import (
    HubHTTPError,
    conflict,
    head_moved,
    repo_corrupt,
    repo_not_found,
    revision_not_found,
)
from eca_hub.localhub.validation import check_ref_name, is_short_commit_id
from eca_hub.names import is_commit

Gated = Literal["auto", "manual", False]
NUM_CACHED_COMMITS = 64


@dataclass(frozen=True)
class Settings:
    """Settings of a repository."""

    creator: str
    created_at: str
    is_private: bool = False
    gated: Gated = False


class Repo:
    """A repository in its folder.

    Args:
        folder: Holds `repo.json`, `refs.json` and `commits/`.

    Raises:
        HubHTTPError: 500, a file of the repository is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.RLock()
        try:
            self.settings = read_settings(folder)
            self._refs = read_refs(folder)
        except (OSError, ValueError):
            raise repo_corrupt(folder.name) from None
        self._commits: OrderedDict[str, Commit] = OrderedDict()
        self._visible: set[str] | None = None
        self._blob_ids: set[str] | None = None
        self._is_deleted = False

    @classmethod
    def create(cls, folder: Path, settings: Settings, files: dict[str, StoredFile]) -> "Repo":
        """Write a new repository with a first commit; it is visible once the store has a name for it."""
        first = Commit(None, "initial commit", "", settings.creator, settings.created_at, files)
        _write_commit(folder, first)
        _write(folder / "refs.json", canonical_json({"refs/heads/main": first.id}))
        _write(folder / "repo.json", canonical_json(asdict(settings)))
        return cls(folder)

    @property
    def refs(self) -> dict[str, str]:
        """Commit id by full name of a branch or a tag."""
        return dict(self._refs)

    def change_settings(self, **changes: Any) -> None:
        """Replace some settings."""
        with self.lock:
            self._check_not_deleted()
            settings = replace(self.settings, **changes)
            _write(self.folder / "repo.json", canonical_json(asdict(settings)))
            self.settings = settings

    def mark_deleted(self) -> None:
        """Respond with 404 from now on, also to requests that found the repository before."""
        with self.lock:
            self._is_deleted = True

    def find_ref(self, revision: str) -> str | None:
        """Return the full name of a branch, a tag or a full reference, in this order, or None."""
        return _find_ref(self._refs, revision)

    def resolve(self, revision: str) -> str:
        """Return the commit id of a branch, a tag, or a commit id, which may be shortened to 7 digits.

        Raises:
            HubHTTPError: 404, no such revision, or a commit that no reference leads to.
        """
        visible = self._visible_commits() if is_short_commit_id(revision) else set()
        if revision in visible:
            return revision
        # One snapshot: another request may delete the reference meanwhile.
        refs = self._refs
        full_name = _find_ref(refs, revision)
        if full_name:
            return refs[full_name]
        matches = [commit_id for commit_id in visible if commit_id.startswith(revision)]
        if len(matches) != 1:
            raise revision_not_found(revision)
        return matches[0]

    def commit(self, commit_id: str) -> Commit:
        """Read a commit by its full id.

        Raises:
            HubHTTPError: 500, the file of the commit is missing or damaged.
        """
        with self.lock:
            if commit_id in self._commits:
                self._commits.move_to_end(commit_id)
                return self._commits[commit_id]
        try:
            commit = decode_commit(_commit_path(self.folder, commit_id).read_bytes(), commit_id)
        except (OSError, ValueError):
            self._check_not_deleted()
            raise repo_corrupt(self.folder.name) from None
        with self.lock:
            self._commits[commit_id] = commit
            if len(self._commits) > NUM_CACHED_COMMITS:
                self._commits.popitem(last=False)
        return commit

    def history(self, commit_id: str | None) -> Iterator[tuple[str, Commit]]:
        """Yield a commit and its ancestors."""
        while commit_id:
            commit = self.commit(commit_id)
            yield commit_id, commit
            commit_id = commit.parent

    def contains_blob(self, sha256: str) -> bool:
        """Whether a file of any visible commit has this content."""
        with self.lock:
            if self._blob_ids is None:
                commits = (self.commit(commit_id) for commit_id in self._visible_commits())
                self._blob_ids = {file.sha256 for commit in commits for file in commit.files.values()}
            return sha256 in self._blob_ids

    def add_commit(self, branch: str, operations: CommitOperations, author: str) -> str:
        """Apply operations on top of a branch and return the id of its new head.

        Operations that change nothing make no commit: the head is returned.

        Args:
            branch: Full name of the branch.
            operations: What to do to its files.
            author: Name of the user.

        Raises:
            HubHTTPError: 404, the branch has been deleted; 412, it has moved; 422, the files cannot exist together.
        """
        with self.lock:
            self._check_not_deleted()
            head_id = self._refs.get(branch)
            if head_id is None:
                raise revision_not_found(branch)
            if operations.expected_parent not in (None, head_id):
                raise head_moved()
            head = self.commit(head_id)
            files = operations.apply_to(dict(head.files), head_id)
            if files == head.files:
                return head_id
            commit = Commit(head_id, operations.title, operations.message, author, utc_now(), files)
            _write_commit(self.folder, commit)
            self._set_refs({**self._refs, branch: commit.id})
            if self._blob_ids is not None:
                self._blob_ids.update(file.sha256 for file in files.values())
            return commit.id

    def create_ref(self, kind: Literal["branch", "tag"], name: str, revision: str) -> None:
        """Create a branch or a tag at a revision.

        Raises:
            HubHTTPError: 404, no such revision; 409, it exists, or another one differs only in case or is a folder of
                it; 400, a bad name.
        """
        prefix = f"refs/{'heads' if kind == 'branch' else 'tags'}/"
        full_name = prefix + name
        with self.lock:
            # Under the lock: if the last reference to the commit is deleted meanwhile, the commit is not visible.
            commit_id = self.resolve(revision)
            # Before the name is checked: `main` and other reserved names that exist are reported as such.
            if full_name in self._refs:
                raise conflict(f"Reference {full_name} already exists")
            check_ref_name(name, kind)
            for other in self._refs:
                if other.startswith(prefix) and _collide(other, full_name):
                    raise conflict(
                        f"Reference {full_name} cannot exist beside {other}: as files, git would store them in one "
                        "place where names ignore case."
                    )
            self._set_refs({**self._refs, full_name: commit_id})

    def delete_ref(self, kind: Literal["branch", "tag"], name: str) -> None:
        """Delete a branch or a tag; its commits stay while another reference leads to them."""
        full_name = f"refs/{'heads' if kind == 'branch' else 'tags'}/{name}"
        if full_name == "refs/heads/main":
            raise HubHTTPError(403, "forbidden", "Cannot delete refs/heads/main")
        with self.lock:
            if full_name not in self._refs:
                raise revision_not_found(name)
            self._set_refs({ref: commit_id for ref, commit_id in self._refs.items() if ref != full_name})
            self._visible = self._blob_ids = None

    def _check_not_deleted(self) -> None:
        if self._is_deleted:
            raise repo_not_found(is_logged_in=True)

    def _set_refs(self, refs: dict[str, str]) -> None:
        self._check_not_deleted()
        try:
            _write(self.folder / "refs.json", canonical_json(refs))
        finally:
            # Read back even after an error: one after the rename must not leave memory behind the disk.
            self._refs = read_refs(self.folder)
        if self._visible is not None:
            self._visible = self._visible | set(refs.values())

    def _visible_commits(self) -> set[str]:
        with self.lock:
            if self._visible is None:
                visible: set[str] = set()
                for head_id in self._refs.values():
                    for commit_id, _ in self.history(head_id):
                        if commit_id in visible:
                            break
                        visible.add(commit_id)
                self._visible = visible
            return self._visible


def read_refs(folder: Path) -> dict[str, str]:
    """Read the references of a repository.

    Raises:
        OSError, ValueError: the file is missing or damaged.
    """
    refs = json.loads((folder / "refs.json").read_bytes())
    if not isinstance(refs, dict) or not all(isinstance(head, str) and is_commit(head) for head in refs.values()):
        raise ValueError("refs.json is not an object of commit ids")
    return refs


def read_settings(folder: Path) -> Settings:
    """Read the settings of a repository.

    Raises:
        OSError, ValueError: the file is missing or damaged.
    """
    try:
        settings = Settings(**json.loads((folder / "repo.json").read_bytes()))
    except TypeError:
        settings = None
    if settings is None or not (
        isinstance(settings.creator, str)
        and isinstance(settings.created_at, str)
        and isinstance(settings.is_private, bool)
        and (settings.gated is False or settings.gated in ("auto", "manual"))
    ):
        raise ValueError("repo.json does not hold the settings of a repository")
    return settings


def _find_ref(refs: dict[str, str], revision: str) -> str | None:
    names = (f"refs/heads/{revision}", f"refs/tags/{revision}", revision)
    return next((full_name for full_name in names if full_name in refs), None)


def _collide(ref: str, other: str) -> bool:
    ref, other = ref.casefold(), other.casefold()
    return ref == other or ref.startswith(f"{other}/") or other.startswith(f"{ref}/")


def _commit_path(folder: Path, commit_id: str) -> Path:
    return folder / "commits" / f"{commit_id}.json"


def _write_commit(folder: Path, commit: Commit) -> None:
    _write(_commit_path(folder, commit.id), commit.encoded)


def _write(path: Path, content: bytes) -> None:
    make_folder(path.parent, mode=FOLDER_MODE)
    write_atomic(path, content, mode=FILE_MODE)
