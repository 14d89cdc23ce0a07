"""Run the runs of a sweep, some at a time, and write the results after each.

Everything that the queue needs to continue is in the run folders and the results file, so it may be killed at any
moment and started again, also on another machine that has only the results file. Each run is a process of its own,
`eca_hub.sweep.worker`, started by a launcher: on this machine, or on a Ray cluster.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from eca_hub.errors import InvalidConfig
from eca_hub.processor import num_usable_cores
from eca_hub.sweep.grid import SweepRun
from eca_hub.sweep.results import Tables, collect, read_recorded
from eca_hub.sweep.worker import is_finished

CONTINUES = "The same command continues; finished runs and checkpoints are kept."
"""Hint of an error that ends a sweep, whether or not runs were in progress."""
_POLL_S = 0.2


class Job(Protocol):
    """A run that was started."""

    def poll(self) -> int | None:
        """Return its exit code, or None while it runs."""
        ...

    def stop(self) -> None:
        """Ask it to save a checkpoint and exit."""
        ...


class Launcher(Protocol):
    """Starts runs."""

    num_jobs: int
    """How many run at a time."""

    def start(self, run: SweepRun, run_dir: Path) -> Job:
        """Start one run; its output goes to `RUN_DIR.log`."""
        ...


def threads_of_job(num_jobs: int) -> int:
    """Return the share of the usable cores that each of some jobs gets, at least one."""
    return max(1, num_usable_cores() // num_jobs)


class LocalLauncher:
    """Start runs as processes of this machine, which share its cores.

    Args:
        num_jobs: How many run side by side; each gets an equal share of the cores as its threads, unless
            OMP_NUM_THREADS says otherwise.
    """

    def __init__(self, num_jobs: int) -> None:
        self.num_jobs = num_jobs
        self._environment = {"OMP_NUM_THREADS": str(threads_of_job(num_jobs)), **os.environ}

    def start(self, run: SweepRun, run_dir: Path) -> Job:
        """Start one run in a session of its own, so that Ctrl-C reaches it only through the queue."""
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        with run_dir.with_suffix(run_dir.suffix + ".log").open("ab") as log:
            command = [sys.executable, "-m", "eca_hub.sweep.worker", str(run_dir), *run.arguments]
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=self._environment, start_new_session=True
            )
        return _LocalJob(process)


class _LocalJob:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def poll(self) -> int | None:
        return self._process.poll()

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)


@dataclass
class SweepState:
    """The progress of a sweep."""

    num_runs: int
    num_done: int = 0
    running: dict[str, float] = field(default_factory=dict)
    """Name of each run in progress, and the monotonic second at which it was started."""
    failed: dict[str, str] = field(default_factory=dict)
    """Name of each run that ended with an error, and the last line of its log."""
    run_seconds: list[float] = field(default_factory=list)
    """Durations of the runs that this queue has finished."""

    def left_s(self, num_jobs: int) -> float | None:
        """Estimate the seconds that are left, from the mean duration so far; None before the first run has ended."""
        if not self.run_seconds:
            return None
        num_left = self.num_runs - self.num_done - len(self.failed)
        return num_left * sum(self.run_seconds) / len(self.run_seconds) / num_jobs


def run_sweep(
    runs: Sequence[SweepRun],
    out_dir: Path,
    results_file: Path,
    *,
    launcher: Launcher,
    report: Callable[[SweepState], None],
    wait: Callable[[float], Any] = time.sleep,
) -> SweepState:
    """Run what has not finished, and return how it went.

    Args:
        runs: All runs of the sweep.
        out_dir: Holds one folder a run.
        results_file: Written anew after each run, with the other tables beside it. Runs that it has and that have no
            folder in `out_dir` count as finished.
        launcher: Starts them.
        report: Called whenever something has changed.
        wait: Waits for some seconds.

    Raises:
        InvalidConfig: the results file cannot be read or written, or has rows of other runs.
        OSError: a folder or a log of a run cannot be used.
        KeyboardInterrupt: SIGINT or SIGTERM arrived.

    However it ends, the runs in progress have saved a checkpoint and ended.
    """
    state = SweepState(len(runs))
    recorded = read_recorded(runs, out_dir, results_file)
    known = {row["run"] for row in recorded.results}
    waiting = [run for run in runs if run.name not in known and not is_finished(out_dir / run.name)]
    state.num_done = len(runs) - len(waiting)
    _write(runs, out_dir, results_file, recorded)
    report(state)
    jobs: dict[str, Job] = {}
    with _sigterm_as_interrupt():
        try:
            while waiting or jobs:
                while waiting and len(jobs) < launcher.num_jobs and not _first_was_refused(state):
                    run = waiting.pop(0)
                    jobs[run.name] = launcher.start(run, out_dir / run.name)
                    state.running[run.name] = time.monotonic()
                    report(state)
                if not jobs:
                    break
                wait(_POLL_S)
                for name, code in [(name, job.poll()) for name, job in jobs.items()]:
                    if code is None:
                        continue
                    del jobs[name]
                    seconds = time.monotonic() - state.running.pop(name)
                    if code == 0 and is_finished(out_dir / name):
                        state.num_done += 1
                        state.run_seconds.append(seconds)
                    else:
                        state.failed[name] = _last_line(out_dir / f"{name}.log") or f"exit code {code}"
                    _write(runs, out_dir, results_file, recorded)
                    report(state)
        except BaseException as error:
            for job in jobs.values():
                job.stop()
            while any(job.poll() is None for job in jobs.values()):
                wait(_POLL_S)
            if isinstance(error, KeyboardInterrupt):
                _write(runs, out_dir, results_file, recorded)
            raise
    return state


def _first_was_refused(state: SweepState) -> bool:
    """Whether nothing has succeeded and a run has failed: the others would most likely fail as well."""
    return bool(state.failed) and not state.num_done


def _write(runs: Sequence[SweepRun], out_dir: Path, results_file: Path, recorded: Tables) -> None:
    tables = collect(runs, out_dir, recorded)
    try:
        tables.write(results_file)
    except OSError as error:
        raise InvalidConfig(
            f"The results {results_file} cannot be written: {error.strerror}.", hint=CONTINUES
        ) from None


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a sweep as Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
