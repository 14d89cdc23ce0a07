"""A line on a terminal that shows what a command is doing; nothing if standard error is not a terminal."""

import sys


def show_progress(text: str) -> None:
    """Replace the text on the line; an empty one removes it."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()
