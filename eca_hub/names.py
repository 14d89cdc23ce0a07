"""Patterns of the names of repositories and revisions, which Python, Rust and JSON Schema read alike."""

MAX_NAME_CHARS = 96
NAME_PATTERN = rf"[A-Za-z0-9_][A-Za-z0-9_.\-]{{0,{MAX_NAME_CHARS - 1}}}"
"""An owner, or a repository without its owner."""
MODEL_ID_PATTERN = f"{NAME_PATTERN}/{NAME_PATTERN}"
"""`OWNER/NAME`."""

REVISION_PATTERN = r"[A-Za-z0-9_](\.?[A-Za-z0-9_+@#=\-])*(/[A-Za-z0-9_+@#=\-](\.?[A-Za-z0-9_+@#=\-])*)*"
"""A branch, a tag or a commit. As in git no part of it begins or ends with a dot, and none is empty, so that it cannot
leave a folder that it names."""
MAX_REVISION_CHARS = 256

COMMIT_PATTERN = r"[0-9a-f]{40}"
"""The full id of a commit; no branch may have such a name."""
