"""Packages to and from a hub, through the unmodified huggingface_hub client.

Pulling resolves the revision to a commit once, fetches every file by that commit, and checks the bytes against the hash
under which the hub announced them. Publishing is one commit on top of a known parent. Needs no torch.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from eca_hub.errors import (
    AccessDenied,
    ChecksumMismatch,
    HubError,
    InvalidConfig,
    NotAnEcaModel,
    Offline,
    PushConflict,
    RepoNotFound,
    RevisionNotFound,
)
from eca_hub.hub.package import CONFIG_FILE, FILES, WEIGHTS_FILE, Package, config_from_json, find_package, read_folder


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


def pull(
    id_or_folder: str | Path, revision: str | None = None, *, endpoint: str | None = None, token: str | None = None
) -> Package:
    """Read a package from a folder, or from the hub through the client's cache.

    Args:
        id_or_folder: A folder that exists, else `owner/name`.
        revision: Branch, tag or commit of the hub repository.
        endpoint: Address of the hub; HF_ENDPOINT when none is given.
        token: Key to private repositories; HF_TOKEN or the client's login when none is given.

    Raises:
        HubError: the package is not to be had, or its bytes are not what the hub announced.
    """
    if isinstance(id_or_folder, Path) or Path(id_or_folder).is_dir():
        return read_folder(id_or_folder)
    model_id = id_or_folder
    _check_model_id(model_id)

    def fetch(name: str, at: str) -> Path:
        return Path(hf_hub_download(model_id, name, revision=at, endpoint=endpoint, token=token))

    with _hub_errors(model_id, revision):
        config_path = fetch(CONFIG_FILE, revision or "main")
        commit = config_path.parent.name
        weights_path = fetch(WEIGHTS_FILE, commit)
    return Package(model_id, commit, _checked_bytes(config_path), _checked_bytes(weights_path))


def push_to_hub(
    folder: str | Path,
    model_id: str,
    *,
    private: bool | None = None,
    message: str | None = None,
    endpoint: str | None = None,
    token: str | None = None,
) -> Published:
    """Publish a package in one commit; when the hub already holds the same bytes, do nothing.

    Only the three files of the package travel, whatever else the folder holds.

    Args:
        folder: A package folder, or a run folder with one in `model/`.
        model_id: Hub `owner/name`; the repository is made if it does not exist.
        private: Whether a new repository is hidden from others.
        message: Title of the commit.
        endpoint: Address of the hub; HF_ENDPOINT when none is given.
        token: Key with the right to write; HF_TOKEN or the client's login when none is given.

    Raises:
        NotAnEcaModel: the folder holds no whole package.
        AccessDenied: the token is absent or may not write there.
        PushConflict: somebody else published in between; nothing was changed.
        Offline: the hub does not answer.
    """
    _check_model_id(model_id)
    path = find_package(folder)
    config_from_json((path / CONFIG_FILE).read_bytes(), origin=str(path))
    api = HfApi(endpoint=endpoint, token=token)
    with _hub_errors(model_id, None):
        api.create_repo(model_id, private=private, exist_ok=True)
        parent = api.model_info(model_id).sha
        commit = api.create_commit(
            model_id,
            operations=[CommitOperationAdd(path_in_repo=name, path_or_fileobj=path / name) for name in FILES],
            commit_message=message or "Publish a model with eca-hub",
            parent_commit=parent,
        )
    return Published(model_id, commit.oid, f"{api.endpoint}/{model_id}", is_new=commit.oid != parent)


def _check_model_id(model_id: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", model_id, re.ASCII):
        raise InvalidConfig(
            f"{model_id!r} is neither a folder nor OWNER/NAME.",
            hint="Names are letters, digits, '.', '_' and '-', as in acme/eca_resnet50.",
        )


def _checked_bytes(path: Path) -> bytes:
    """Read a file of the client's cache once and compare it with the hash that its blob is named by."""
    content = path.read_bytes()
    announced = path.resolve().name
    if len(announced) == 64:
        actual = hashlib.sha256(content).hexdigest()
    else:
        # The hub names small text files as git does.
        actual = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    if actual != announced:
        raise ChecksumMismatch(
            f"{path.name} in the cache hashes to {actual[:12]}..., the hub announced {announced[:12]}....",
            hint=f"Delete {path.resolve()} and pull again.",
        )
    return content


@contextmanager
def _hub_errors(model_id: str, revision: str | None) -> Iterator[None]:
    """Turn what the client raises into our tree."""
    login = "If it is private, set HF_TOKEN."
    try:
        yield
    except RepositoryNotFoundError:
        raise RepoNotFound(
            f"The hub shows no repository {model_id!r}: it does not exist, or is private.", hint=login
        ) from None
    except RevisionNotFoundError:
        raise RevisionNotFound(f"{model_id} has no branch, tag or commit {revision or 'main'!r}.") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx2.TransportError) as error:
        raise Offline(
            f"The hub does not answer, and the cache does not hold {model_id}: {_first_line(error)}",
            hint="HF_ENDPOINT names the hub, HF_HUB_OFFLINE=1 forbids asking it.",
        ) from None
    except EntryNotFoundError as error:
        raise NotAnEcaModel(
            f"{model_id} is no package: {_first_line(error)}", hint=f"A package is {', '.join(FILES)}."
        ) from None
    except HFValidationError as error:
        raise InvalidConfig(_first_line(error)) from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise AccessDenied(
                f"The hub refused {model_id} ({status}): {_first_line(error)}", hint="Set HF_TOKEN to a key that may."
            ) from None
        if status in (409, 412):
            raise PushConflict(
                f"{model_id} changed while this was published; nothing was written.", hint="Pull, look, and push again."
            ) from None
        raise HubError(f"The hub answered {status} for {model_id}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
