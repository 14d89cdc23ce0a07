"""What the loader needs of a loaded package, whatever kind of network it holds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eca_service.inference.decoder import Inputs
from eca_service.inference.types import ModelInfo
from eca_service.optimize.optimize import OptimizedModel

if TYPE_CHECKING:
    from torch.nn import Module

    from eca_hub import Classifier


@dataclass(frozen=True)
class LoadedPackage:
    """A package that is ready for engines."""

    info: ModelInfo
    """What clients may read about it."""
    networks: Sequence[OptimizedModel]
    """The network, once for each device."""
    inputs: Inputs
    """Makes the network's input from an image."""
    examples: Sequence[Any]
    """Inputs of typical size, which the engines run before they serve: their outputs must be finite."""
    max_batch: int
    """Images in a batch where the operator sets no limit."""
    explained: "Classifier | None" = None
    """The network as it was loaded: explanations register hooks, which the engines must not run."""
    optimize: "Callable[[], LoadedPackage] | None" = None
    """Makes the same package with faster networks, where these serve only until then."""

    @property
    def modules(self) -> "list[Module]":
        """All networks that are in memory."""
        return [*(network.module for network in self.networks), *([self.explained.model] if self.explained else [])]
