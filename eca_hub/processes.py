"""Run commands of eca-hub as child processes, and stop all of them at the end.

Each process leads its own session, so Ctrl-C reaches only the parent, which then stops the children in order.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Self

_STOP_S = 10.0
_POLL_S = 0.05


class ProcessFailed(Exception):
    """A command exited, or was not ready in time; the message has the last lines of its log."""


class Processes:
    """Child processes of one program. Leaving the `with` block stops those that still run.

    Args:
        log_dir: Folder for the output of background commands, as NAME.log.
    """

    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._keep = False

    def __enter__(self) -> Self:
        self._log_dir.mkdir(parents=True, exist_ok=True)
        # nohup ignores SIGHUP, so that a program outlives its terminal.
        obeyed = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]
        self._old_handlers = {number: signal.signal(number, _interrupt) for number in obeyed}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._keep or kind is not None:
                self.stop()
        finally:
            for number, handler in self._old_handlers.items():
                signal.signal(number, handler)

    def run(self, *args: str, stdout: int | IO[str] | None = None) -> str:
        """Run a command to its end and return its output, if `stdout` is a pipe."""
        process = self._popen(args, stdout)
        output, _ = process.communicate()
        del self._running[args[0]]
        if process.returncode != 0:
            raise ProcessFailed(f"`eca-hub {args[0]}` ended with exit code {process.returncode}.")
        return output.decode() if output else ""

    def start(self, *args: str, ready: str, timeout_s: float) -> str:
        """Start a command in the background, wait for a line of its log, and return the first group of the pattern."""
        log_path = self._log_dir / f"{args[0]}.log"
        with log_path.open("wb") as log:
            self._popen(args, log, subprocess.STDOUT)
        deadline = time.monotonic() + timeout_s
        while (match := re.search(ready, log_path.read_text(errors="replace"))) is None:
            self.check(args[0])
            if time.monotonic() > deadline:
                raise ProcessFailed(f"`eca-hub {args[0]}` was not ready after {timeout_s:g} s; log: {log_path}")
            time.sleep(_POLL_S)
        return match.group(1)

    def check(self, name: str) -> None:
        """Raise if a background command has exited."""
        code = self._running[name].poll()
        if code is not None:
            log_path = self._log_dir / f"{name}.log"
            tail = " | ".join(log_path.read_text(errors="replace").strip().splitlines()[-3:])
            raise ProcessFailed(f"`eca-hub {name}` ended with exit code {code}: {tail} (log: {log_path})")

    def keep(self) -> list[int]:
        """Leave the background commands running at the end; return their process ids."""
        self._keep = True
        return [process.pid for process in self._running.values()]

    def stop(self) -> None:
        """Stop the running commands, the latest first; kill those that ignore SIGTERM."""
        for _, process in reversed(list(self._running.items())):
            _signal_session(process, signal.SIGTERM)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                pass
            finally:
                # Children of the command are in its session and end with it.
                _signal_session(process, signal.SIGKILL)
                process.wait()
        self._running.clear()

    def _popen(
        self, args: tuple[str, ...], stdout: int | IO[Any] | None, stderr: int | None = None
    ) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "eca_hub", *args]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
        )
        self._running[args[0]] = process
        return process


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _signal_session(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return
