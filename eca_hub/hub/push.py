"""From a package folder to one commit on a hub, through the unmodified client.

A reader sees the commit before or the one after, never a mix: all files travel in one commit on top of a parent that
was looked up first. Needs no torch.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2
import safetensors
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from eca_hub.errors import HubError, InvalidConfig, NotAnEcaModel, PushConflict
from eca_hub.hub.client import check_model_id, check_revision, hub_errors, status_of
from eca_hub.hub.hashes import git_or_lfs_hash, has_hash
from eca_hub.hub.http_limits import guarded
from eca_hub.hub.package import CARD_FILE, CONFIG_FILE, FILES, WEIGHTS_FILE, config_from_json, find_package
from eca_hub.hub.use import name_model

_BUSY_RETRIES_S = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Published:
    """What a push left on the hub."""

    model_id: str
    """Hub `owner/name`."""
    revision: str
    """The commit that the branch now stands at, 40 hexadecimal digits."""
    url: str
    """Page of the repository."""
    is_new: bool
    """Whether this push made the commit; False when the hub already held the same bytes."""


@dataclass(frozen=True)
class PlannedFile:
    """One file that a push would send."""

    name: str
    num_bytes: int
    is_changed: bool
    """Whether the hub holds other bytes, or none, under that name."""


def push_to_hub(
    folder: str | Path,
    model_id: str,
    *,
    private: bool | None = None,
    branch: str = "main",
    tag: str | None = None,
    message: str | None = None,
    endpoint: str | None = None,
    token: str | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> Published:
    """Publish a package in one commit; when the hub already holds the same bytes, do nothing.

    Only the three files of the package travel, whatever else the folder holds. On the hub the card's lines of use name
    the model; the folder stays as it is. The same push typed again after a crash or a lost answer ends in exactly one
    commit.

    Args:
        folder: A package folder, or a run folder with one in `model/`.
        model_id: Hub `owner/name`; the repository is made if it does not exist.
        private: Whether others may not see it. None leaves an existing repository as it is and makes a new one public.
        branch: Where the commit goes; made from the main branch if it does not exist.
        tag: Name for the commit that will not move, such as `v1`.
        message: Title of the commit.
        endpoint: Address of the hub; HF_ENDPOINT when none is given.
        token: Key with the right to write; HF_TOKEN or the client's login when none is given.
        wait: Called with seconds between two tries while the hub is busy.

    Raises:
        NotAnEcaModel: the folder holds no whole package.
        InvalidConfig: the repository exists with the other visibility, or a name cannot be one.
        AccessDenied: the token is absent or may not write there.
        PushConflict: somebody else published in between, or the tag stands elsewhere; nothing was changed.
        Offline: the hub does not answer.
    """
    path = _checked_package(folder, model_id, branch, tag)
    api = HfApi(endpoint=endpoint, token=token)
    with hub_errors(model_id, branch), guarded(endpoint, is_push=True):
        _ensure_repository(api, model_id, private)
        if branch != "main":
            api.create_branch(model_id, branch=branch, exist_ok=True)
        tagged = _tagged_commit(api, model_id, tag)
        parent = str(api.model_info(model_id, revision=branch).sha)
        commit = _commit(api, path, model_id, branch, parent, message, wait)
        if tag and tagged is None:
            api.create_tag(model_id, tag=tag, revision=commit)
        elif tag and tagged != commit:
            raise PushConflict(
                f"{model_id} was published as {commit}, but the tag {tag!r} already stands at {tagged}.",
                hint="A tag does not move: give another --tag.",
            )
    return Published(model_id, commit, f"{api.endpoint}/{model_id}", is_new=commit != parent)


def plan_push(
    folder: str | Path,
    model_id: str,
    *,
    branch: str = "main",
    endpoint: str | None = None,
    token: str | None = None,
) -> list[PlannedFile]:
    """Say what a push would send, without changing anything.

    Args:
        folder: A package folder, or a run folder with one in `model/`.
        model_id: Hub `owner/name`.
        branch: Where the commit would go.
        endpoint: Address of the hub; HF_ENDPOINT when none is given.
        token: Key to private repositories.

    Raises:
        NotAnEcaModel: the folder holds no whole package.
        HubError: the hub refuses to say what it holds.
    """
    path = _checked_package(folder, model_id, branch, None)
    api = HfApi(endpoint=endpoint, token=token)
    with hub_errors(model_id, branch), guarded(endpoint):
        try:
            remote = _remote_hashes(api, model_id, branch)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            remote = {}
    texts = _texts(path, model_id)
    changed = _changed_files(path, texts, remote)
    sizes = {WEIGHTS_FILE: (path / WEIGHTS_FILE).stat().st_size, **{name: len(text) for name, text in texts.items()}}
    return [PlannedFile(name, sizes[name], is_changed=name in changed) for name in FILES]


def _checked_package(folder: str | Path, model_id: str, branch: str, tag: str | None) -> Path:
    """Find the package and refuse what nobody could load again."""
    check_model_id(model_id)
    check_revision(branch)
    if tag is not None:
        check_revision(tag)
    path = find_package(folder)
    config_from_json((path / CONFIG_FILE).read_bytes(), origin=str(path))
    try:
        with safetensors.safe_open(path / WEIGHTS_FILE, framework="numpy"):
            pass
    except (safetensors.SafetensorError, OSError) as error:
        raise NotAnEcaModel(f"{path / WEIGHTS_FILE} cannot be read: {error}.") from None
    return path


def _ensure_repository(api: HfApi, model_id: str, private: bool | None) -> None:
    """Make the repository; one that exists must be as visible as was asked, before anything is sent."""
    try:
        is_private = bool(api.model_info(model_id).private)
    except RepositoryNotFoundError:
        api.create_repo(model_id, private=private, exist_ok=True)
        return
    if private is not None and private != is_private:
        is_now, wanted = ("private", "public") if is_private else ("public", "private")
        raise InvalidConfig(
            f"{model_id} exists and is {is_now}, not {wanted}; nothing was sent.",
            hint="Change its visibility on the hub first, or push without saying one.",
        )


def _tagged_commit(api: HfApi, model_id: str, tag: str | None) -> str | None:
    if tag is None:
        return None
    return next((ref.target_commit for ref in api.list_repo_refs(model_id).tags if ref.name == tag), None)


def _commit(
    api: HfApi,
    path: Path,
    model_id: str,
    branch: str,
    parent: str,
    message: str | None,
    wait: Callable[[float], None],
) -> str:
    """Make the commit; a busy hub is asked again, and a commit whose answer was lost is recognised as ours."""
    operations = _stage(api, path, model_id, branch, parent)
    if not operations:
        return parent
    for pause_s in (*_BUSY_RETRIES_S, None):
        try:
            return api.create_commit(
                model_id,
                operations=operations,
                commit_message=message or "Publish a model with eca-hub",
                revision=branch,
                parent_commit=parent,
            ).oid
        except (HfHubHTTPError, httpx2.TransportError) as error:
            status = status_of(error) if isinstance(error, HfHubHTTPError) else None
            if status is None or status == 412 or status >= 500:
                commit = _own_commit(api, path, model_id, branch, parent)
                if commit is not None:
                    return commit
            if status != 409 or pause_s is None:
                raise
            wait(pause_s)
    raise AssertionError("the last try returns or raises")


def _stage(api: HfApi, path: Path, model_id: str, branch: str, parent: str) -> list[CommitOperationAdd]:
    """Upload what the hub does not have, all of it read at one moment; nobody sees it before the commit.

    Text is kept in memory. Weights are read while they are sent, so that a gigabyte is never held, and afterwards no
    file may have changed since the first was looked at.
    """
    before = _signatures(path)
    remote = _remote_hashes(api, model_id, parent)
    texts = _texts(path, model_id)
    changed = _changed_files(path, texts, remote)
    operations = [CommitOperationAdd(name, text) for name, text in texts.items() if name in changed]
    if WEIGHTS_FILE in changed:
        weights = CommitOperationAdd(WEIGHTS_FILE, str(path / WEIGHTS_FILE))
        api.preupload_lfs_files(model_id, additions=[weights], revision=branch)
        operations.append(weights)
    if _signatures(path) != before:
        raise HubError(f"{path} changed while it was read; nothing was published.", hint="Push again when it is done.")
    return operations


def _signatures(path: Path) -> list[tuple[int, int, int]]:
    """What changes when somebody writes to the files."""
    states = [(path / name).stat() for name in FILES]
    return [(state.st_ino, state.st_size, state.st_mtime_ns) for state in states]


def _own_commit(api: HfApi, path: Path, model_id: str, branch: str, parent: str) -> str | None:
    """Return the head of the branch if it is our commit: one on top of the parent, with exactly our bytes."""
    history = [commit.commit_id for commit in api.list_repo_commits(model_id, revision=branch)[:2]]
    if len(history) < 2 or history[1] != parent:
        return None
    changed = _changed_files(path, _texts(path, model_id), _remote_hashes(api, model_id, history[0]))
    return None if changed else history[0]


def _texts(path: Path, model_id: str) -> dict[str, bytes]:
    """What the hub gets besides weights; the card's lines of use name the model, which the folder cannot know."""
    card = name_model((path / CARD_FILE).read_bytes(), model_id)
    return {CONFIG_FILE: (path / CONFIG_FILE).read_bytes(), CARD_FILE: card}


def _changed_files(path: Path, texts: dict[str, bytes], remote: dict[str, str]) -> set[str]:
    """Name the files of which the hub holds other bytes, or none."""
    changed = {name for name, text in texts.items() if git_or_lfs_hash(text, remote.get(name, "")) != remote.get(name)}
    return changed if has_hash(path / WEIGHTS_FILE, remote.get(WEIGHTS_FILE, "")) else {*changed, WEIGHTS_FILE}


def _remote_hashes(api: HfApi, model_id: str, revision: str) -> dict[str, str]:
    entries = api.get_paths_info(model_id, list(FILES), revision=revision)
    files = [entry for entry in entries if isinstance(entry, RepoFile)]
    return {entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id for entry in files}
