"""Standard streams of a command: closed ones are replaced, and errors of writing to them are told from others."""

import io
import os
import sys
from typing import Any


class _StandardOutput(io.FileIO):
    """Standard output that keeps the error of writing it, so that it is not taken for one of another file."""

    error: OSError | None = None

    def write(self, content: object, /) -> int:
        """Write as FileIO does."""
        try:
            return super().write(content)  # type: ignore[arg-type]
        except OSError as error:
            self.error = error
            raise


class _StandardError(io.FileIO):
    """Standard error that drops what cannot be written: a command goes on when its terminal has been closed."""

    def write(self, content: Any, /) -> int:
        """Write as FileIO does; return the length of what is dropped."""
        try:
            # None from a full pipe that does not block.
            return super().write(content) or len(content)
        except OSError:
            return len(content)


def prepare_streams() -> None:
    """Replace streams that the shell has closed, as by `>&-`, which Python sets to None, and wrap those of output.

    Names of files may have bytes that are not UTF-8, and a terminal may lack letters of a label: they are escaped.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8", errors="replace"))  # noqa: PTH123, SIM115
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.flush()
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(_StandardOutput(sys.stdout.fileno(), "w", closefd=False)),
            encoding=sys.stdout.encoding,
            errors="backslashreplace" if sys.stdout.errors == "strict" else sys.stdout.errors,
            # `python -u` writes through.
            line_buffering=sys.stdout.line_buffering or sys.stdout.write_through,
        )
    if sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(_StandardError(sys.stderr.fileno(), "w", closefd=False)),
            encoding=sys.stderr.encoding,
            errors=sys.stderr.errors,
            line_buffering=True,
        )


def is_output_error(error: OSError) -> bool:
    """Return whether an error is one of writing to standard output."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return isinstance(raw, _StandardOutput) and raw.error is error


def discard_output() -> None:
    """Send what standard output has in its buffer, and what is printed from now on, to nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
