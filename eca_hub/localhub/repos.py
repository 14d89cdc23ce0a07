"""One repository: its settings, its commits, and the references that make commits visible.

Knows nothing about names (the store gives a repository its name), users' rights or HTTP.

A commit exists for readers from the moment in which `refs.json` names it, or names a descendant of it. That file is
replaced in one step after the commit and all of its blobs are on disk, so a crash leaves the old state or the new one.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from eca_hub.localhub.clock import now
from eca_hub.localhub.commit_operations import Changes
from eca_hub.localhub.commits import Commit, StoredFile, decode_commit
from eca_hub.localhub.disk import canonical_json, write_atomically
from eca_hub.localhub.errors import HubRefusal, conflict, head_moved, repo_not_found, revision_not_found
from eca_hub.localhub.validation import check_ref_name, is_short_commit_id

Gated = Literal["auto", "manual", False]
NUM_CACHED_COMMITS = 64


@dataclass(frozen=True)
class Settings:
    """What the owner of a repository decides."""

    creator: str
    created_at: str
    is_private: bool = False
    gated: Gated = False


class Repo:
    """A repository in its folder.

    Args:
        folder: Holds `repo.json`, `refs.json`, `commits/` and perhaps `discussions.json`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.RLock()
        self.settings = Settings(**json.loads((folder / "repo.json").read_bytes()))
        self._refs: dict[str, str] = json.loads((folder / "refs.json").read_bytes())
        self._commits: OrderedDict[str, Commit] = OrderedDict()
        self._visible: set[str] | None = None
        self._is_deleted = False

    @classmethod
    def create(cls, folder: Path, settings: Settings, files: dict[str, StoredFile]) -> "Repo":
        """Write a new repository with a first commit; nobody sees it before the store names it."""
        first = Commit(None, "initial commit", "", settings.creator, settings.created_at, files)
        _write_commit(folder, first)
        write_atomically(folder / "refs.json", canonical_json({"refs/heads/main": first.id}), "refs")
        _write_settings(folder, settings)
        return cls(folder)

    @property
    def refs(self) -> dict[str, str]:
        """Commit id by full name of a branch, a tag or a pull request."""
        return dict(self._refs)

    def change_settings(self, **changes: Any) -> None:
        """Replace some settings."""
        with self.lock:
            self._check_not_deleted()
            settings = replace(self.settings, **changes)
            _write_settings(self.folder, settings)
            self.settings = settings

    def mark_deleted(self) -> None:
        """Answer from now on as if there were no such repository, also those who found it before."""
        with self.lock:
            self._is_deleted = True

    def find_ref(self, revision: str) -> str | None:
        """Return the full name of the branch, tag or pull request called so, in this order, or None."""
        for full_name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if full_name in self._refs:
                return full_name
        return None

    def resolve(self, revision: str) -> str:
        """Return the commit id of a branch, a tag, a pull request, or a commit's id, of which 7 digits are enough.

        Raises:
            HubRefusal: There is no such revision, or no commit that a reference leads to.
        """
        visible = self._visible_commits() if is_short_commit_id(revision) else set()
        if revision in visible:
            return revision
        full_name = self.find_ref(revision)
        if full_name:
            return self._refs[full_name]
        matches = [commit_id for commit_id in visible if commit_id.startswith(revision)]
        if len(matches) != 1:
            raise revision_not_found(revision)
        return matches[0]

    def commit(self, commit_id: str) -> Commit:
        """Read a commit by its full id."""
        with self.lock:
            if commit_id in self._commits:
                self._commits.move_to_end(commit_id)
                return self._commits[commit_id]
        try:
            encoded = _commit_path(self.folder, commit_id).read_bytes()
        except FileNotFoundError:
            self._check_not_deleted()
            raise
        commit = decode_commit(encoded, commit_id)
        with self.lock:
            self._commits[commit_id] = commit
            if len(self._commits) > NUM_CACHED_COMMITS:
                self._commits.popitem(last=False)
        return commit

    def history(self, commit_id: str | None) -> Iterator[tuple[str, Commit]]:
        """Go from a commit back to the first one."""
        while commit_id:
            commit = self.commit(commit_id)
            yield commit_id, commit
            commit_id = commit.parent

    def add_commit(self, branch: str, changes: Changes, author: str, new_ref: str | None = None) -> str:
        """Put changes on top of a branch and return the id of its new head.

        Changes that change nothing make no commit: the head is returned.

        Args:
            branch: Full name of the reference to build upon.
            changes: What to do to its files.
            author: Who asks.
            new_ref: Leave the branch alone and point this new reference to the commit, as a pull request does.
        """
        with self.lock:
            head_id = self._refs[branch]
            if changes.expected_parent not in (None, head_id):
                raise head_moved()
            files = changes.apply_to(dict(self.commit(head_id).files), head_id)
            if files == self.commit(head_id).files:
                commit_id = head_id
            else:
                commit_id = self._store_commit(Commit(head_id, changes.title, changes.message, author, now(), files))
            if self._refs.get(new_ref or branch) != commit_id:
                self._set_refs({**self._refs, new_ref or branch: commit_id})
            return commit_id

    def squash(self, branch: str, title: str, message: str, author: str) -> str:
        """Replace the history of a branch by one commit with the same files."""
        with self.lock:
            head = self.commit(self._refs[branch])
            commit_id = self._store_commit(Commit(None, title, message, author, now(), head.files))
            self._set_refs({**self._refs, branch: commit_id})
            self._visible = None
            return commit_id

    def merge(self, source: str, target: str, title: str, message: str, author: str) -> str:
        """Bring what `source` changed since it left `target` onto `target`, as one commit."""
        with self.lock:
            target_ids = {commit_id for commit_id, _ in self.history(self._refs[target])}
            base_id = next(
                (commit_id for commit_id, _ in self.history(self._refs[source]) if commit_id in target_ids), None
            )
            base = dict(self.commit(base_id).files) if base_id else {}
            ours, theirs = dict(self.commit(self._refs[target]).files), dict(self.commit(self._refs[source]).files)
            changed = {path for path in {*base, *theirs} if base.get(path) != theirs.get(path)}
            clashes = [path for path in changed if ours.get(path) not in (base.get(path), theirs.get(path))]
            if clashes:
                raise conflict(f"Both sides changed {sorted(clashes)[0]}.")
            files = {path: file for path, file in ours.items() if path not in changed}
            files |= {path: theirs[path] for path in changed if path in theirs}
            commit_id = self._store_commit(Commit(self._refs[target], title, message, author, now(), files))
            self._set_refs({**self._refs, target: commit_id})
            return commit_id

    def create_ref(self, kind: Literal["branch", "tag"], name: str, commit_id: str) -> None:
        """Make a branch or a tag."""
        full_name = f"refs/{'heads' if kind == 'branch' else 'tags'}/{name}"
        with self.lock:
            # Before the check of the form: a reserved name that exists must be told as such.
            if full_name in self._refs:
                raise conflict(f"Reference {full_name} already exists")
            check_ref_name(name, kind)
            self._set_refs({**self._refs, full_name: commit_id})

    def point_ref(self, full_name: str, commit_id: str) -> None:
        """Let a reference name a commit."""
        with self.lock:
            self._set_refs({**self._refs, full_name: commit_id})

    def delete_ref(self, kind: Literal["branch", "tag"], name: str) -> None:
        """Remove a branch or a tag; its commits stay while another reference leads to them."""
        full_name = f"refs/{'heads' if kind == 'branch' else 'tags'}/{name}"
        if full_name == "refs/heads/main":
            raise HubRefusal(403, "forbidden", "Cannot delete refs/heads/main")
        with self.lock:
            if full_name not in self._refs:
                raise revision_not_found(name)
            self._set_refs({ref: commit_id for ref, commit_id in self._refs.items() if ref != full_name})
            self._visible = None

    def _check_not_deleted(self) -> None:
        if self._is_deleted:
            raise repo_not_found(is_logged_in=True)

    def _store_commit(self, commit: Commit) -> str:
        self._check_not_deleted()
        _write_commit(self.folder, commit)
        return commit.id

    def _set_refs(self, refs: dict[str, str]) -> None:
        self._check_not_deleted()
        try:
            write_atomically(self.folder / "refs.json", canonical_json(refs), "refs")
        finally:
            # Read back whatever happened: an error after the rename must not leave memory behind the disk.
            self._refs = json.loads((self.folder / "refs.json").read_bytes())
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


def _commit_path(folder: Path, commit_id: str) -> Path:
    return folder / "commits" / f"{commit_id}.json"


def _write_commit(folder: Path, commit: Commit) -> None:
    write_atomically(_commit_path(folder, commit.id), commit.encoded, "commit")


def _write_settings(folder: Path, settings: Settings) -> None:
    write_atomically(folder / "repo.json", canonical_json(asdict(settings)), "refs")
