"""Where in a network an attention method is inserted.

A method declares its insertion point with a class attribute `insertion_point`; a backbone lists the kinds that it
supports. A method without the attribute, or any other callable, is inserted into every residual block before the
addition. Stages count from 1, and so do the blocks of a stage.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class InsideBlock:
    """Inside residual blocks, after the last norm and before the addition."""

    first_stage: int = 1
    """The first stage that gets it."""
    only_last_block: bool = False
    """Whether only the last block of a stage gets it."""
    keeps_last_size: bool = False
    """Whether the stride of the last stage is removed, so that its maps keep the size of the stage before."""


@dataclass(frozen=True)
class AfterBlock:
    """After whole residual blocks, behind the addition and its activation."""

    num_blocks: Mapping[int, int] = field(default_factory=dict)
    """Stage to the number of its blocks that are followed by one."""
    last: int = -1
    """The last block that is followed by one: -1 is the last of its stage, -2 the one before."""

    def blocks(self, depths: Sequence[int]) -> list[str]:
        """Name the blocks, such as `2.4` for the fourth of the second stage, spread evenly over each stage.

        Args:
            depths: Number of blocks of each stage.
        """
        names = []
        for stage, wanted in self.num_blocks.items():
            usable = max(1, depths[stage - 1] + 1 + self.last) if stage <= len(depths) else 0
            number = min(wanted, usable)
            names += [f"{stage}.{(index + 1) * usable // number}" for index in range(number)]
        return names


@dataclass(frozen=True)
class ReplaceConv:
    """Replaces the 3x3 convolution of a block: called with its output channels, input channels and stride."""

    first_stage: int = 1
    """The first stage whose convolutions are replaced."""


InsertionPoint = InsideBlock | AfterBlock | ReplaceConv
