"""Weights into a network, all or nothing.

Strict: what is missing, unexpected or of another shape is named, the first five of each, and nothing is loaded.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from eca_hub.errors import CheckpointMismatch

_NAMED = 5
_NUMPY_KNOWS = (torch.float64, torch.float32, torch.float16)


def load_strictly(model: nn.Module, weights: Mapping[str, Tensor], *, sentence: str) -> None:
    """Make the tensors the weights of a network, which may be on the meta device.

    Args:
        model: The network; unchanged if anything does not fit.
        weights: Name to tensor, on the CPU. Half precision is widened, which loses nothing.
        sentence: What does not fit what, without a full stop, to start the message with.

    Raises:
        CheckpointMismatch: names or shapes differ, or a number is NaN or infinite.
    """
    expected = model.state_dict()
    other_shapes = [name for name in weights if name in expected and weights[name].shape != expected[name].shape]

    def shapes(name: str) -> str:
        return f"{name} is {tuple(weights[name].shape)} in the file, {tuple(expected[name].shape)} in the network"

    problems = [
        *_name_some("missing", sorted(expected.keys() - weights.keys()), str),
        *_name_some("unexpected", sorted(weights.keys() - expected.keys()), str),
        *_name_some("of another shape", other_shapes, shapes),
    ]
    if problems:
        raise CheckpointMismatch(f"{sentence}: {'; '.join(problems)}.")
    broken = [name for name, tensor in weights.items() if not _is_finite(tensor)]
    problems = _name_some("with NaN or infinity", broken, str)
    if problems:
        raise CheckpointMismatch(f"{sentence}: {'; '.join(problems)}.")
    model.load_state_dict(_with_own_memory(weights), strict=True, assign=True)


def _is_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite. Either spoils the sum, which costs a sixth of asking each number.

    numpy adds in this thread: to wake torch's threads for each of some hundred small tensors costs more than adding.
    """
    if not tensor.is_floating_point():
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = (tensor if tensor.dtype in _NUMPY_KNOWS else tensor.float()).detach().numpy()
        return bool(np.isfinite(numbers.sum())) or bool(np.isfinite(numbers).all())


def _with_own_memory(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Two names, or a name and the rest of a larger tensor, may share memory in a file, but not in a network."""
    owned: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in weights.items():
        wide = tensor.float() if tensor.is_floating_point() else tensor
        storage = wide.untyped_storage()
        if storage.data_ptr() in taken or storage.nbytes() != wide.nbytes or not wide.is_contiguous():
            wide = wide.clone(memory_format=torch.contiguous_format)
        taken.add(wide.untyped_storage().data_ptr())
        owned[name] = wide
    return owned


def _name_some(kind: str, names: list[str], describe: Callable[[str], str]) -> list[str]:
    """Say how many, and name the first five."""
    return [f"{len(names)} {kind} ({', '.join(describe(name) for name in names[:_NAMED])})"] if names else []
