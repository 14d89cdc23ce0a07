"""From a hub or a folder to the checked bytes of a package, through the unmodified client and its cache.

The revision is resolved to a commit once, every file is fetched by that commit, and its bytes are read once and
compared with the hash under which the hub announced them. Needs no torch.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.hf_api import RepoFile

from eca_hub.errors import ChecksumMismatch, HubError, Offline
from eca_hub.hub.client import check_model_id, check_revision, hub_errors, is_commit
from eca_hub.hub.hashes import digest_for, git_or_lfs_hash, read_hashed
from eca_hub.hub.http_limits import MAX_BYTES, guarded
from eca_hub.hub.package import (
    CARD_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    Package,
    check_new_folder,
    new_folder,
    read_folder,
)

MAX_TEXT_BYTES = 16 << 20
"""No config.json and no model card is longer."""
_BROKEN_RETRIES = 2


@dataclass(frozen=True)
class Fetched:
    """A file in the client's cache."""

    path: Path
    announced: str
    """The hash that the hub announced for it."""


Fetch = Callable[[str, str, bool], Fetched]
"""Called with a file's name, a revision, and whether to fetch it even if the cache has it."""


def pull(
    id_or_folder: str | Path, revision: str | None = None, *, endpoint: str | None = None, token: str | None = None
) -> Package:
    """Read a package from a folder, or from the hub through the client's cache.

    A file that is damaged in the cache is fetched once more; one that arrives damaged is refused and forgotten.

    Args:
        id_or_folder: A folder that exists, else `owner/name`.
        revision: Branch, tag or commit of the hub repository; the main branch when none is given.
        endpoint: Address of the hub; HF_ENDPOINT when none is given.
        token: Key to private repositories; HF_TOKEN or the client's login when none is given.

    Raises:
        HubError: the package is not to be had, or its bytes are not what the hub announced.
        InvalidConfig: the name or the revision cannot be one.
    """
    if is_folder(id_or_folder):
        return read_folder(id_or_folder)
    assert isinstance(id_or_folder, str)
    fetch = _fetcher(id_or_folder, revision, endpoint, token)
    commit, config_bytes = _resolve(fetch, revision or "main")
    weights_bytes = _fetch_checked(fetch, WEIGHTS_FILE, commit)
    return Package(id_or_folder, commit, config_bytes, weights_bytes)


def is_folder(id_or_folder: str | Path) -> bool:
    """Whether a package is looked for on this disk, not on a hub."""
    return isinstance(id_or_folder, Path) or Path(id_or_folder).is_dir()


def pull_to(
    model_id: str,
    folder: str | Path,
    revision: str | None = None,
    *,
    endpoint: str | None = None,
    token: str | None = None,
) -> str:
    """Copy a package from the hub to a new folder, which appears whole or not at all; return its commit.

    Args:
        model_id: Hub `owner/name`.
        folder: Where to; new or empty.
        revision: Branch, tag or commit; the main branch when none is given.
        endpoint: Address of the hub; HF_ENDPOINT when none is given.
        token: Key to private repositories.

    Raises:
        HubError: the package is not to be had, or its bytes are not what the hub announced.
        InvalidConfig: the name or the revision cannot be one, or the folder is not empty.
    """
    check_new_folder(folder)
    fetch = _fetcher(model_id, revision, endpoint, token)
    commit, config_bytes = _resolve(fetch, revision or "main")
    with new_folder(folder) as draft:
        (draft / CONFIG_FILE).write_bytes(config_bytes)
        for name in (WEIGHTS_FILE, CARD_FILE):
            (draft / name).write_bytes(_fetch_checked(fetch, name, commit))
    return commit


def _fetcher(model_id: str, revision: str | None, endpoint: str | None, token: str | None) -> Fetch:
    check_model_id(model_id)
    if revision is not None:
        check_revision(revision)

    def fetch(name: str, at: str, again: bool) -> Fetched:
        max_bytes = MAX_BYTES if name == WEIGHTS_FILE else MAX_TEXT_BYTES
        with hub_errors(model_id, revision), guarded(endpoint, max_bytes):
            path = _downloaded(
                lambda: hf_hub_download(
                    model_id, name, revision=at, endpoint=endpoint, token=token, force_download=again
                )
            )
            commit = path.parent.name
            if not is_commit(commit) or (is_commit(at) and at != commit):
                raise HubError(f"The hub was asked for {model_id} at {at} and sent {commit[:40]!r}.")
            if path.is_symlink():
                return Fetched(path, announced=path.resolve().name)
            # On a disk without links the cache keeps no hashes, so ask the hub which it announced.
            [entry] = HfApi(endpoint=endpoint, token=token).get_paths_info(model_id, [name], revision=commit)
            assert isinstance(entry, RepoFile)
            return Fetched(path, announced=entry.lfs.sha256 if entry.lfs else entry.blob_id)

    return fetch


def _downloaded(download: Callable[[], str]) -> Path:
    """Ask again when the connection breaks before an answer begins; the client does so in other cases only."""
    for _ in range(_BROKEN_RETRIES):
        with contextlib.suppress(httpx2.ReadError, httpx2.WriteError):
            return Path(download())
    return Path(download())


def _resolve(fetch: Fetch, revision: str) -> tuple[str, bytes]:
    """Fetch config.json by a name that may move; the commit that it came from is what all else is fetched by.

    Asking for a file rather than for the commit costs one request less, and makes the cache remember which commit the
    name stood for, so that the same name works without the hub.
    """
    commit = fetch(CONFIG_FILE, revision, False).path.parent.name
    return commit, bytes(_fetch_checked(fetch, CONFIG_FILE, commit))


def _fetch_checked(fetch: Fetch, name: str, commit: str) -> memoryview:
    """Read a file once, and compare what was read with what the hub announced."""
    fetched = fetch(name, commit, False)
    content, actual = _read(fetched)
    if actual == fetched.announced:
        return content
    try:
        # The client takes a forced download in offline mode for a mistake in the program.
        if constants.HF_HUB_OFFLINE:
            raise Offline("HF_HUB_OFFLINE forbids asking the hub.")
        fetched = fetch(name, commit, True)
    except Offline:
        raise ChecksumMismatch(
            f"{name} at {commit[:12]} is damaged in the cache, and the hub does not answer.",
            hint="Pull again when it does.",
        ) from None
    content, actual = _read(fetched)
    if actual == fetched.announced:
        return content
    fetched.path.resolve().unlink(missing_ok=True)
    raise ChecksumMismatch(
        f"{name} at {commit[:12]} hashes to {actual[:12]}, but the hub announced {fetched.announced[:12]}.",
        hint="It was refused and removed from the cache. Ask the owner of the repository, or of the hub.",
    )


def _read(fetched: Fetched) -> tuple[memoryview, str]:
    """Read a file of the cache; one that cannot be read is as damaged as an empty one."""
    try:
        digest = digest_for(fetched.announced, fetched.path.stat().st_size)
        return read_hashed(fetched.path, digest), digest.hexdigest()
    except OSError:
        return memoryview(b""), git_or_lfs_hash(b"", fetched.announced)
