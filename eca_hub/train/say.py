"""The one mouth of a training run: whole lines, at once, whoever reads them."""

import sys


def say(sentence: str) -> None:
    """Print a line; a log file has it before the next batch."""
    sys.stdout.write(f"{sentence}\n")
    sys.stdout.flush()
