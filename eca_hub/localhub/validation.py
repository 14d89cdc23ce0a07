"""Names of repositories and branches, paths and hashes: all are validated here before they reach the disk.

An invalid value is a 422, except where the stock client expects another status.
"""

import re
from dataclasses import dataclass
from typing import Literal

from eca_hub.localhub.errors import HubHTTPError, invalid
from eca_hub.names import MAX_NAME_CHARS, NAME_PATTERN, is_ref_name

RepoType = Literal["model", "dataset", "space"]
REPO_TYPES: tuple[RepoType, ...] = ("model", "dataset", "space")

RESERVED_OWNERS = ("api", "models", "datasets", "spaces")
MAX_PATH_BYTES = 1024

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHORT_COMMIT_ID = re.compile(r"[0-9a-f]{7,40}")
_FORBIDDEN = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class RepoId:
    """The full name of a repository; names are equal if they differ only in case, as on the Hub."""

    type: RepoType
    owner: str
    name: str

    @property
    def full_name(self) -> str:
        """The `owner/name` that users type."""
        return f"{self.owner}/{self.name}"

    @property
    def key(self) -> str:
        """Equal for every spelling of the name."""
        return f"{self.type}s/{self.full_name.lower()}"

    @property
    def url_path(self) -> str:
        """Path of the repository's page."""
        return self.full_name if self.type == "model" else f"{self.type}s/{self.full_name}"


def check_name(name: str) -> str:
    """Validate the name of an owner or a repository."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise invalid(
            f"Invalid name {name[:MAX_NAME_CHARS]!r}: at most {MAX_NAME_CHARS} letters, digits, '-', '_' and '.'."
        )
    if ".." in name or "--" in name or name[-1] in ".-" or name.lower().endswith((".git", ".ipynb")):
        raise invalid(
            f"Invalid name {name!r}: no '--', no '..', no '.' or '-' at an end, no '.git' or '.ipynb' at the end."
        )
    return name


def check_owner(name: str) -> str:
    """Validate the owner of a new repository."""
    if name.lower() in RESERVED_OWNERS:
        raise invalid(f"Invalid owner {name!r}: it is the beginning of the hub's own URLs.")
    return check_name(name)


def parse_repo_id(repo_type: RepoType, full_name: str) -> RepoId:
    """Parse `owner/name`."""
    owner, slash, name = full_name.partition("/")
    if not slash:
        raise invalid(f"Invalid repository name {full_name[:MAX_NAME_CHARS]!r}: it must be owner/name.")
    return RepoId(repo_type, check_name(owner), check_name(name))


def parse_repo_type(value: object) -> RepoType:
    """Parse a repository type; None means model."""
    for repo_type in REPO_TYPES:
        if value == repo_type or (value is None and repo_type == "model"):
            return repo_type
    raise invalid("Invalid repository type: it must be model, dataset or space.")


def check_path(path: str) -> str:
    """Validate the path of a file in a repository."""
    pieces = path.split("/")
    if (
        not path
        or len(path.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES
        or "\\" in path
        or _FORBIDDEN.search(path)
        or any(piece.lower() in ("", ".", "..", ".git") or len(piece.encode()) > 255 for piece in pieces)
    ):
        raise invalid(
            f"Invalid path {path[:100]!r}: it must be relative, separated by '/', at most {MAX_PATH_BYTES} bytes, and "
            "without backslashes, control characters, or a part that is '.', '..' or '.git'."
        )
    return path


def check_ref_name(name: str, what: str) -> str:
    """Validate the name of a new branch or tag.

    A name that looks like a full commit id is refused: a pinned commit must never resolve to a branch.
    """
    if not is_ref_name(name):
        raise HubHTTPError(400, "bad_request", f"Invalid reference for a {what}: {name[:100]!r}")
    return name


def check_sha256(text: object) -> str:
    """Validate a SHA-256: 64 lower-case hexadecimal digits."""
    if not isinstance(text, str) or not _SHA256.fullmatch(text):
        raise invalid("Invalid hash: it must be 64 lower-case hexadecimal digits.")
    return text


def is_short_commit_id(text: str) -> bool:
    """Whether this may be a shortened commit id."""
    return _SHORT_COMMIT_ID.fullmatch(text) is not None
