"""Names of repositories and revisions. Python, Rust and JSON Schema read the patterns alike."""

import re

MAX_NAME_CHARS = 96
NAME_PATTERN = rf"[A-Za-z0-9_][A-Za-z0-9_.\-]{{0,{MAX_NAME_CHARS - 1}}}"
"""An owner, or a repository without its owner."""
MODEL_ID_PATTERN = f"{NAME_PATTERN}/{NAME_PATTERN}"
"""`OWNER/NAME`."""

REVISION_PATTERN = r"[A-Za-z0-9_](\.?[A-Za-z0-9_+@#=\-])*(/[A-Za-z0-9_+@#=\-](\.?[A-Za-z0-9_+@#=\-])*)*"
"""A branch, a tag or a commit. As in git no part of it begins or ends with a dot, and none is empty, so that it cannot
leave a folder that it names."""
MAX_REVISION_CHARS = 256


def is_revision(text: str) -> bool:
    """Return whether this can be the name of a branch or a tag, or the id of a commit."""
    return len(text) <= MAX_REVISION_CHARS and re.fullmatch(REVISION_PATTERN, text) is not None


def is_ref_name(text: str) -> bool:
    """Return whether a branch or a tag can get this name, by the rules of git that hubs apply."""
    is_reserved = text.startswith("refs/") or is_commit(text)
    return is_revision(text) and not is_reserved and not any(part.endswith(".lock") for part in text.split("/"))


def is_commit(text: str) -> bool:
    """Return whether this is the full id of a commit; no branch may have such a name."""
    return re.fullmatch(r"[0-9a-f]{40}", text) is not None
