"""Download a package through huggingface_hub and its cache, and check its bytes. Imports no torch.

The revision is resolved to a commit once, every file is downloaded by that commit, and its bytes are read once, large
files while they are downloaded, and compared with the hash that the hub announced.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoFile

from eca_hub.atomic import make_folder, write_atomic
from eca_hub.errors import ChecksumMismatch, HubError, HubUnavailable, InvalidConfig, InvalidPackage
from eca_hub.hub.client import (
    HUB_PREFIXES,
    check_model_id,
    clean_token,
    hub_errors,
    parse_model_id,
)
from eca_hub.hub.download_reader import DownloadReader
from eca_hub.hub.hashes import HASH, file_has_hash, hash_like_hub, new_hasher, read_and_hash
from eca_hub.hub.http_limits import MAX_BYTES, limit_requests
from eca_hub.hub.package import (
    CARD_FILE,
    CONFIG_FILE,
    PICKLE_SUFFIXES,
    WEIGHTS_FILE,
    Package,
    check_new_folder,
    find_package,
    folder_named,
    foreign_config,
    is_file,
    is_folder,
    is_package_config,
    new_folder,
    plots_in,
    read_file,
    read_folder,
)
from eca_hub.names import is_commit
from eca_hub.releases import release_folder

MAX_TEXT_BYTES = 16 << 20
"""Longest config.json and model card."""
_CONNECTION_RETRIES = 2


@dataclass(frozen=True)
class CachedFile:
    """A file in the client's cache."""

    path: Path
    announced: str
    """The hash that the hub announced for it."""
    content: memoryview | None = None
    """Its bytes, if they were read while it was downloaded and have the announced hash."""


Download = Callable[[str, str, bool], CachedFile]
"""Called with the name of a file, a revision, and whether to download it even if the cache has it."""


def pull(
    id_or_folder: str | Path, revision: str | None = None, *, endpoint: str | None = None, token: str | None = None
) -> Package:
    """Read a package from a folder, or from the hub through the client's cache.

    A file that is damaged in the cache is downloaded once more; one that arrives damaged is refused and removed.

    Args:
        id_or_folder: A folder that exists, a name of `eca_hub.releases`, else `owner/name`, `owner/name@revision` or
            the address of its page; `hf-hub:owner/name` is that repository even where a folder has its name.
        revision: Branch, tag or commit of the hub repository; the main branch when none is given.
        endpoint: Address of the hub; HF_ENDPOINT when none is given.
        token: Key to private repositories; HF_TOKEN or the client's login when none is given.

    Raises:
        HubError: the package cannot be downloaded, or its bytes are not what the hub announced.
        InvalidConfig: the name or the revision is malformed.
    """
    if is_local(id_or_folder):
        if revision is not None:
            raise InvalidConfig(
                f"{id_or_folder} is a folder, which has no revisions, and revision {revision!r} is given.",
                hint="Leave out the revision.",
            )
        return read_folder(id_or_folder)
    model_id, revision = parse_model_id(str(id_or_folder), revision, endpoint=endpoint)
    token = clean_token(token)
    download = _downloader(model_id, revision, endpoint, token)
    commit, config_bytes = _resolve(download, model_id, revision or "main")
    try:
        weights_bytes = _read_checked(download, WEIGHTS_FILE, commit)
    except InvalidPackage:
        raise _no_weights(model_id, commit, endpoint, token) from None
    return Package(model_id, commit, config_bytes, weights_bytes)


def _no_weights(model_id: str, commit: str, endpoint: str | None, token: str | None) -> InvalidPackage:
    """Name the pickle that a repository has instead of safetensors."""
    with hub_errors(model_id, commit), limit_requests(endpoint):
        names = HfApi(endpoint=endpoint, token=token).list_repo_files(model_id, revision=commit)
    pickles = sorted(name for name in names if name.endswith(PICKLE_SUFFIXES))
    if not pickles:
        return InvalidPackage(f"{model_id} has no {WEIGHTS_FILE}; a package needs {CONFIG_FILE} and {WEIGHTS_FILE}.")
    return InvalidPackage(
        f"{model_id} has no {WEIGHTS_FILE}, only {pickles[0]}, which is not read: a pickle can run code.",
        hint=f"Download it and convert it: hf download {model_id} --local-dir DIR; "
        f"eca-hub convert DIR/{pickles[0]} --to NEW_FOLDER",
    )


