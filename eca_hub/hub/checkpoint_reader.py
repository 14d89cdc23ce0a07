"""Weights out of other people's files, without running what is in them.

Reads safetensors, and PyTorch's own format through its restricted reader, which makes tensors and plain containers and
nothing else. Knows nothing of networks.
"""

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from eca_hub.errors import CheckpointMismatch, InvalidConfig

_BOXES = ("state_dict", "model_state_dict", "state_dict_ema", "model", "net")
"""Where training scripts keep the weights among epoch, optimizer and the like; the first one present is taken."""

_WRAPPERS = ("module.", "_orig_mod.", "model.")
"""What DataParallel, torch.compile and Lightning put before every name."""


def read_weights(file: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, on the CPU, under the names that the bare network gives them.

    Args:
        file: A `.safetensors` file, or what torch.save wrote (`.pth`, `.pt`, `.pth.tar`, `.bin`): a state dict, or a
            dict that holds one beside epoch and optimizer.

    Raises:
        InvalidConfig: no such file, or not one of these formats.
        CheckpointMismatch: it holds no weights, or reading it would mean running code.
    """
    path = Path(file)
    if not path.is_file():
        raise InvalidConfig(f"There is no file {str(path)!r}.", hint="Give the checkpoint itself, not a folder.")
    try:
        content = _read_safetensors(path) if _is_safetensors(path) else _read_pickle(path)
    except OSError as error:
        raise InvalidConfig(f"{path} cannot be read: {error.strerror or error}.") from None
    return _unwrap(_unbox(content, path))


def _is_safetensors(path: Path) -> bool:
    """Eight bytes of length, then JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _read_safetensors(path: Path) -> Any:
    try:
        return safetensors.torch.load(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise InvalidConfig(f"{path} is a broken safetensors file: {error}.") from None


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named:
            raise CheckpointMismatch(
                f"{path} is not read: beside tensors it holds {named.group(1)}, which would run code from the file.",
                hint="Where it was made: torch.save(model.state_dict(), 'weights.pth')",
            ) from None
        raise _no_checkpoint(path) from None
    # Whatever a broken file makes the reader raise, it is the file that is broken.
    except Exception:
        raise _no_checkpoint(path) from None


def _no_checkpoint(path: Path) -> InvalidConfig:
    return InvalidConfig(f"{path} is neither a whole safetensors file nor a whole PyTorch checkpoint.")


def _unbox(content: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise CheckpointMismatch(f"{path} holds a {type(content).__name__}; a checkpoint is a dict of tensors.")
    for box in _BOXES:
        if isinstance(content.get(box), Mapping):
            content = content[box]
            break
    others = [str(name) for name, value in content.items() if not isinstance(name, str) or not _is_plain(value)]
    if others or not content:
        held = f"{', '.join(others[:5])}, which are no plain tensors" if others else "nothing"
        raise CheckpointMismatch(
            f"{path} holds {held}.", hint=f"Weights stand at the top, or under one of {', '.join(_BOXES)}."
        )
    return dict(content)


def _is_plain(value: object) -> bool:
    """Dense, unquantized numbers that are really in the file."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_complex()
    )


def _unwrap(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off what stands before every name."""
    for wrapper in _WRAPPERS * 2:
        if all(name.startswith(wrapper) for name in weights):
            weights = {name.removeprefix(wrapper): tensor for name, tensor in weights.items()}
    return weights
