"""The same done to many things at once, in threads of this process. Knows nothing of pictures."""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Thing = TypeVar("Thing")
Outcome = TypeVar("Outcome")


def at_once(
    do: Callable[[Thing], Outcome], things: Sequence[Thing], num_threads: int
) -> Generator[Outcome, None, None]:
    """Do something to each of many things; yield the outcomes in order, each as soon as it is there.

    Worth more than one thread where most of the work is done without Python's lock.

    Args:
        do: What is done; several threads call it at the same time.
        things: To each of which.
        num_threads: How many threads do it, beside the one that takes the outcomes; 1 does it in that one.
    """
    num_threads = min(num_threads, len(things))
    if num_threads < 2:
        yield from map(do, things)
        return
    # Threads are cheap beside a batch, and so none of them is there when the process is to end or to be copied.
    with ThreadPoolExecutor(num_threads) as pool:
        yield from pool.map(do, things)
