"""Is everything there and whole, and what is no longer needed? For `eca-hub localhub fsck` and `gc`.

Knows the store's folders; knows nothing about HTTP. The check reads references before what they lead to, so a hub that
is writing meanwhile cannot look damaged.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from eca_hub.localhub.blobs import Blobs
from eca_hub.localhub.commits import Commit, decode_commit
from eca_hub.localhub.store import Store


@dataclass
class CheckReport:
    """What a check found."""

    num_repos: int = 0
    num_commits: int = 0
    num_blobs: int = 0
    num_bytes: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """The last line of a check."""
        verdict = f"{len(self.problems)} problems" if self.problems else "clean"
        things = f"{self.num_repos} repositories, {self.num_commits} commits, {self.num_blobs} blobs"
        return f"{verdict}: {things}, {self.num_bytes:,} bytes"


@dataclass
class GarbageReport:
    """What was removed, or would be."""

    is_dry_run: bool
    num_files: int = 0
    num_bytes: int = 0

    @property
    def summary(self) -> str:
        """The one line of a cleaning."""
        return f"{'would remove' if self.is_dry_run else 'removed'} {self.num_files} files, {self.num_bytes:,} bytes"


def check(root: Path) -> CheckReport:
    """Read everything that some reference leads to and compare each byte with its hash."""
    report = CheckReport()
    blobs = Blobs(root / "blobs", root / "tmp")
    verdicts: dict[str, bool] = {}
    names = json.loads((root / "names.json").read_bytes()) if (root / "names.json").exists() else {}
    for entry in names.values():
        if "folder" in entry:
            report.num_repos += 1
            _check_repo(root / "repos" / entry["folder"], entry["name"], blobs, verdicts, report)
        elif entry.get("moved_to") not in names:
            report.problems.append(f"an old name leads to {entry.get('moved_to')}, which does not exist")
    for path in blobs.walk():
        if path.name not in verdicts and not _is_whole(path.name, blobs, verdicts, report):
            report.problems.append(f"blob {path.name} is not what it was, but no commit needs it")
    return report


def collect_garbage(store: Store, is_dry_run: bool) -> GarbageReport:
    """Remove folders without a name, commits and blobs that no reference leads to, and what is left of Xet uploads."""
    report = GarbageReport(is_dry_run)
    needed_blobs: set[str] = set()
    needed_folders: set[str] = set()
    for folder in store.folders():
        needed_folders.add(folder.name)
        needed_commits = {path.name for path, _ in _commits_of(folder, needed_blobs)}
        leftovers = list(folder.glob(".*.tmp"))
        for path in [*leftovers, *(folder / "commits").iterdir()]:
            if path.name not in needed_commits:
                _remove(path, report)
    for path in _entries(store.root / "repos"):
        if path.name not in needed_folders:
            _remove(path, report)
    for path in list(store.blobs.walk()):
        if path.name not in needed_blobs:
            _remove(path, report)
    if any(True for _ in _entries(store.xorbs.folder)):
        # Clients believe that what they sent to this address is still there, so the address has to change first.
        if not is_dry_run:
            store.renew_id()
        _remove(store.xorbs.folder, report)
    return report


def _check_repo(folder: Path, name: str, blobs: Blobs, verdicts: dict[str, bool], report: CheckReport) -> None:
    try:
        heads: dict[str, str] = json.loads((folder / "refs.json").read_bytes())
        json.loads((folder / "repo.json").read_bytes())
    except (OSError, ValueError) as error:
        report.problems.append(f"{name}: {error}")
        return
    if "refs/heads/main" not in heads:
        report.problems.append(f"{name}: there is no branch main")
    seen: set[str] = set()
    for ref, head_id in heads.items():
        commit_id: str | None = head_id
        while commit_id and commit_id not in seen:
            seen.add(commit_id)
            try:
                commit = decode_commit((folder / "commits" / f"{commit_id}.json").read_bytes(), commit_id)
            except (OSError, ValueError) as error:
                report.problems.append(f"{name}: {ref} leads to commit {commit_id}, which cannot be read: {error}")
                break
            report.num_commits += 1
            _check_files(f"{name}@{commit_id[:10]}", commit, blobs, verdicts, report)
            commit_id = commit.parent


def _check_files(name: str, commit: Commit, blobs: Blobs, verdicts: dict[str, bool], report: CheckReport) -> None:
    for path, file in commit.files.items():
        is_new = file.sha256 not in verdicts
        if not _is_whole(file.sha256, blobs, verdicts, report) and is_new:
            state = "is not what it was" if blobs.path(file.sha256).exists() else "is missing"
            report.problems.append(f"{name}: blob {file.sha256} of {path} {state}")


def _is_whole(sha256: str, blobs: Blobs, verdicts: dict[str, bool], report: CheckReport) -> bool:
    if sha256 not in verdicts:
        verdicts[sha256] = blobs.is_whole(sha256)
        report.num_blobs += 1
        with contextlib.suppress(FileNotFoundError):
            report.num_bytes += blobs.path(sha256).stat().st_size
    return verdicts[sha256]


def _commits_of(folder: Path, needed_blobs: set[str]) -> Iterator[tuple[Path, Commit]]:
    seen: set[str] = set()
    for head_id in json.loads((folder / "refs.json").read_bytes()).values():
        commit_id: str | None = head_id
        while commit_id and commit_id not in seen:
            seen.add(commit_id)
            path = folder / "commits" / f"{commit_id}.json"
            commit = decode_commit(path.read_bytes(), commit_id)
            needed_blobs.update(file.sha256 for file in commit.files.values())
            yield path, commit
            commit_id = commit.parent


def _remove(path: Path, report: GarbageReport) -> None:
    files = [path] if path.is_file() else [Path(folder) / name for folder, _, names in os.walk(path) for name in names]
    report.num_files += len(files)
    report.num_bytes += sum(file.lstat().st_size for file in files)
    if not report.is_dry_run:
        if path.is_file():
            path.unlink()
        else:
            shutil.rmtree(path)


def _entries(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from folder.iterdir()
