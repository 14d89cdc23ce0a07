"""The data loader, and what its worker processes run beside the data set. Imports no Lightning, to start fast."""

import signal
from multiprocessing import resource_tracker
from typing import Any

import torch
from torch.utils.data import DataLoader

_BLOCKED_SIGNALS = {signal.SIGTERM, signal.SIGINT}


class SignalIgnoringDataLoader(DataLoader[Any]):
    """A DataLoader whose workers ignore SIGTERM and SIGINT from their first moment on.

    A signal to the whole process group must not end the workers before the trainer has saved. Handlers in the workers
    would be installed too late: a worker takes seconds to start. Signals that are blocked when a process is started
    stay blocked in it.
    """

    def __iter__(self) -> Any:
        if not self.num_workers or not hasattr(signal, "pthread_sigmask"):
            return super().__iter__()
        # The resource tracker unblocks these signals when it starts, with the first process that is spawned.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED_SIGNALS)
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def identity_collate(batch: Any) -> Any:
    """Return the batch as the data set made it."""
    return batch


def use_one_thread(worker: int) -> None:
    """Leave the other cores to the other workers and to the trainer."""
    torch.set_num_threads(1)
