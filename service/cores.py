"""How many cores a batch may use: one beside other batches, all of them for a picture that is alone.

Engines with a thread each and a core for each thread make most images a second: threads that share a batch wait for
each other. But with one caller the other cores would stand idle, and his picture would take twice as long.

Knows threads; nothing of networks or queues.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Cores:
    """The cores that the engines of one process share.

    Args:
        num_cores: How many there are.
    """

    def __init__(self, num_cores: int) -> None:
        self._num_cores = num_cores
        self._num_batches = 0
        self._lock = threading.Lock()

    @contextmanager
    def share(self, num_pictures: int) -> Iterator[None]:
        """Give this thread as many OpenMP threads as a batch of this size should have now."""
        with self._lock:
            self._num_batches += 1
            is_alone = self._num_batches == 1 and num_pictures == 1
        num_threads = self._num_cores if is_alone else 1
        if torch.get_num_threads() != num_threads:
            torch.set_num_threads(num_threads)
        try:
            yield
        finally:
            with self._lock:
                self._num_batches -= 1
