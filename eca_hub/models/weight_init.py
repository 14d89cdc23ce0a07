"""Build a network without its initial weights."""

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


class SkipRandomInit(TorchFunctionMode):
    """Skips the random initial weights of a network that gets others, or that is built on the meta device and has none.

    They take half of the time to build one there.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Leave a tensor as it is where it would be filled with random numbers."""
        return args[0] if func in (Tensor.normal_, Tensor.uniform_) else func(*args, **(kwargs or {}))
