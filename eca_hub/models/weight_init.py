"""Build a network without computing its initial weights."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@contextlib.contextmanager
def on_meta_device() -> Iterator[None]:
    """Build networks in the block that have names and shapes, and neither memory nor values."""
    with torch.device("meta"), SkipRandomInit():
        yield


class SkipRandomInit(TorchFunctionMode):
    """Skips random initialization while a network is built whose weights are loaded later, or never (meta device).

    On the meta device, initialization took half of the time of building a network.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return the tensor unchanged instead of filling it with random numbers."""
        return args[0] if func in (Tensor.normal_, Tensor.uniform_) else func(*args, **(kwargs or {}))
