"""Build a network around given weights: all of them, exactly, or none.

Missing and unexpected names and other shapes are refused by name, the first five of each.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Size, Tensor, nn
from torch.overrides import TorchFunctionMode

from eca_hub.errors import CheckpointMismatch
from eca_hub.models.build import check_materialized

Shapes = Mapping[str, Size]
WeightsFor = Callable[[Shapes], Mapping[str, Tensor]]

_NUM_NAMED = 5
_MAX_COMPUTED_BYTES = 2**30
_NUMPY_DTYPES = (torch.float64, torch.float32, torch.float16)


def build_and_load(
    build: Callable[[], nn.Module], weights: Mapping[str, Tensor] | WeightsFor, *, sentence: str
) -> nn.Module:
    """Build a network with the tensors as its weights, without copying them.

    It is built on the meta device first, where nothing is allocated or initialized, so that a configuration with a
    false size costs nothing before the weights are compared with it. Networks with tensors outside their state dict
    (non-persistent buffers, such as the index tables of Swin) are then built once more on the CPU, which computes them.

    Args:
        build: Makes the network; called once or twice.
        weights: Name to tensor, on the CPU, or a function that returns them for the names and shapes of the network.
            Half precision is converted to float32, which loses nothing.
        sentence: What does not fit what, without a full stop: the start of the message.

    Raises:
        CheckpointMismatch: names or shapes differ, a number is NaN or infinite, or the tensors outside the state dict
            are too large.
    """
    with torch.device("meta"), _SkipRandomInit():
        model = build()
    expected = model.state_dict()
    if callable(weights):
        weights = weights({name: tensor.shape for name, tensor in expected.items()})
    _check_fit(expected, weights, sentence)
    check_finite(weights, sentence=sentence)
    others = _tensors_outside_state_dict(model)
    if others:
        num_bytes = sum(tensor.nbytes for tensor in others.values())
        if num_bytes > _MAX_COMPUTED_BYTES:
            raise CheckpointMismatch(
                f"{sentence}: its index tables need {num_bytes} bytes; at most {_MAX_COMPUTED_BYTES} are allowed."
            )
        with _SkipRandomInit():
            model = build()
    model.load_state_dict(_with_own_memory(weights), strict=True, assign=True)
    check_materialized(model)
    return model


class _SkipRandomInit(TorchFunctionMode):
    """Skips the random initial weights of a network, which are overwritten anyway."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return args[0] if func in (Tensor.normal_, Tensor.uniform_) else func(*args, **(kwargs or {}))


def _tensors_outside_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return non-persistent buffers, and tensors that are plain attributes of a module."""
    saved = model.state_dict().keys()
    found = {name: buffer for name, buffer in model.named_buffers() if name not in saved}
    for place, module in model.named_modules():
        for name, value in vars(module).items():
            values = value if isinstance(value, list | tuple) else [value]
            found.update(
                (f"{place}.{name}.{index}", each) for index, each in enumerate(values) if isinstance(each, Tensor)
            )
    return found


def _check_fit(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], sentence: str) -> None:
    other_shapes = [name for name in weights if name in expected and weights[name].shape != expected[name].shape]

    def shapes(name: str) -> str:
        return f"{name} is {tuple(weights[name].shape)} in the file, {tuple(expected[name].shape)} in the network"

    problems = [
        *_count_and_name("missing", sorted(expected.keys() - weights.keys()), str),
        *_count_and_name("unexpected", sorted(weights.keys() - expected.keys()), str),
        *_count_and_name("of another shape", other_shapes, shapes),
    ]
    if problems:
        raise CheckpointMismatch(f"{sentence}: {'; '.join(problems)}.")


def check_finite(weights: Mapping[str, Tensor], *, sentence: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        CheckpointMismatch: a number is NaN or infinite; names the tensors.
    """
    broken = [name for name, tensor in weights.items() if not _is_finite(tensor)]
    if broken:
        raise CheckpointMismatch(f"{sentence}: {_count_and_name('with NaN or infinity', broken, str)[0]}.")


def _is_finite(tensor: Tensor) -> bool:
    """Return whether no number is NaN or infinite: either makes the sum so, which is six times as fast to compute.

    numpy adds in this thread: waking torch's threads for each of some hundred small tensors costs more than adding.
    """
    if not tensor.is_floating_point():
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = (tensor if tensor.dtype in _NUMPY_DTYPES else tensor.float()).detach().numpy()
        return bool(np.isfinite(numbers.sum())) or bool(np.isfinite(numbers).all())


def _with_own_memory(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory: two names, or a name and the rest of a larger tensor, may do so in a file."""
    owned: dict[str, Tensor] = {}
    used: set[int] = set()
    for name, tensor in weights.items():
        wide = tensor.float() if tensor.is_floating_point() else tensor
        storage = wide.untyped_storage()
        if storage.data_ptr() in used or storage.nbytes() != wide.nbytes or not wide.is_contiguous():
            wide = wide.clone(memory_format=torch.contiguous_format)
        used.add(wide.untyped_storage().data_ptr())
        owned[name] = wide
    return owned


def _count_and_name(kind: str, names: list[str], describe: Callable[[str], str]) -> list[str]:
    """Return `N KIND (NAME, ...)` with the first five names; nothing if there are none."""
    return [f"{len(names)} {kind} ({', '.join(describe(name) for name in names[:_NUM_NAMED])})"] if names else []
