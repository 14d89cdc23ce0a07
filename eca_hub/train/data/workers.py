"""What the processes that prepare batches run, beside the pictures themselves. They need no Lightning."""

import signal
from multiprocessing import resource_tracker
from typing import Any

import torch
from torch.utils.data import DataLoader

_LEFT_TO_THE_TRAINER = {signal.SIGTERM, signal.SIGINT}


class SignalIgnoringDataLoader(DataLoader[Any]):
    """A loader whose workers are deaf to signals from their first moment on.

    A signal to the whole group must not kill them before the trainer has saved. Handlers of their own would come too
    late: starting takes seconds, in which Ctrl-C would print a traceback a worker. What is held back when a process is
    started is held back in it for good.
    """

    def __iter__(self) -> Any:
        if not self.num_workers:
            return super().__iter__()
        # It lets these signals through again when it starts, with the first process that is spawned.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_THE_TRAINER)
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def identity_collate(batch: Any) -> Any:
    """Leave a batch alone: the data set has made it whole."""
    return batch


def use_one_thread(worker: int) -> None:
    """Leave the other cores to the other workers, and to the trainer."""
    torch.set_num_threads(1)
