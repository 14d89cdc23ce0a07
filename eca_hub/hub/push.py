"""Publish a package folder in one commit, through the unmodified huggingface_hub. Imports no torch.

Readers see the commit before or the commit after, never a mix: all files are in one commit on top of a parent that was
looked up first.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from logging import ERROR
from pathlib import Path
from typing import Literal

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session, get_token, logging
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from eca_hub.errors import AccessDenied, HubError, InvalidConfig, PushConflict
from eca_hub.hub.client import check_model_id, clean_token, hub_errors, is_on_this_machine, status_of
from eca_hub.hub.hashes import hash_like_hub
from eca_hub.hub.http_limits import limit_requests
from eca_hub.hub.package import CARD_FILE, WEIGHTS_FILE
from eca_hub.hub.push_files import PushFiles, check_names, remote_hashes

_BUSY_RETRIES_S = (0.5, 1.0, 2.0, 4.0)

# In place of the repository's .gitignore, by which the client would silently omit files from the commit. A
# comment, as a hub may take an empty one for none.
_IGNORE_NOTHING = "# Every file of a package is published.\n"

RefKind = Literal["branch", "tag"]
CommitOperation = CommitOperationAdd | CommitOperationDelete


@dataclass(frozen=True)
class PushResult:
    """State of the hub after a push."""

    model_id: str
    """Hub `owner/name`."""
    revision: str
    """The commit that the branch is at, 40 hexadecimal digits."""
    url: str
    """Address of the repository's page."""
    is_new: bool
    """Whether this push made the commit; False when the hub already had the same bytes."""


