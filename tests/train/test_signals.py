"""Signals: noted at once, obeyed at a good place, or at once when somebody insists or the place does not come."""

import os
import signal
from collections.abc import Iterator

import pytest

from eca_hub.train.distributed import signals
from eca_hub.train.distributed.signals import Stopped, StopWish


@pytest.fixture
def wish() -> Iterator[StopWish]:
    """A wish that is listening."""
    before = signal.getsignal(signal.SIGCHLD)
    found = StopWish()
    with found.listening():
        found.listen(patiently=True)
        yield found
    signal.signal(signal.SIGCHLD, before)


def test_a_signal_is_noted_and_nothing_is_interrupted(wish: StopWish) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    assert wish.number == signal.SIGTERM
    with pytest.raises(Stopped) as ended:
        wish.obey()
    assert ended.value.code == 143


def test_a_second_ctrl_c_does_not_wait(wish: StopWish, capfd: pytest.CaptureFixture[str]) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(Stopped) as ended:
        os.kill(os.getpid(), signal.SIGINT)
    assert ended.value.code == 130
    assert capfd.readouterr().err == (
        "Stopped at once; what was saved before is whole, and --resume goes on from it.\n"
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_where_nothing_is_to_be_saved_nothing_is_waited_for(number: int, code: int, wish: StopWish) -> None:
    wish.listen(patiently=False)
    with pytest.raises(Stopped) as ended:
        os.kill(os.getpid(), number)
    assert ended.value.code == code


def test_a_launcher_may_pass_on_what_the_group_has_got_already(wish: StopWish) -> None:
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGTERM)
    assert wish.number == signal.SIGTERM


def test_patience_ends(wish: StopWish) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    left_s, _ = signal.getitimer(signal.ITIMER_REAL)
    assert 0 < left_s <= signals.PATIENCE_S < 10
    with pytest.raises(Stopped) as ended:
        os.kill(os.getpid(), signal.SIGALRM)
    assert ended.value.code == 143


def test_what_has_begun_takes_its_time(wish: StopWish) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    wish.calm()
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_the_signals_are_given_back() -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    with StopWish().listening():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in numbers] == before
