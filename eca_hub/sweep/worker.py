"""Become one training run of a sweep, unless it has finished: `python -m eca_hub.sweep.worker RUN_DIR [ARGUMENTS ...]`.

The worker takes a lock beside the run folder and becomes `eca-hub fit`, which holds the lock for as long as it lives. A
sweep that was killed leaves its runs training; the workers of the sweep that continues it wait for their locks and then
find the runs finished, so two processes never train into one folder. The kernel releases the lock of a process that
dies.
"""

import contextlib
import fcntl
import os
import sys
from collections.abc import Sequence
from pathlib import Path

FIT = (sys.executable, "-m", "eca_hub", "fit")


def is_finished(run_dir: Path) -> bool:
    """Whether a run has been measured and packaged; both files are written last, and atomically or in this order."""
    return (run_dir / "result.json").is_file() and (run_dir / "model" / "config.json").is_file()


def run_once(run_dir: Path, arguments: Sequence[str], *, command: Sequence[str] = FIT) -> None:
    """Wait for the lock of `run_dir`; return if the run has finished, else become a process that trains into it.

    Args:
        run_dir: The run folder. What is there is continued.
        arguments: Options of `eca-hub fit`.
        command: Its command.
    """
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(run_dir.with_name(f".{run_dir.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(lock, fcntl.LOCK_EX)
    if is_finished(run_dir):
        return
    os.set_inheritable(lock, True)
    words = [*command, *arguments, "--run_dir", str(run_dir), "--resume"]
    os.execv(words[0], words)  # noqa: S606 (a list of words needs no shell)


if __name__ == "__main__":
    run_once(Path(sys.argv[1]), sys.argv[2:])
