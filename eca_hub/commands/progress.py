"""A line on a terminal that shows what a command is doing; nothing if standard error is not a terminal.

Nothing either on a terminal that shows control sequences as text, such as a shell in Emacs: TERM is `dumb` there.
"""

import os
import sys


def show_progress(text: str) -> None:
    """Replace the text on the line; an empty one removes it."""
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()
