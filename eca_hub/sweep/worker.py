"""Run one training run of a sweep, unless it has finished: `python -m eca_hub.sweep.worker RUN_DIR [ARGUMENTS ...]`.

The worker holds a lock beside the run folder for as long as it lives. A sweep that was killed leaves its workers
training; the workers of the sweep that continues it wait for that lock and then find the run finished, so two
processes never train into one folder. The kernel releases the lock of a process that dies.
"""

import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from filelock import FileLock


def is_finished(run_dir: Path) -> bool:
    """Whether a run has been measured and packaged; both files are written last, and atomically or in this order."""
    return (run_dir / "result.json").is_file() and (run_dir / "model" / "config.json").is_file()


def run_once(run_dir: Path, arguments: list[str]) -> int:
    """Train into `run_dir`, continuing what is there, and return the exit code of `eca-hub fit`."""
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(run_dir.with_name(f".{run_dir.name}.lock")):
        if is_finished(run_dir):
            return 0
        command = [sys.executable, "-m", "eca_hub", "fit", *arguments, "--run_dir", str(run_dir), "--resume"]
        process = subprocess.Popen(command)

        def forward(number: int, frame: FrameType | None) -> None:
            process.send_signal(number)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, forward)
        return process.wait()


if __name__ == "__main__":
    sys.exit(run_once(Path(sys.argv[1]), sys.argv[2:]))