def is_local(id_or_folder: str | Path) -> bool:
    """Return whether a package is read from this disk, not from a hub: a folder, or a release of this library.

    Raises:
        InvalidPackage: it is a file, or a folder above it may not be searched.
    """
    if isinstance(id_or_folder, str) and id_or_folder.startswith(HUB_PREFIXES):
        return False
    path = folder_named(id_or_folder)
    if is_folder(path):
        return True
    if is_file(path):
        raise InvalidPackage(f"{path} is a file; a package is a folder.", hint=f"Give its folder: {path.parent}")
    return isinstance(id_or_folder, Path) or release_folder(id_or_folder) is not None


def read_card(id_or_folder: str | Path) -> bytes:
    """Return the model card of a package; empty if it has none.

    Args:
        id_or_folder: As for `pull`, on the hub that HF_ENDPOINT names.

    Raises:
        HubError: the hub refuses it, or its bytes are not what the hub announced.
        InvalidPackage: there is one in the folder that cannot be read.
    """
    if is_local(id_or_folder):
        path = find_package(id_or_folder) / CARD_FILE
        return read_file(path) if is_file(path) else b""
    model_id, revision = parse_model_id(str(id_or_folder))
    return _read_optional(_downloader(model_id, revision, None, None), CARD_FILE, revision or "main")


def pull_to(
    model_id: str,
    folder: str | Path,
    revision: str | None = None,
    *,
    endpoint: str | None = None,
    token: str | None = None,
) -> str:
    """Copy a package to a new folder, atomically; return its commit, or the hash of one from this disk.

    Args:
        model_id: As for `pull`.
        folder: Where to; new or empty.
        revision: Branch, tag or commit; the main branch when none is given.
        endpoint: Address of the hub; HF_ENDPOINT when none is given.
        token: Key to private repositories.

    Raises:
        HubError: the package cannot be downloaded, or its bytes are not what the hub announced.
        InvalidConfig: the name or the revision is malformed, or the folder is not empty.
    """
    check_new_folder(folder)
    if is_local(model_id):
        package = pull(model_id, revision)
        source = find_package(model_id)
        with new_folder(folder) as draft:
            (draft / CONFIG_FILE).write_bytes(package.config_bytes)
            (draft / WEIGHTS_FILE).write_bytes(package.weights_bytes)
            if card := read_card(model_id):
                (draft / CARD_FILE).write_bytes(card)
            for name in plots_in(card):
                if is_file(source / name):
                    (draft / name).write_bytes(read_file(source / name))
            # Of the copy: the card may have changed since the first read.
            return read_folder(draft).revision
    model_id, revision = parse_model_id(model_id, revision, endpoint=endpoint)
    download = _downloader(model_id, revision, endpoint, clean_token(token))
    commit, config_bytes = _resolve(download, model_id, revision or "main")
    with new_folder(folder) as draft:
        (draft / CONFIG_FILE).write_bytes(config_bytes)
        (draft / WEIGHTS_FILE).write_bytes(_read_checked(download, WEIGHTS_FILE, commit))
        card = _read_optional(download, CARD_FILE, commit)
        plots = {name: _read_optional(download, name, commit) for name in plots_in(card)}
        for name, content in {CARD_FILE: card, **plots}.items():
            if content:
                (draft / name).write_bytes(content)
    return commit


def _read_optional(download: Download, name: str, commit: str) -> bytes:
    """Read the card or a plot; empty if there is none.

    The hub has none for some repositories that timm wrote, and the cache none if it holds only what loading needs and
    the hub does not respond.
    """
    try:
        return bytes(_read_checked(download, name, commit))
    except (InvalidPackage, HubUnavailable):
        return b""


