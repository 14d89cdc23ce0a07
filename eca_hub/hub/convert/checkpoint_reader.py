"""Read the tensors of a checkpoint that another program wrote.

No code from the file runs: it is read as safetensors, or in PyTorch's format with `weights_only=True`, which builds
tensors and plain containers only.
"""

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eca_hub.errors import CheckpointMismatch, InvalidConfig
from eca_hub.hub.package import is_file
from eca_hub.hub.weights import UnsupportedDtype, read_tensors

_EMA_KEYS = ("state_dict_ema", "model_ema")
_STATE_DICT_KEYS = (*_EMA_KEYS, "state_dict", "model_state_dict", "model", "net")
"""Keys under which training scripts store the weights beside epoch and optimizer; the first one present is used: the
moving average of the weights before the weights themselves, as timm does."""

_KEY_PREFIXES = ("module.", "_orig_mod.", "model.")
"""Prefixes that DataParallel, torch.compile and Lightning add to every name."""


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint, and how they were found."""

    path: Path
    """The file."""
    weights: dict[str, Tensor]
    """On the CPU, named as in the bare network."""
    note: str
    """Which of several sets of weights was read; empty if the file holds one."""


def read_weights(file: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint; see `read_checkpoint`."""
    return read_checkpoint(file).weights


def read_checkpoint(file: str | Path) -> Checkpoint:
    """Read the tensors of a checkpoint on the CPU, named as in the bare network.

    Args:
        file: A `.safetensors` file, or what torch.save wrote (`.pth`, `.pt`, `.pth.tar`, `.bin`): a state dict, or a
            dict that holds one beside epoch and optimizer.

    Raises:
        InvalidConfig: no such file, or none of these formats.
        CheckpointMismatch: it holds no weights, or reading it would run code.
    """
    path = Path(file)
    if not is_file(path):
        raise InvalidConfig(f"There is no file {str(path)!r}.", hint="Give the checkpoint itself, not a folder.")
    try:
        content = _read_safetensors(path) if _is_safetensors(path) else _read_pickle(path)
    except OSError as error:
        raise InvalidConfig(f"{path} cannot be read: {error.strerror or error}.") from None
    return Checkpoint(path, _strip_prefixes(_select_state_dict(content, path)), _note(content, path))


def _note(content: Any, path: Path) -> str:
    present = [key for key in _STATE_DICT_KEYS if isinstance(content.get(key), Mapping)]
    if len(present) < 2:
        return ""
    kind = "the moving average of the weights" if present[0] in _EMA_KEYS else "the first of these"
    return f"{path} holds {' and '.join(present)}: {present[0]} was read, {kind}."


def _is_safetensors(path: Path) -> bool:
    """Return whether the file starts with eight bytes of length and a JSON object."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _read_safetensors(path: Path) -> Any:
    try:
        return read_tensors(path.read_bytes())
    except UnsupportedDtype as error:
        raise InvalidConfig(f"{path} is not read: {error}.") from None
    except ValueError as error:
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
                f"{path} is not read: besides tensors it holds {named.group(1)}, which would run code from the file.",
                hint="Save it as a state dict: torch.save(model.state_dict(), 'weights.pth')",
            ) from None
        raise _no_checkpoint(path) from None
    # A broken file makes the reader raise exceptions of many types.
    except Exception:
        raise _no_checkpoint(path) from None


def _no_checkpoint(path: Path) -> InvalidConfig:
    return InvalidConfig(f"{path} is neither a complete safetensors file nor a complete PyTorch checkpoint.")


def _select_state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise CheckpointMismatch(f"{path} holds a {type(content).__name__}; a checkpoint is a dict of tensors.")
    for key in _STATE_DICT_KEYS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    others = [str(name) for name, value in content.items() if not isinstance(name, str) or not _is_plain(value)]
    if others or not content:
        held = f"{', '.join(others[:5])}, which are not plain tensors" if others else "nothing"
        raise CheckpointMismatch(
            f"{path} holds {held}.",
            hint=f"Weights are at the top level, or under one of {', '.join(_STATE_DICT_KEYS)}.",
        )
    return dict(content)


def _is_plain(value: object) -> bool:
    """Return whether a value is a dense, unquantized, real tensor that is stored in the file."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_complex()
    )


def _strip_prefixes(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove prefixes that every name has, and the counter that torch's AveragedModel adds."""
    weights = {name: tensor for name, tensor in weights.items() if name != "n_averaged"}
    for prefix in _KEY_PREFIXES * 2:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights
