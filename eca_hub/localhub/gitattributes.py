"""Patterns of .gitignore and .gitattributes: which files to skip, and which files to store with LFS.

Covers what such files contain in practice; character classes and escapes as in fnmatch.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase

_LFS_ENDINGS = """
7z arrow bin bz2 ckpt ftz gz h5 joblib lfs.* mlmodel model msgpack npy npz onnx ot parquet pb pickle pkl pt pth rar
safetensors tar tar.* tflite tgz wasm xz zip zst
"""
_LFS_PATTERNS = [*(f"*.{ending}" for ending in _LFS_ENDINGS.split()), "saved_model/**/*", "*tfevents*"]

DEFAULT_GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in _LFS_PATTERNS)
""".gitattributes of a new repository."""

MAX_PATTERNS = 2_000


def is_ignored(path: str, gitignore: str) -> bool:
    """Whether a .gitignore excludes this file; the last matching pattern decides."""
    verdict = False
    for line in _lines(gitignore):
        pattern = line.removeprefix("!").rstrip()
        if _matches(pattern, path):
            verdict = not line.startswith("!")
    return verdict


def is_lfs_by_name(path: str, gitattributes: str) -> bool:
    """Whether a .gitattributes stores this file with LFS; the last matching line with a filter decides."""
    verdict = False
    for line in _lines(gitattributes):
        pattern, *attributes = line.split()
        filters = [attribute for attribute in attributes if attribute.lstrip("-!").partition("=")[0] == "filter"]
        if filters and _matches(pattern, path):
            verdict = filters[-1] == "filter=lfs"
    return verdict


def _lines(text: str) -> Iterator[str]:
    lines = (line for line in text.removeprefix("\ufeff").splitlines() if line.strip() and not line.startswith("#"))
    for _, line in zip(range(MAX_PATTERNS), lines, strict=False):
        yield line


def _matches(pattern: str, path: str) -> bool:
    """Whether a pattern matches a file or a folder above it. A pattern without an inner slash matches at any depth.

    Matched part by part without backtracking over slashes, so that no pattern can be slow.
    """
    path_pieces = path.split("/")
    pieces = pattern.strip("/").split("/")
    if "/" not in pattern.rstrip("/"):
        pieces.insert(0, "**")
    if pieces[-1] == "**":
        pieces.append("*")
    depths = {0}
    for piece in pieces:
        if piece == "**":
            depths = set(range(min(depths), len(path_pieces)))
        else:
            depths = {
                depth + 1 for depth in depths if depth < len(path_pieces) and fnmatchcase(path_pieces[depth], piece)
            }
        if not depths:
            return False
    return not pattern.endswith("/") or min(depths) < len(path_pieces)