def _downloader(model_id: str, revision: str | None, endpoint: str | None, token: str | None) -> Download:
    blobs = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=model_id, repo_type="model"), "blobs")

    def download(name: str, at: str, again: bool) -> CachedFile:
        try:
            with DownloadReader(blobs) as reader:
                cached = download_to_cache(name, at, again, reader)
        except HubError as error:
            ref = blobs.parent / "refs" / at
            if type(error) in (HubError, HubUnavailable) and _is_damaged_ref(ref):
                raise HubUnavailable(
                    f"The cache is damaged: {ref} holds no commit, and the hub gave none.",
                    hint="Pull again when the hub responds, which writes it anew.",
                ) from None
            raise
        content, digest = reader.result or (None, "")
        return replace(cached, content=content) if digest == cached.announced else cached

    def download_to_cache(name: str, at: str, again: bool, reader: DownloadReader) -> CachedFile:
        max_bytes = MAX_BYTES if name == WEIGHTS_FILE else MAX_TEXT_BYTES
        with hub_errors(model_id, revision), limit_requests(endpoint, max_bytes, reader=reader):
            path = _retry_connection(
                lambda: hf_hub_download(
                    model_id, name, revision=at, endpoint=endpoint, token=token, force_download=again
                )
            )
            commit = path.parent.name
            if not is_commit(commit) or (is_commit(at) and at != commit):
                raise HubError(f"The hub returned commit {commit[:40]!r} of {model_id} for {at!r}.")
            if path.is_symlink():
                return CachedFile(path, announced=path.resolve().name)
            # Without symbolic links the client's cache does not keep the hash.
            return CachedFile(
                path, announced=_recorded(blobs.parent / "hashes" / commit / name, lambda: ask(name, commit))
            )

    def ask(name: str, commit: str) -> str:
        [entry] = HfApi(endpoint=endpoint, token=token).get_paths_info(model_id, [name], revision=commit)
        assert isinstance(entry, RepoFile)
        return entry.lfs.sha256 if entry.lfs else entry.blob_id

    return download


def _is_damaged_ref(ref: Path) -> bool:
    """Return whether the client's record of the commit of a branch or tag exists and holds something else."""
    try:
        return not is_commit(ref.read_bytes().decode("latin-1"))
    except OSError:
        return False


