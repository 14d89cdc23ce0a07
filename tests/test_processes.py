"""The processes of the quickstart: signals."""

import signal
from pathlib import Path

import pytest

from eca_hub.processes import Processes


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_the_parent_has_ignored_as_nohup_does_stays_ignored(
    number: signal.Signals, tmp_path: Path
) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Processes(tmp_path):
            assert signal.getsignal(number) is signal.SIG_IGN
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_signal_that_ends_a_program_interrupts_it(tmp_path: Path) -> None:
    # Also where nohup runs the tests.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt), Processes(tmp_path):
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
