"""Patterns of .gitignore and .gitattributes: which files to skip, and which files to store with LFS.

Covers what such files contain in practice; character classes and escapes as in fnmatch.
"""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from eca_hub.localhub.errors import invalid

_LFS_ENDINGS = """
7z arrow bin bz2 ckpt ftz gz h5 joblib lfs.* mlmodel model msgpack npy npz onnx ot parquet pb pickle pkl pt pth rar
safetensors tar tar.* tflite tgz wasm xz zip zst
"""
_LFS_PATTERNS = [*(f"*.{ending}" for ending in _LFS_ENDINGS.split()), "saved_model/**/*", "*tfevents*"]

DEFAULT_GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in _LFS_PATTERNS)
""".gitattributes of a new repository."""

MAX_PATTERNS = 2_000
MAX_PATTERN_CHARS = 1_024
MAX_COMPARED_CHARS = 50_000_000
"""Most characters of paths that the parts of patterns are compared with in one request."""
_CALL_CHARS, _COMPILE_CHARS = 10, 2_000
"""Characters whose comparison takes as long as starting a comparison, and as compiling a part of a pattern."""


class PathPatterns:
    """The patterns of one file, parsed once; the last one that matches a path decides.

    Args:
        patterns: Each pattern, and what holds for the paths that it matches.
    """

    def __init__(self, patterns: Sequence[tuple[str, bool]]) -> None:
        # A longer pattern than any path is allowed to be matches none in practice, and takes long to compile.
        short = [(pattern, value) for pattern, value in patterns[:MAX_PATTERNS] if len(pattern) <= MAX_PATTERN_CHARS]
        self._patterns = [(_pieces_of(pattern), pattern.endswith("/"), value) for pattern, value in reversed(short)]

    def holds_for(self, path: str) -> bool:
        """Return the value of the last pattern that matches a path; False if none does."""
        path_pieces = path.split("/")
        return next((value for pieces, is_dir, value in self._patterns if _matches(pieces, is_dir, path_pieces)), False)

    @property
    def num_pieces(self) -> int:
        """Number of parts of all patterns that are compared with parts of paths."""
        return sum(piece != "**" for pieces, _, _ in self._patterns for piece in pieces)


def parse_gitignore(text: str) -> PathPatterns:
    """Parse a .gitignore: whether a file is excluded."""
    lines = [line.rstrip() for line in _lines(text)]
    return PathPatterns([(line.removeprefix("!"), not line.startswith("!")) for line in lines])


def parse_gitattributes(text: str) -> PathPatterns:
    """Parse a .gitattributes: whether a file is stored with LFS, by the last matching line with a filter."""
    patterns = []
    for line in _lines(text):
        pattern, *attributes = line.split()
        filters = [attribute for attribute in attributes if attribute.lstrip("-!").partition("=")[0] == "filter"]
        if filters:
            patterns.append((pattern, filters[-1] == "filter=lfs"))
    return PathPatterns(patterns)


def check_cost(paths: Sequence[str], *patterns: PathPatterns) -> None:
    """Refuse more patterns and paths than one request can compare.

    Raises:
        HubHTTPError: 422, there are too many.
    """
    num_pieces = sum(each.num_pieces for each in patterns)
    num_chars = sum(len(path) + _CALL_CHARS * (path.count("/") + 1) for path in paths)
    if num_pieces * (num_chars + _COMPILE_CHARS) > MAX_COMPARED_CHARS:
        raise invalid(
            f"{len(paths)} files are too many to compare with the patterns of .gitignore and .gitattributes: send "
            "fewer files in a request, or shorten the patterns."
        )


def _lines(text: str) -> Iterator[str]:
    return (line for line in text.removeprefix("\ufeff").splitlines() if line.strip() and not line.startswith("#"))


def _pieces_of(pattern: str) -> list[str]:
    """Split a pattern at its slashes. A pattern without an inner slash matches at any depth."""
    pieces = pattern.strip("/").split("/")
    if "/" not in pattern.rstrip("/"):
        pieces.insert(0, "**")
    if pieces[-1] == "**":
        pieces.append("*")
    return pieces


def _matches(pieces: Sequence[str], is_dir: bool, path_pieces: Sequence[str]) -> bool:
    """Whether a pattern matches a file or a folder above it, or only a folder.

    Matched part by part without backtracking over slashes, so that no pattern can be slow.
    """
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
    return not is_dir or min(depths) < len(path_pieces)
