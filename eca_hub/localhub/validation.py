"""What a repository, a branch, a path or a hash may be called. Everything is checked here before it touches the disk.

Knows neither the store nor HTTP. A refusal here is a 422, except where the stock client expects something else.
"""

import re
from dataclasses import dataclass
from typing import Literal

from eca_hub.localhub.errors import HubRefusal, invalid

RepoType = Literal["model", "dataset", "space"]
REPO_TYPES: tuple[RepoType, ...] = ("model", "dataset", "space")

RESERVED_OWNERS = ("api", "models", "datasets", "spaces")
MAX_NAME_CHARS = 96
MAX_PATH_BYTES = 1024
MAX_REF_CHARS = 250

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT_ID = re.compile(r"[0-9a-f]{40}")
_SHORT_COMMIT_ID = re.compile(r"[0-9a-f]{7,40}")
_UNFIT = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+@#=-]*")


@dataclass(frozen=True)
class RepoId:
    """The full name of a repository; equal names differ at most in case, as on the Hub."""

    type: RepoType
    owner: str
    name: str

    @property
    def full_name(self) -> str:
        """The `owner/name` that users type."""
        return f"{self.owner}/{self.name}"

    @property
    def key(self) -> str:
        """The same for every spelling of the name."""
        return f"{self.type}s/{self.full_name.lower()}"

    @property
    def url_path(self) -> str:
        """Where the repository's page lies under the hub's URL."""
        return self.full_name if self.type == "model" else f"{self.type}s/{self.full_name}"


def check_name(name: str) -> str:
    """Accept an owner's or a repository's name, or refuse it."""
    if len(name) > MAX_NAME_CHARS or not _NAME.fullmatch(name):
        raise invalid(
            f"Invalid name {name[:MAX_NAME_CHARS]!r}: at most {MAX_NAME_CHARS} letters, digits, '-', '_' and '.'."
        )
    if ".." in name or "--" in name or name[-1] in ".-" or name.lower().endswith((".git", ".ipynb")):
        raise invalid(
            f"Invalid name {name!r}: no '--', no '..', no '.' or '-' at an end, no '.git' or '.ipynb' at the end."
        )
    return name


def check_owner(name: str) -> str:
    """Accept the name under which new repositories are to stand, or refuse it."""
    if name.lower() in RESERVED_OWNERS:
        raise invalid(f"Invalid owner {name!r}: the hub's own addresses begin so.")
    return check_name(name)


def parse_repo_id(repo_type: RepoType, full_name: str) -> RepoId:
    """Read `owner/name`."""
    owner, slash, name = full_name.partition("/")
    if not slash:
        raise invalid(f"Invalid repository name {full_name[:MAX_NAME_CHARS]!r}: it must be owner/name.")
    return RepoId(repo_type, check_name(owner), check_name(name))


def parse_repo_type(value: object) -> RepoType:
    """Read a repository type; nothing means a model."""
    for repo_type in REPO_TYPES:
        if value == repo_type or (value is None and repo_type == "model"):
            return repo_type
    raise invalid("Invalid repository type: it must be model, dataset or space.")


def check_path(path: str) -> str:
    """Accept the path of a file inside a repository, or refuse it."""
    pieces = path.split("/")
    if (
        not path
        or len(path.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES
        or "\\" in path
        or _UNFIT.search(path)
        or any(piece.lower() in ("", ".", "..", ".git") or len(piece.encode()) > 255 for piece in pieces)
    ):
        raise invalid(
            f"Invalid path {path[:100]!r}: it must be relative, divided by '/', at most {MAX_PATH_BYTES} bytes, and "
            "without backslashes, control characters, or a part that is '.', '..' or '.git'."
        )
    return path


def check_ref_name(name: str, what: str) -> str:
    """Accept the name of a new branch or tag, or refuse it.

    A name that looks like a full commit id is refused: whoever pins a commit must never get a branch.
    """
    pieces = name.split("/")
    is_bad = any(
        piece in ("", ".", "..") or piece.startswith(".") or piece.endswith((".lock", ".")) for piece in pieces
    )
    if len(name) > MAX_REF_CHARS or not _REF.fullmatch(name) or is_bad or ".." in name or "@{" in name:
        raise HubRefusal(400, "bad_request", f"Invalid reference for a {what}: {name[:100]!r}")
    if name.startswith("refs/") or is_commit_id(name):
        raise HubRefusal(400, "bad_request", f"Invalid reference for a {what}: {name[:100]!r} is reserved")
    return name


def check_sha256(text: object) -> str:
    """Accept 64 lower-case hexadecimal digits, or refuse them."""
    if not isinstance(text, str) or not _SHA256.fullmatch(text):
        raise invalid("Invalid hash: it must be 64 lower-case hexadecimal digits.")
    return text


def is_commit_id(text: str) -> bool:
    """Tell whether this is a full commit id."""
    return _COMMIT_ID.fullmatch(text) is not None


def is_short_commit_id(text: str) -> bool:
    """Tell whether this could be a commit id with its end left off."""
    return _SHORT_COMMIT_ID.fullmatch(text) is not None
