"""Check a hub's folder and remove garbage: `eca-hub localhub fsck` and `gc`.

The check reads references before what they lead to, so a hub that is writing meanwhile cannot look damaged.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from eca_hub.localhub.blobs import Blobs
from eca_hub.localhub.commits import Commit, decode_commit
from eca_hub.localhub.repo import read_refs, read_settings
from eca_hub.localhub.store import Store, StoreUnusable, read_identity, read_names


@dataclass
class CheckReport:
    """Result of a check."""

    num_repos: int = 0
    num_commits: int = 0
    num_blobs: int = 0
    num_bytes: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """The last line of a check."""
        verdict = f"{len(self.problems)} problems" if self.problems else "clean"
        counts = f"{self.num_repos} repositories, {self.num_commits} commits, {self.num_blobs} blobs"
        return f"{verdict}: {counts}, {self.num_bytes:,} bytes"


@dataclass
class GarbageReport:
    """What was removed, or would be."""

    is_dry_run: bool
    num_files: int = 0
    num_bytes: int = 0

    @property
    def summary(self) -> str:
        """The one line of a garbage collection."""
        return f"{'would remove' if self.is_dry_run else 'removed'} {self.num_files} files, {self.num_bytes:,} bytes"


def check(root: Path) -> CheckReport:
    """Read everything that a reference leads to and compare each byte with its hash.

    Raises:
        StoreUnusable: this is not a hub's folder.
    """
    report = CheckReport()
    if read_identity(root) is None:
        raise StoreUnusable(f"{root} is not a hub's folder: it has no hub.json")
    try:
        names = read_names(root)
    except StoreUnusable as error:
        report.problems.append(str(error))
        return report
    blobs = Blobs(root / "blobs", root / "tmp")
    verdicts: dict[str, bool] = {}
    for entry in names.values():
        if "folder" in entry:
            report.num_repos += 1
            num_problems, known = len(report.problems), set(verdicts)
            _check_repo(root / "repos" / entry["folder"], entry["name"], blobs, verdicts, report)
            if len(report.problems) > num_problems and not _has_name(root, entry["folder"]):
                # A running hub has deleted the repository meanwhile. Other repositories may need the damaged blobs.
                del report.problems[num_problems:]
                for sha256 in [sha256 for sha256 in verdicts if sha256 not in known and not verdicts[sha256]]:
                    del verdicts[sha256]
        elif entry.get("moved_to") not in names:
            report.problems.append(f"an old name leads to {entry.get('moved_to')}, which does not exist")
    for path in blobs.walk():
        if path.name not in verdicts and not _is_intact(path.name, blobs, verdicts, report):
            report.problems.append(f"blob {path.name} is damaged, but no commit needs it")
    return report


def collect_garbage(store: Store, is_dry_run: bool) -> GarbageReport:
    """Remove folders without a name, commits and blobs that no reference leads to, and data of Xet uploads.

    Raises:
        StoreUnusable: a repository is damaged, so it is unknown which blobs it needs; nothing has been removed.
    """
    needed_blobs: set[str] = set()
    needed_folders: set[str] = set()
    garbage: list[Path] = []
    for folder in store.folders():
        needed_folders.add(folder.name)
        try:
            needed_commits = {path.name for path in _needed_commits(folder, needed_blobs)}
        except (OSError, ValueError) as error:
            raise StoreUnusable(
                f"{folder.name} is damaged ({error}), so nothing was removed: run eca-hub localhub fsck, then restore "
                "its files or delete the repository"
            ) from None
        garbage += folder.glob(".*.tmp")
        garbage += [path for path in (folder / "commits").iterdir() if path.name not in needed_commits]
    garbage += [path for path in _entries(store.root / "repos") if path.name not in needed_folders]
    garbage += [path for path in store.blobs.walk() if path.name not in needed_blobs]
    # Blobs that were uploaded and never committed are garbage, so it does not matter any longer who uploaded them.
    garbage += _entries(store.root / "uploads")
    if any(True for _ in _entries(store.xorbs.folder)):
        # Clients skip what they have sent to this address, so the address has to change first.
        if not is_dry_run:
            store.renew_id()
        garbage += _entries(store.xorbs.folder)
    report = GarbageReport(is_dry_run)
    for path in garbage:
        _remove(path, report)
    return report


def _has_name(root: Path, folder: str) -> bool:
    return any(entry.get("folder") == folder for entry in read_names(root).values())


def _check_repo(folder: Path, name: str, blobs: Blobs, verdicts: dict[str, bool], report: CheckReport) -> None:
    try:
        heads = read_refs(folder)
        read_settings(folder)
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
        if not _is_intact(file.sha256, blobs, verdicts, report) and is_new:
            state = "is damaged" if blobs.path(file.sha256).exists() else "is missing"
            report.problems.append(f"{name}: blob {file.sha256} of {path} {state}")


def _is_intact(sha256: str, blobs: Blobs, verdicts: dict[str, bool], report: CheckReport) -> bool:
    if sha256 not in verdicts:
        verdicts[sha256] = blobs.is_intact(sha256)
        report.num_blobs += 1
        with contextlib.suppress(FileNotFoundError):
            report.num_bytes += blobs.path(sha256).stat().st_size
    return verdicts[sha256]


def _needed_commits(folder: Path, needed_blobs: set[str]) -> Iterator[Path]:
    seen: set[str] = set()
    for head_id in read_refs(folder).values():
        commit_id: str | None = head_id
        while commit_id and commit_id not in seen:
            seen.add(commit_id)
            path = folder / "commits" / f"{commit_id}.json"
            commit = decode_commit(path.read_bytes(), commit_id)
            needed_blobs.update(file.sha256 for file in commit.files.values())
            yield path
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
