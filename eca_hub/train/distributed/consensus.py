"""Decide with all ranks whether to stop or to save, without waiting for the devices."""

from typing import Any

import torch
from torch import Tensor, distributed


class StopConsensus:
    """An asynchronous logical OR of flags over all ranks; a single process sees its own flags at once.

    A reduction on the device after every step would make it idle. So the flags are reduced between the CPUs, on a gloo
    group of their own, while the device computes: flags posted after one step are polled after the next one. A flag
    must be posted until it is polled, because `decide` discards an unfinished post.

    Args:
        world_size: Number of ranks. All of them must construct the object and call its methods in the same order.
    """

    def __init__(self, world_size: int) -> None:
        self._group: Any = distributed.new_group(backend="gloo") if world_size > 1 else None
        self._posted: tuple[distributed.Work, Tensor] | None = None

    def post(self, *flags: bool) -> None:
        """Start to reduce the flags of all ranks."""
        if self._group is not None:
            flag_F = torch.tensor(flags, dtype=torch.uint8)
            work = distributed.all_reduce(flag_F, distributed.ReduceOp.MAX, self._group, async_op=True)
            assert work is not None
            self._posted = work, flag_F

    def poll(self, *flags: bool) -> list[bool]:
        """Return the flags that any rank posted last; in a single process, `flags` themselves.

        Args:
            flags: The current flags of this rank.
        """
        if self._group is None:
            return list(flags)
        if self._posted is None:
            return [False] * len(flags)
        work, flag_F = self._posted
        work.wait()
        self._posted = None
        return [bool(flag) for flag in flag_F.tolist()]

    def decide(self, *flags: bool) -> list[bool]:
        """Return the current flags of any rank; all ranks wait for each other."""
        self.poll()
        self.post(*flags)
        return self.poll(*flags)
