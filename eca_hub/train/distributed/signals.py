"""A wish to stop, from outside: noted at once, acted on at the next place where a checkpoint makes sense.

SIGTERM ends with exit code 143 and Ctrl-C with 130. Where there is nothing to save both end the process at once. A
second Ctrl-C does not wait; neither does the alarm, when the next place is too far off. Knows nothing of training.
"""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

STANDARD_ERROR = 2
STOPPED_CODES = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""What a process ends with that was asked to."""

PATIENCE_S = 8.0
"""How long a place may take to come, within the ten seconds that most schedulers give."""


class Stopped(SystemExit):
    """The process ends because it was asked to."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


def end_workers() -> None:
    """End the data workers that are left, at once.

    They leave SIGTERM to the trainer, but that is how torch and Python ask them to end: each would be waited for
    seconds, the last one forever.
    """
    # Torch would take their end for an accident, and say so.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in multiprocessing.active_children():
        worker.kill()


class StopWish:
    """Ends the process when a signal comes, or remembers it."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The first signal that came."""
        self._is_patient = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Listen inside the block, which must be run by the main thread."""
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
        before = {number: signal.getsignal(number) for number in numbers}
        try:
            self.listen(patiently=False)
            yield
        finally:
            self.calm()
            for number, handler in before.items():
                signal.signal(number, handler)

    def listen(self, *, patiently: bool) -> None:
        """Take the signals over, again if somebody else has taken them meanwhile.

        Args:
            patiently: Whether they wait for a good place, for whose coming the caller answers.
        """
        self._is_patient = patiently
        if self.number is not None and not patiently:
            self.obey()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)
        signal.signal(signal.SIGALRM, self._give_up)

    def calm(self) -> None:
        """Let what has begun take its time."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def obey(self) -> NoReturn:
        """End the process.

        Raises:
            Stopped: always.
        """
        end_workers()
        raise Stopped(self.number or signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            if number == signal.SIGINT:
                self._give_up(number, frame)
            # A launcher passes on what the whole group has got already.
            return
        self.number = number
        if not self._is_patient:
            self.obey()
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)

    def _give_up(self, number: int, frame: FrameType | None) -> None:
        # Not by print: the signal may have come while something is being printed.
        os.write(STANDARD_ERROR, b"Stopped at once; what was saved before is whole, and --resume goes on from it.\n")
        self.obey()
