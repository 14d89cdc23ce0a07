"""Processes that prepare batches leave signals to the trainer, from the moment they are started."""

import signal

import pytest
from torch.utils.data import Dataset

from eca_hub.train.data.workers import SignalIgnoringDataLoader


class HeldBack(Dataset[set[int]]):
    """Returns which signals are blocked in the process that reads it."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, number: int) -> set[int]:
        return {int(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, set())}


@pytest.mark.parametrize(("num_workers", "is_deaf"), [(0, False), (1, True)])
def test_workers_ignore_signals_and_the_trainer_does_not(num_workers: int, is_deaf: bool) -> None:
    method = "spawn" if num_workers else None
    [held] = SignalIgnoringDataLoader(
        HeldBack(), batch_size=None, num_workers=num_workers, multiprocessing_context=method
    )
    assert ({signal.SIGINT, signal.SIGTERM} <= held) == is_deaf
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, set())
