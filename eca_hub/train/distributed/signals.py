"""Graceful shutdown: record SIGTERM or SIGINT, save a checkpoint at the next opportunity, exit.

SIGTERM ends with exit code 143 and Ctrl-C with 130. Where there is nothing to save, the process exits at once. It also
exits at once after a second Ctrl-C, and when no opportunity has come after `GRACE_S`. In a job of SLURM, SIGUSR1
(`#SBATCH --signal=SIGUSR1@90`) does the same, without that limit, and then puts the job into the queue again.

Python runs handlers in the main thread, which torch blocks in C++ while it waits for the other processes to connect.
During that time, and no longer, another thread ends a process whose handler does not run.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

STANDARD_ERROR = 2
_SLURM_JOB_VARIABLE = "SLURM_JOB_ID"
STOPPED_EXIT_CODES = (128 + signal.SIGINT, 128 + signal.SIGTERM)

GRACE_S = 8.0
"""Time to reach the next opportunity to save; most schedulers kill after ten seconds."""
SIGNAL_DELAY_S = 1.0
"""Time in which a signal to the process group reaches Python. A process that waits for a peer in C++ gets it later."""


_ALARM = (signal.SIGALRM,) if hasattr(signal, "SIGALRM") else ()
"""The signal of the timeout; Windows has none, and no timeout."""


class Stopped(SystemExit):
    """The process exits because of a signal."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(128 + signal_number)


def kill_workers() -> None:
    """Kill the remaining data workers.

    They block SIGTERM, with which torch and Python would end them: each would be waited for several seconds, the last
    one forever.
    """
    if hasattr(signal, "SIGCHLD"):
        # Torch would report their end as an error.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in multiprocessing.active_children():
        worker.kill()


class StopRequest:
    """Signal handlers that exit at once, or that record the signal while a checkpoint can be saved."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        """The first signal that arrived."""
        self.children: list[subprocess.Popen[bytes]] = []
        """The other processes of the run that this one has started."""
        self._is_deferred = False

    @property
    def is_requested(self) -> bool:
        """Whether a signal has arrived."""
        return self.signal_number is not None

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Install the handlers inside the block, which must run in the main thread."""
        numbers = (*_stop_signals(), *_ALARM)
        previous = {number: signal.getsignal(number) for number in numbers}
        try:
            self._install()
            yield
        finally:
            self.cancel_timeout()
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def connecting(self) -> Iterator[None]:
        """End the process at a signal inside the block, in the main thread, even if no handler runs.

        Nothing is cleaned up then, so the block must write no files.
        """
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        with reader, writer:
            previous_fd = signal.set_wakeup_fd(writer.fileno())
            is_connected = threading.Event()
            watch = threading.Thread(target=self._end_if_blocked, args=(reader, is_connected), daemon=True)
            watch.start()
            try:
                yield
            finally:
                signal.set_wakeup_fd(previous_fd)
                is_connected.set()
                writer.shutdown(socket.SHUT_WR)
                watch.join()

    def defer(self) -> None:
        """From now on record a signal only; `ResumableCheckpoint` checks `is_requested` and calls `exit` after saving.

        Installs the handlers again, in case another library has replaced them.
        """
        self._is_deferred = True
        self._install()

    def raise_if_requested(self) -> None:
        """Exit if a signal has arrived; from now on a signal exits at once again.

        Raises:
            Stopped: a signal has arrived.
        """
        self._is_deferred = False
        if self.is_requested:
            self.exit()
        self._install()

    def cancel_timeout(self) -> None:
        """Let a save that has begun take longer than `GRACE_S`."""
        if _ALARM:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def exit(self) -> NoReturn:
        """End the process.

        Raises:
            Stopped: always.
        """
        kill_workers()
        number = self.signal_number or signal.SIGTERM
        _requeue_after(number)
        raise Stopped(number)

    def _install(self) -> None:
        for number in _stop_signals():
            signal.signal(number, self._on_signal)
        for number in _ALARM:
            signal.signal(number, self._exit_now)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.is_requested:
            if number == signal.SIGINT:
                self._exit_now(number, frame)
            # A launcher forwards a signal that the whole process group has received already.
            return
        self.signal_number = number
        if not self._is_deferred:
            self.exit()
        if _ALARM and number in (signal.SIGTERM, signal.SIGINT):
            signal.setitimer(signal.ITIMER_REAL, GRACE_S)

    def _end_if_blocked(self, signals: socket.socket, is_connected: threading.Event) -> None:
        """End the process if a signal arrives and the main thread does not run its handler.

        Args:
            signals: Gets the number of each signal as a byte when it arrives.
            is_connected: Set when the main thread no longer waits.
        """
        while numbers := signals.recv(1):
            if numbers[0] not in _stop_signals():
                continue
            if is_connected.wait(SIGNAL_DELAY_S) or self.is_requested:
                continue
            for child in self.children:
                child.kill()
            for worker in multiprocessing.active_children():
                worker.kill()
            os.write(
                STANDARD_ERROR, b"eca-hub: Stopped while waiting for the other processes of this run to connect.\n"
            )
            _requeue_after(numbers[0])
            os._exit(128 + numbers[0])

    def _exit_now(self, number: int, frame: FrameType | None) -> None:
        # Not print(): the signal may have interrupted one.
        os.write(
            STANDARD_ERROR, b"Stopped without saving. The last checkpoint is intact; --resume continues from it.\n"
        )
        self.exit()


def _stop_signals() -> tuple[signal.Signals, ...]:
    requeue = (signal.SIGUSR1,) if _SLURM_JOB_VARIABLE in os.environ and hasattr(signal, "SIGUSR1") else ()
    return (signal.SIGTERM, signal.SIGINT, *requeue)


def _requeue_after(number: int) -> None:
    """Put the SLURM job of this process into the queue again, once per job, if the signal asks for that."""
    if number in (signal.SIGTERM, signal.SIGINT) or os.environ.get("SLURM_PROCID", "0") != "0":
        return
    job = os.environ[_SLURM_JOB_VARIABLE]
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        completed = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        failure = completed.stderr.strip() if completed.returncode else ""
    except OSError as error:
        failure = str(error)
    print(f"SLURM does not requeue job {job}: {failure}" if failure else f"SLURM requeues job {job}.", flush=True)
