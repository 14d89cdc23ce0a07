"""One line on a terminal that says what a command is at; nothing where no person looks."""

import sys


def show_progress(words: str) -> None:
    """Put the words in the place of those before; none take the line away."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{words}")
        sys.stderr.flush()
