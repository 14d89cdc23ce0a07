"""Repositories, files and commits as the JSON that the stock client reads."""

import json
import math
import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

from eca_hub.card_yaml import InvalidCard
from eca_hub.localhub.blobs import Blobs, FileState
from eca_hub.localhub.card_metadata import read_metadata, tags_of, text_of
from eca_hub.localhub.commits import Commit, StoredFile
from eca_hub.localhub.errors import HubHTTPError
from eca_hub.localhub.repo import Repo
from eca_hub.localhub.validation import RepoId

MAX_CARD_BYTES = 2 << 20
MAX_CONFIG_BYTES = 1 << 20
MAX_SAFETENSORS_HEADER_BYTES = 1 << 20
MAX_DIMS = 64
_CONFIG_NAMES = ("architecture", "architectures", "model_type")


def serialize_repo(
    repo_id: RepoId, repo: Repo, blobs: Blobs, commit_id: str, with_sizes: bool = False
) -> dict[str, Any]:
    """All information about a repository at a commit."""
    commit = repo.commit(commit_id)
    metadata = card_metadata(commit.files.get("README.md"), blobs)
    config = _small_json(commit.files.get("config.json"), blobs)
    has_safetensors = any(path.endswith(".safetensors") for path in commit.files)
    library = text_of(metadata, "library_name")
    return {
        "_id": repo.folder.name,
        "id": repo_id.full_name,
        "modelId": repo_id.full_name,
        "author": repo_id.owner,
        "sha": commit_id,
        "private": repo.settings.is_private,
        "gated": repo.settings.gated,
        "disabled": False,
        "downloads": 0,
        "downloadsAllTime": 0,
        "likes": 0,
        "trendingScore": 0,
        "tags": [*tags_of(metadata), *(["safetensors"] if has_safetensors else [])],
        "pipeline_tag": text_of(metadata, "pipeline_tag"),
        "library_name": library,
        "createdAt": repo.settings.created_at,
        "lastModified": commit.date,
        "cardData": metadata,
        "config": {name: config[name] for name in _CONFIG_NAMES if _is_string_or_strings(config.get(name))},
        "model-index": metadata.get("model-index"),
        "safetensors": _safetensors_counts(commit.files.get("model.safetensors"), blobs),
        "siblings": [_sibling(path, file, with_sizes) for path, file in sorted(commit.files.items())],
        "spaces": [],
        "usedStorage": sum(file.size_bytes for file in commit.files.values()),
    }


def serialize_storage(repo_id: RepoId, repo: Repo) -> dict[str, Any]:
    """Size of a repository for its owner: of the files at the head of the main branch."""
    head = repo.commit(repo.resolve("main"))
    return {
        "id": repo_id.full_name,
        "type": repo_id.type,
        "updatedAt": head.date,
        "visibility": "private" if repo.settings.is_private else "public",
        "storage": sum(file.size_bytes for file in head.files.values()),
    }


