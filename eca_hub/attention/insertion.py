"""Where in a network a method belongs.

A method says so with a class attribute `place`; a backbone offers places and refuses those it lacks. A method that
says nothing, or any callable of yours, enters every residual block before the addition. Knows nothing of networks:
stages are counted from 1, blocks by their number within a stage.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class InBlock:
    """Inside residual blocks, after the last norm and before the addition."""

    first_stage: int = 1
    """The first stage that gets it."""
    only_last_block: bool = False
    """Whether only the last block of a stage gets it."""
    keeps_last_size: bool = False
    """Whether the last stage then works at the size of the one before, without its stride."""


@dataclass(frozen=True)
class AfterBlock:
    """Behind whole residual blocks, after the addition and its activation."""

    num_places: Mapping[int, int] = field(default_factory=dict)
    """How many blocks of a stage are followed by one: stage, counted from 1, to number."""
    last: int = -1
    """The last block that is followed by one: -1 is the last of its stage, -2 the one before."""

    def blocks(self, depths: Sequence[int]) -> list[str]:
        """Name the blocks, such as `2.4` for the fourth of the second stage, spread evenly over each stage.

        Args:
            depths: Number of blocks of each stage.
        """
        names = []
        for stage, wanted in self.num_places.items():
            usable = max(1, depths[stage - 1] + 1 + self.last) if stage <= len(depths) else 0
            number = min(wanted, usable)
            names += [f"{stage}.{(place + 1) * usable // number}" for place in range(number)]
        return names


@dataclass(frozen=True)
class InsteadOfConv:
    """In place of the 3x3 convolution of a block: called with its output channels, input channels and stride."""

    first_stage: int = 1
    """The first stage whose convolutions are replaced."""


Place = InBlock | AfterBlock | InsteadOfConv
"""Any of the three."""
