"""Processes that prepare batches leave signals to the trainer, from the moment they are started."""

import signal
from collections.abc import Iterator

import pytest
from torch.utils.data import DataLoader, Dataset

from eca_hub.train.data.workers import SignalIgnoringDataLoader


class HeldBack(Dataset[set[int]]):
    """Returns which signals are blocked in the process that reads it."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, number: int) -> set[int]:
        return {int(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, set())}


def signals_held_by(loader: SignalIgnoringDataLoader) -> set[int]:
    [held] = loader
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, set()), "the trainer receives them"
    return set(held) & {signal.SIGINT, signal.SIGTERM}


def test_without_workers_the_trainer_that_reads_the_data_receives_signals() -> None:
    assert not signals_held_by(SignalIgnoringDataLoader(HeldBack(), batch_size=None))


@pytest.mark.slow
def test_workers_ignore_signals_and_the_trainer_does_not() -> None:
    loader = SignalIgnoringDataLoader(HeldBack(), batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert signals_held_by(loader) == {signal.SIGINT, signal.SIGTERM}


def test_workers_are_started_while_signals_are_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(loader: DataLoader[set[int]]) -> Iterator[set[int]]:
        return iter([loader.dataset[0]])

    monkeypatch.setattr(DataLoader, "__iter__", started)
    loader = SignalIgnoringDataLoader(HeldBack(), batch_size=None, num_workers=1)
    assert signals_held_by(loader) == {signal.SIGINT, signal.SIGTERM}