def serialize_entries(commit: Commit, paths: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Files and folders of a tree; paths that do not exist are skipped."""
    for path in paths:
        file = commit.files.get(path)
        if file:
            lfs = {"oid": file.sha256, "size": file.size_bytes, "pointerSize": len(file.pointer)}
            yield {"type": "file", "oid": file.oid, "size": file.size_bytes, "path": path} | (
                {"lfs": lfs} if file.is_lfs else {}
            )
        elif path in commit.folders:
            yield {"type": "directory", "oid": commit.folders[path], "size": 0, "path": path}


def last_commits(repo: Repo, commit_id: str, paths: Iterable[str]) -> dict[str, dict[str, str]]:
    """For each path, the commit that last changed it."""
    commits: dict[str, dict[str, str]] = {}
    open_paths = set(paths)
    for this_id, commit in repo.history(commit_id):
        if not open_paths:
            break
        before = repo.commit(commit.parent) if commit.parent else None
        for path in list(open_paths):
            if before is None or before.oid_of(path) != commit.oid_of(path):
                commits[path] = {"id": this_id, "title": commit.title, "date": commit.date}
                open_paths.discard(path)
    return commits


def serialize_commit(commit_id: str, commit: Commit, is_formatted: bool) -> dict[str, Any]:
    """A commit in the history."""
    view = {
        "id": commit_id,
        "title": commit.title,
        "message": commit.message,
        "date": commit.date,
        "authors": [{"user": commit.author}],
        "parents": [commit.parent] if commit.parent else [],
    }
    return view | ({"formatted": {"title": commit.title, "message": commit.message}} if is_formatted else {})


def serialize_refs(refs: dict[str, str], with_pull_requests: bool) -> dict[str, Any]:
    """Branches and tags."""

    def of(prefix: str) -> list[dict[str, str]]:
        names = sorted((ref for ref in refs if ref.startswith(prefix)), key=lambda ref: (ref != "refs/heads/main", ref))
        return [{"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": refs[ref]} for ref in names]

    view = {"branches": of("refs/heads/"), "converts": [], "tags": of("refs/tags/")}
    # There are none; the client expects the list if it asks for it.
    return view | ({"pullRequests": []} if with_pull_requests else {})


def card_text(card: StoredFile | None, blobs: Blobs) -> str:
    """The README of a commit; empty if it is missing or cannot be read."""
    try:
        return _read_card(card.sha256, blobs) if card else ""
    except HubHTTPError:
        return ""


def _read_card(sha256: str, blobs: Blobs) -> str:
    return blobs.read(sha256, MAX_CARD_BYTES).decode("utf-8", "replace")


def card_metadata(card: StoredFile | None, blobs: Blobs) -> dict[str, Any]:
    """Metadata of the README of a commit; empty if they are missing or cannot be read."""
    try:
        return _cached_metadata(card.sha256, blobs) if card else {}
    except HubHTTPError:
        # Not cached: the card may be pushed again.
        return {}


@lru_cache(maxsize=2048)
def _cached_metadata(sha256: str, blobs: Blobs) -> dict[str, Any]:
    try:
        return read_metadata(_read_card(sha256, blobs))
    except InvalidCard:
        return {}


def _sibling(path: str, file: StoredFile, with_sizes: bool) -> dict[str, Any]:
    if not with_sizes:
        return {"rfilename": path}
    lfs = {"sha256": file.sha256, "size": file.size_bytes, "pointerSize": len(file.pointer)}
    return {"rfilename": path, "size": file.size_bytes, "blobId": file.oid} | ({"lfs": lfs} if file.is_lfs else {})


def _is_string_or_strings(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def _small_json(file: StoredFile | None, blobs: Blobs) -> dict[str, Any]:
    if file is None or file.size_bytes > MAX_CONFIG_BYTES:
        return {}
    try:
        value = json.loads(blobs.read(file.sha256, MAX_CONFIG_BYTES), parse_constant=str)
    except (HubHTTPError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _safetensors_counts(file: StoredFile | None, blobs: Blobs) -> dict[str, Any] | None:
    state = blobs.file_state(file.sha256) if file else None
    if file is None or state is None:
        return None
    try:
        return _cached_counts(file.sha256, state, blobs)
    except OSError:
        return None


@lru_cache(maxsize=2048)
def _cached_counts(sha256: str, state: FileState, blobs: Blobs) -> dict[str, Any] | None:
    """Count the parameters in a safetensors file by its header, without reading and verifying the tensors.

    The state of the file is part of the cache key, so that a damaged file which is pushed again is counted again.
    """
    counts: dict[str, int] = {}
    try:
        with blobs.path(sha256).open("rb") as stream:
            (header_bytes,) = struct.unpack("<Q", stream.read(8))
            if header_bytes > MAX_SAFETENSORS_HEADER_BYTES:
                return None
            for name, tensor in json.loads(stream.read(header_bytes)).items():
                if name != "__metadata__":
                    dtype, shape = str(tensor["dtype"]), tensor["shape"]
                    # JSON also has lengths such as 1e999 and true.
                    if len(shape) > MAX_DIMS or not all(type(each) is int and 0 <= each < 2**63 for each in shape):
                        return None
                    counts[dtype] = counts.get(dtype, 0) + math.prod(shape)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error):
        return None
    total = sum(counts.values())
    return {"parameters": counts, "total": total} if total.bit_length() < 64 else None