def _read_record(record: Path) -> str:
    """Return the hash in a file of the cache; empty if there is none."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if HASH.fullmatch(announced := record.read_text()):
            return announced
    return ""


def _recorded(record: Path, ask: Callable[[], str]) -> str:
    """Return the hash in a file of the cache, where it is known offline too; the first time, ask the hub for it."""
    if announced := _read_record(record):
        return announced
    try:
        announced = ask()
    except (OfflineModeIsEnabled, httpx2.TransportError):
        raise HubUnavailable(
            f"The hub does not respond, and the cache, which has no symbolic links, has no hash of {record.name}.",
            hint="Pull the model once with this version of eca-hub while the hub responds.",
        ) from None
    with contextlib.suppress(OSError):
        make_folder(record.parent)
        write_atomic(record, announced.encode())
    return announced


def _retry_connection(download: Callable[[], str]) -> Path:
    """Retry a connection that breaks before the response starts; the client itself retries only in other cases."""
    for _ in range(_CONNECTION_RETRIES):
        with contextlib.suppress(httpx2.ReadError, httpx2.WriteError):
            return Path(download())
    return Path(download())


def _resolve(download: Download, model_id: str, revision: str) -> tuple[str, bytes]:
    """Download config.json by branch or tag, check that it is a package's, and return the commit that it came from.

    Requesting a file instead of the commit saves one request, and makes the cache store which commit the branch or tag
    stood for, so that the same name works offline.
    """
    commit = download(CONFIG_FILE, revision, False).path.parent.name
    config_bytes = bytes(_read_checked(download, CONFIG_FILE, commit))
    # Before the weights, which may be large.
    if not is_package_config(config_bytes):
        raise foreign_config(model_id)
    return commit, config_bytes


def _read_checked(download: Download, name: str, commit: str) -> memoryview:
    """Read a file once, and compare the hash of these bytes with the announced one."""
    cached = download(name, commit, False)
    content, actual = _read(cached)
    if actual == cached.announced:
        return content
    # Both downloads need memory for the whole file.
    del content
    try:
        # In offline mode the client raises ValueError for a forced download.
        if constants.HF_HUB_OFFLINE:
            raise HubUnavailable("HF_HUB_OFFLINE forbids requests to the hub.")
        if not cached.path.is_symlink():
            # The client does not replace it: it writes, or links to the blob, only where there is no file.
            with contextlib.suppress(OSError):
                cached.path.unlink()
        cached = download(name, commit, True)
    except HubUnavailable:
        raise ChecksumMismatch(
            f"{name} at {commit[:12]} is damaged in the cache, and the hub does not respond.",
            hint="Pull again when it responds.",
        ) from None
    content, actual = _read(cached)
    if actual == cached.announced:
        return content
    cached.path.resolve().unlink(missing_ok=True)
    raise ChecksumMismatch(
        f"{name} at {commit[:12]} hashes to {actual[:12]}, but the hub announced {cached.announced[:12]}.",
        hint="The file was removed from the cache. Ask the owner of the repository, or of the hub.",
    )


def _read(cached: CachedFile) -> tuple[memoryview, str]:
    """Read a file of the cache, unless it was read during its download; one that cannot be read counts as damaged."""
    if cached.content is not None:
        return cached.content, cached.announced
    try:
        digest = new_hasher(cached.announced, cached.path.stat().st_size)
        return read_and_hash(cached.path, digest), digest.hexdigest()
    except OSError:
        return memoryview(b""), hash_like_hub(b"", cached.announced)


NO_HASH = "no hash is recorded"
"""Reason of an entry that another program stored, in a cache without symbolic links or in place of one."""


@dataclass(frozen=True)
class CacheEntry:
    """One stored file, and whether its bytes still have the hash that the hub announced."""

    model_id: str
    path: Path
    num_bytes: int
    is_intact: bool | None
    """None if the file was not checked."""
    reason: str = ""
    """Why it was not."""


def check_cache(model_id: str | None = None) -> Iterator[CacheEntry]:
    """Read and hash every file in the client's cache, which the client itself never checks again after a download.

    Args:
        model_id: Hub `owner/name`; every model in the cache when none is given.

    Raises:
        InvalidConfig: the name is malformed, or the cache has no such model.
    """
    if model_id is not None:
        check_model_id(model_id)
    cache = Path(constants.HF_HUB_CACHE)
    unreadable: list[OSError] = []
    if model_id is None:
        folders = [each for each in _list_folder(cache, unreadable) if each.name.startswith("models--")]
    else:
        folders = [cache / repo_folder_name(repo_id=model_id, repo_type="model")]
    yield from (_not_checked("", error) for error in unreadable)
    num_entries = 0
    for folder in folders:
        for entry in _check_folder(folder):
            num_entries += 1
            yield entry
    if model_id is not None and num_entries == 0:
        raise InvalidConfig(
            f"The cache has no files of {model_id}.",
            hint=f"HF_HOME names its folder; now it is {constants.HF_HUB_CACHE}.",
        )


def _check_folder(folder: Path) -> Iterator[CacheEntry]:
    """Check the files of one model."""
    name = folder.name.removeprefix("models--").replace("--", "/", 1)
    unreadable: list[OSError] = []
    if _list_folder(folder, unreadable):
        for path in _files_below(folder / "blobs", unreadable):
            # Unfinished downloads end in .incomplete, and file managers leave files of their own.
            if HASH.fullmatch(path.name):
                yield _check_entry(name, path, path.name)
        for path in _files_below(folder / "snapshots", unreadable):
            # Links lead to the blobs.
            if not _is_link(path):
                record = folder / "hashes" / path.relative_to(folder / "snapshots")
                yield _check_entry(name, path, _read_record(record))
    yield from (_not_checked(name, error) for error in unreadable)


def _is_link(path: Path) -> bool:
    try:
        return path.is_symlink()
    except OSError:
        # Its folder may not be searched, which `_check_entry` reports.
        return False


def _list_folder(folder: Path, unreadable: list[OSError]) -> list[Path]:
    """Return what a folder holds, in order; one that exists and cannot be read is added to the list."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        unreadable.append(error)
        return []


def _files_below(folder: Path, unreadable: list[OSError]) -> Iterator[Path]:
    """Yield the files below a folder in order; folders that exist and cannot be read are added to the list."""

    def note(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            unreadable.append(error)

    for parent, folders, names in os.walk(folder, onerror=note):
        folders.sort()
        yield from (Path(parent, name) for name in sorted(names))


def _check_entry(model_id: str, path: Path, announced: str) -> CacheEntry:
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            return CacheEntry(model_id, path, 0, None, "it is not a file")
        if not announced:
            return CacheEntry(model_id, path, state.st_size, None, NO_HASH)
        return CacheEntry(model_id, path, state.st_size, file_has_hash(path, announced))
    except OSError as error:
        return CacheEntry(model_id, path, 0, None, error.strerror or str(error))


def _not_checked(model_id: str, error: OSError) -> CacheEntry:
    """Return the entry of a folder that cannot be read."""
    return CacheEntry(model_id, Path(error.filename), 0, None, error.strerror or str(error))
