"""Names of files and folders that users type. Uses the standard library only."""

from pathlib import Path


def expand_home(name: str | Path) -> Path:
    """Return the path of a name with `~` expanded; one that names no home directory stays as it is."""
    try:
        return Path(name).expanduser()
    except (RuntimeError, ValueError):
        return Path(name)
