"""One picture that has the machine to itself gets all cores; as soon as others come, each batch has one.

A batch on one core wastes nothing, so that is how most pictures are answered soonest when there are many. A lone caller
would see the other cores idle: on two of them a picture takes 24 ms instead of 32 in bf16.

Knows threads; nothing of networks.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from eca_service.inference.engine import Forward


class IntraOpThreads:
    """Counts who works on the cores that engines share. Who hangs counts for good: then nobody is alone any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_busy = 0

    @contextmanager
    def work(self) -> Iterator[bool]:
        """Work for the length of a `with` block; tells whether nobody else does."""
        with self._lock:
            is_alone = self._num_busy == 0
            self._num_busy += 1
        try:
            yield is_alone
        finally:
            with self._lock:
                self._num_busy -= 1


CORES = IntraOpThreads()
"""Of this process, whatever models it runs."""


def share_cores(forward: Forward, num_cores: int, cores: IntraOpThreads = CORES) -> Forward:
    """Run on the one core of the calling thread, or for one picture on all of them while nobody else works.

    Args:
        forward: Answers for a batch.
        num_cores: How many there are.
        cores: Who else works.
    """

    def run(pixels_N3HW: Tensor) -> Tensor:
        with cores.work() as is_alone:
            if not is_alone or len(pixels_N3HW) > 1:
                return forward(pixels_N3HW)
            torch.set_num_threads(num_cores)
            try:
                return forward(pixels_N3HW)
            finally:
                torch.set_num_threads(1)

    return run
