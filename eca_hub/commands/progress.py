"""A line on a terminal that shows what a command is doing; nothing if standard error is not a terminal."""

import contextlib
import sys


def show_progress(text: str) -> None:
    """Replace the text on the line; an empty one removes it."""
    # A command goes on when its terminal has been closed.
    with contextlib.suppress(OSError):
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