def push_folder(
    folder: str | Path,
    model_id: str,
    *,
    private: bool | None = None,
    branch: str = "main",
    tag: str | None = None,
    message: str | None = None,
    license: str | None = None,
    endpoint: str | None = None,
    token: str | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> PushResult:
    """Publish a package in one commit; when the hub already has the same bytes, do nothing.

    Only the files of the package and the plots that its card shows are sent, whatever else is in the folder; other
    plots of an earlier push are deleted on the hub. On the hub the card's usage section names the model, and a package
    without a card gets one; the folder itself stays as it is. Repeating a push after a crash or a lost response ends in
    exactly one commit.

    Args:
        folder: A package folder, or a run folder with one in `model/`.
        model_id: Hub `owner/name`; the repository is made if it does not exist.
        private: Whether to hide it from others. None leaves an existing repository as it is and makes a new one public.
        branch: Branch for the commit; made from the main branch if it does not exist.
        tag: Tag for the commit, such as `v1`; tags do not move.
        message: Title of the commit.
        license: License of the weights for the card, as the Hub spells it; the card's own when not given.
        endpoint: Address of the hub; HF_ENDPOINT when none is given.
        token: Key with the right to write; HF_TOKEN or the client's login when none is given.
        wait: Called with the seconds between two attempts while the hub is busy.

    Raises:
        InvalidPackage: the folder holds no complete package.
        InvalidConfig: the repository exists with the other visibility, a name is malformed, or the hub refuses the
            metadata of the card.
        AccessDenied: the token is absent or may not write there.
        PushConflict: another commit was published in between, or the tag is taken; nothing was changed.
        HubUnavailable: the hub does not respond.
    """
    check_names(model_id, branch, tag)
    source = PushFiles(folder, model_id, license)
    api = HfApi(endpoint=endpoint, token=clean_token(token))
    with hub_errors(model_id, branch, is_push=True), limit_requests(endpoint, is_push=True):
        # Before a repository or a branch is made for it.
        _validate_card(api, source.read_small_files()[CARD_FILE])
        _ensure_repository(api, model_id, private)
        tagged = _tagged_commit(api, model_id, tag)
        if tagged is not None:
            _check_tag(api, source, model_id, branch, f"{tag}", tagged)
        if branch != "main":
            _check_branch(api, model_id, branch)
            api.create_branch(model_id, branch=branch, exist_ok=True)
        parent = str(api.model_info(model_id, revision=branch).sha)
        commit = _commit(api, source, model_id, branch, parent, message, wait)
        if tag and tagged is None:
            _create_tag(api, model_id, tag, commit)
    return PushResult(model_id, commit, f"{api.endpoint}/{model_id}", is_new=commit != parent)


def check_push_access(model_id: str, *, endpoint: str | None = None, token: str | None = None) -> None:
    """Check that a model can be published, before the work that makes it; nothing is changed on the hub.

    Args:
        model_id: Hub `owner/name`.
        endpoint: Address of the hub; HF_ENDPOINT when none is given.
        token: Key with the right to write; HF_TOKEN or the client's login when none is given.

    Raises:
        InvalidConfig: the name is malformed.
        AccessDenied: the token is absent, is refused, or may not write there.
        HubUnavailable: the hub does not respond.
    """
    check_model_id(model_id)
    with hub_errors(model_id, is_push=True):
        has_token = bool(clean_token(token) or get_token())
    if not has_token:
        raise AccessDenied(
            f"There is no token to publish {model_id} with.", hint="Set HF_TOKEN, or run `hf auth login`."
        )
    api = HfApi(endpoint=endpoint, token=clean_token(token))
    with hub_errors(model_id, is_push=True), limit_requests(endpoint):
        user = api.whoami()
        role = user.get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise AccessDenied(
                f"The token of {user['name']} may not write, so {model_id} cannot be published.",
                hint="Set HF_TOKEN to a key with the right to write.",
            )
        try:
            api.auth_check(model_id, write=True)
        except RepositoryNotFoundError:
            # It will be made: below the user's own name, or an organization's.
            owners = [str(user["name"]), *(str(org["name"]) for org in user.get("orgs", []))]
            if role != "admin" and model_id.partition("/")[0].lower() not in [owner.lower() for owner in owners]:
                raise AccessDenied(
                    f"{user['name']} may not publish as {model_id}.", hint=f"Allowed owners: {', '.join(owners)}."
                ) from None


def _ensure_repository(api: HfApi, model_id: str, private: bool | None) -> None:
    """Make the repository, or check that an existing one has the requested visibility, before anything is sent."""
    try:
        is_private = bool(api.model_info(model_id).private)
    except RepositoryNotFoundError:
        api.create_repo(model_id, private=private, exist_ok=True)
        return
    if private is not None and private != is_private:
        is_now, wanted = ("private", "public") if is_private else ("public", "private")
        raise InvalidConfig(
            f"{model_id} exists and is {is_now}, not {wanted}; nothing was sent.",
            hint="Change its visibility on the hub first, or push without --private and --public.",
        )


def _tagged_commit(api: HfApi, model_id: str, tag: str | None) -> str | None:
    """Return the commit of an existing tag, and refuse a name that cannot exist beside another one."""
    if tag is None:
        return None
    refs = api.list_repo_refs(model_id)
    for ref in refs.branches:
        _check_beside(model_id, "tag", tag, "branch", ref.name)
    for ref in refs.tags:
        if ref.name == tag:
            return ref.target_commit
        _check_beside(model_id, "tag", tag, "tag", ref.name)
    return None


def _check_branch(api: HfApi, model_id: str, branch: str) -> None:
    """Refuse a new branch that cannot exist beside another name, before anything is sent."""
    refs = api.list_repo_refs(model_id)
    if branch in [ref.name for ref in refs.branches]:
        return
    for ref in refs.tags:
        _check_beside(model_id, "branch", branch, "tag", ref.name)
    for ref in refs.branches:
        _check_beside(model_id, "branch", branch, "branch", ref.name)


def _check_beside(model_id: str, kind: RefKind, name: str, other_kind: RefKind, other: str) -> None:
    """Refuse a new branch or tag that cannot exist beside another one.

    Of a branch and a tag with one name, a request for the tag would get the branch, which moves.
    """
    if kind != other_kind and name == other:
        reason = f"a {other_kind} {name!r}, and the name would mean both"
    elif kind == other_kind and _collide(other, name):
        reason = f"the {kind} {other!r}, beside which {name!r} cannot exist where names are files"
    else:
        return
    raise PushConflict(f"{model_id} has {reason}; nothing was published.", hint=f"Give another --{kind}.")


def _collide(name: str, other: str) -> bool:
    """Return whether two refs are equal but for case, or one is a folder of the other: git stores them in one place."""
    name, other = f"{name.casefold()}/", f"{other.casefold()}/"
    return name.startswith(other) or other.startswith(name)


def _check_tag(api: HfApi, source: PushFiles, model_id: str, branch: str, tag: str, tagged: str) -> None:
    """Check, before anything is sent, that an existing tag is at a commit with exactly these bytes."""
    try:
        head = api.model_info(model_id, revision=branch).sha
    except RevisionNotFoundError:
        branch = "main"
        head = api.model_info(model_id).sha
    if source.changed_files(remote_hashes(api, model_id, tagged)):
        reason = "with other files"
    elif tagged != head:
        reason = f"which is not the last commit of {branch}"
    else:
        return
    raise PushConflict(
        f"The tag {tag!r} of {model_id} exists, at {tagged}, {reason}; nothing was published.",
        hint="Tags do not move: give another --tag.",
    )


def _create_tag(api: HfApi, model_id: str, tag: str, commit: str) -> None:
    try:
        api.create_tag(model_id, tag=tag, revision=commit)
    except HfHubHTTPError as error:
        if status_of(error) != 409:
            raise
        raise PushConflict(
            f"{model_id} was published as {commit}, but another push made the tag {tag!r} in between.",
            hint="Tags do not move: push again with another --tag.",
        ) from None


def _commit(
    api: HfApi,
    source: PushFiles,
    model_id: str,
    branch: str,
    parent: str,
    message: str | None,
    wait: Callable[[float], None],
) -> str:
    """Upload what the hub does not have, and make the commit; return the parent if the hub has everything."""
    # Open until the commit, in which the client sends a file that a hub does not count as large.
    with source.weights_path.open("rb") as weights:
        operations = _stage(api, source, weights, model_id, branch, parent)
        if not operations:
            return parent
        commit = _create_commit(api, source, operations, model_id, branch, parent, message, wait)
        _check_complete(api, operations, model_id, commit)
    return commit


def _check_complete(api: HfApi, operations: list[CommitOperation], model_id: str, commit: str) -> None:
    """Check that the commit has every file that was sent: the hub's response marks files that the client omits."""
    try:
        remote = remote_hashes(api, model_id, commit)
    except (HfHubHTTPError, httpx2.TransportError):
        # The commit is made: that it cannot be read back now is no reason to report it as failed.
        return
    additions = [operation for operation in operations if isinstance(operation, CommitOperationAdd)]
    missing = [each.path_in_repo for each in additions if not _has_hash(each, remote.get(each.path_in_repo, ""))]
    if missing:
        raise HubError(
            f"{model_id} was published as {commit} without {', '.join(missing)}: the hub left them out.",
            hint="Do not use this commit. Look for a .gitignore in the repository, and push again.",
        )


def _has_hash(addition: CommitOperationAdd, announced: str) -> bool:
    """Return whether a file that was sent has the hash that the hub announces for it."""
    if len(announced) == 64:
        return addition.upload_info.sha256.hex() == announced
    with addition.as_file() as file:
        return hash_like_hub(file.read(), announced) == announced


def _create_commit(
    api: HfApi,
    source: PushFiles,
    operations: list[CommitOperation],
    model_id: str,
    branch: str,
    parent: str,
    message: str | None,
    wait: Callable[[float], None],
) -> str:
    """Make the commit: retry while the hub is busy, and recognize our own commit whose response was lost."""
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
                commit = _own_commit(api, source, model_id, branch, parent)
                if commit is not None:
                    return commit
            if status != 409 or pause_s is None:
                raise
            wait(pause_s)
    raise AssertionError("the last attempt returns or raises")


def _stage(
    api: HfApi, source: PushFiles, weights: BufferedReader, model_id: str, branch: str, parent: str
) -> list[CommitOperation]:
    """Upload what the hub does not have, from one state of the folder; nothing is visible before the commit.

    Small files are kept in memory. Weights are read while they are sent, so that no second gigabyte is in memory, and
    afterwards the files must not have changed since the start.
    """
    before = source.signatures()
    remote = remote_hashes(api, model_id, parent)
    small = source.read_small_files()
    changed = source.changed_files(remote)
    by_lfs = _is_sent_by_lfs(api)
    additions = [
        CommitOperationAdd(name, BytesIO(content) if by_lfs else content)
        for name, content in small.items()
        if name in changed
    ]
    if WEIGHTS_FILE in changed:
        additions.append(CommitOperationAdd(WEIGHTS_FILE, weights if by_lfs else weights.name))
    _upload(api, additions, model_id, branch)
    if source.signatures() != before:
        raise HubError(
            f"{source.path} changed while it was read; nothing was published.", hint="Push again when it is complete."
        )
    return [*(CommitOperationDelete(name) for name in source.stale_plots(remote)), *additions]


def _is_sent_by_lfs(api: HfApi) -> bool:
    """Return whether files are sent as open ones, by LFS, and not as a path or bytes, by Xet.

    The client sends a path by Xet, in chunks of which a hub may have some already, and an open file by LFS, as it is.
    To a hub on this machine there is no network to spare, and making and joining chunks takes longer than the whole
    transfer by LFS: `experiments/bench/hub.py` measures both.
    """
    return is_on_this_machine(api.endpoint)


def _upload(api: HfApi, additions: list[CommitOperationAdd], model_id: str, branch: str) -> None:
    """Upload the large files, which no reader sees before the commit, and mark how the client commits each file."""
    verbosity = logging.get_verbosity()
    if _is_sent_by_lfs(api):
        # The client warns that it does not send an open file by Xet.
        logging.set_verbosity(ERROR)
    try:
        for addition in additions:
            # One at a time: the client uploads several in threads of its own, where `limit_requests` has no effect.
            api.preupload_lfs_files(model_id, additions=[addition], revision=branch, gitignore_content=_IGNORE_NOTHING)
    finally:
        logging.set_verbosity(verbosity)


def _validate_card(api: HfApi, card: bytes) -> None:
    """Let the hub check the card's metadata before anything is made or sent; the commit would be refused afterwards."""
    key = get_token() if api.token in (None, True) else api.token
    response = get_session().post(
        f"{api.endpoint}/api/validate-yaml",
        json={"content": card.decode("utf-8"), "repoType": "model"},
        headers={"authorization": f"Bearer {key}"} if key else {},
    )
    if response.status_code == 400:
        errors = response.json().get("errors", [])
        reasons = "; ".join(str(error.get("message")) for error in errors) or "no reason given"
        raise InvalidConfig(
            f"The hub refuses the metadata of the model card README.md: {reasons[:400]}. Nothing was published.",
            hint="Correct it between the --- lines.",
        )


def _own_commit(api: HfApi, source: PushFiles, model_id: str, branch: str, parent: str) -> str | None:
    """Return the head of the branch if it is our commit: a child of the parent with exactly our bytes."""
    history = [commit.commit_id for commit in api.list_repo_commits(model_id, revision=branch)[:2]]
    if len(history) < 2 or history[1] != parent:
        return None
    changed = source.changed_files(remote_hashes(api, model_id, history[0]))
    return None if changed else history[0]
