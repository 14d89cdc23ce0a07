"""What several processes must do together or not at all, such as saving or stopping: agreed on without waiting.

Knows nothing of checkpoints or signals.
"""

from typing import Any

import torch
from torch import Tensor, distributed


class Agreement:
    """Whether any process says so, known to all of them; alone, a process agrees with itself at once.

    Asking the device after every step would make it wait for the next one. So words travel between the processors, on
    a connection of their own, while the device computes: what is said after one step is heard after the next one. A
    flag has to be said until it is heard, for words that nobody waited for are dropped by `settle`.

    Args:
        world_size: How many processes there are; all must make it at the same time, and call it in the same order.
    """

    def __init__(self, world_size: int) -> None:
        self._group: Any = distributed.new_group(backend="gloo") if world_size > 1 else None
        self._said: tuple[distributed.Work, Tensor] | None = None

    def say(self, *flags: bool) -> None:
        """Send flags on their way to the others."""
        if self._group is not None:
            flag_F = torch.tensor(flags, dtype=torch.uint8)
            work = distributed.all_reduce(flag_F, distributed.ReduceOp.MAX, self._group, async_op=True)
            assert work is not None
            self._said = work, flag_F

    def hear(self, *flags: bool) -> list[bool]:
        """Return what any process has said the time before; of a process that is alone, what it says now.

        Args:
            flags: What this process would say now.
        """
        if self._group is None:
            return list(flags)
        if self._said is None:
            return [False] * len(flags)
        work, flag_F = self._said
        work.wait()
        self._said = None
        return [bool(flag) for flag in flag_F.tolist()]

    def settle(self, *flags: bool) -> list[bool]:
        """Return what any process says now, which all wait for."""
        self.hear()
        self.say(*flags)
        return self.hear(*flags)
