"""A network and the three files that hold it.

Weights are read once into memory and loaded from there: a memory map of the file would let whoever overwrites the file
change, or crash, a running model.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from eca_hub.errors import CheckpointMismatch, InvalidConfig
from eca_hub.hub.card import CardFacts, render_card
from eca_hub.hub.package import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, Package, config_from_json, config_to_json
from eca_hub.hub.pull import pull
from eca_hub.models.build import build_model, settle
from eca_hub.models.config import ModelConfig


def save_pretrained(
    model: nn.Module, config: ModelConfig, folder: str | Path, *, facts: CardFacts | None = None
) -> Path:
    """Write a network as a package: config.json, model.safetensors and a model card.

    Each file is complete before it gets its name, and config.json, which makes the folder a package, comes last.

    Args:
        model: The network; its weights are written from the CPU in their own dtype.
        config: What `build_model` needs to make it again, with its labels.
        folder: Where to; made if absent.
        facts: What the model card shall tell of training and results.

    Returns:
        The folder.

    Raises:
        InvalidConfig: the configuration has no labels.
    """
    if not config.labels:
        raise InvalidConfig(
            "A package needs labels, the class names in the order of the outputs.", hint="ModelConfig(labels=(...))"
        )
    settled = settle(config)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    _write(path / CARD_FILE, render_card(settled, num_parameters, facts or CardFacts()).encode())
    _write(path / WEIGHTS_FILE, safetensors.torch.save(weights, metadata={"format": "pt"}))
    _write(path / CONFIG_FILE, config_to_json(settled).encode())
    return path


def load_pretrained(id_or_folder: str | Path, revision: str | None = None) -> tuple[nn.Module, ModelConfig]:
    """Load a network and its configuration from the Hub or from a folder.

    Args:
        id_or_folder: `owner/name` on the hub that HF_ENDPOINT names, or a folder.
        revision: Branch, tag or commit; the main branch when none is given.

    Raises:
        HubError: the package is not to be had, or its bytes are not what the hub announced.
        CheckpointMismatch: the weights do not fit the network that config.json describes.
    """
    return read_package(pull(id_or_folder, revision))


def read_package(package: Package) -> tuple[nn.Module, ModelConfig]:
    """Make the network that a package describes, with its weights, in evaluation mode."""
    config = config_from_json(package.config_bytes, origin=package.model_id)
    try:
        weights = safetensors.torch.load(package.weights_bytes)
    except safetensors.SafetensorError as error:
        raise CheckpointMismatch(f"{WEIGHTS_FILE} of {package.model_id} is broken: {error}.") from None
    # On the meta device nothing is allocated or initialised, so a config that lies about its size costs nothing.
    with torch.device("meta"):
        model = build_model(config)
    _load_strictly(model, weights, origin=package.model_id)
    return model.eval(), config


def _load_strictly(model: nn.Module, weights: dict[str, Tensor], *, origin: str) -> None:
    expected = model.state_dict()
    problems = [
        *_name_some("missing", sorted(expected.keys() - weights.keys()), str),
        *_name_some("unexpected", sorted(weights.keys() - expected.keys()), str),
        *_name_some(
            "of another shape",
            [name for name, tensor in weights.items() if name in expected and tensor.shape != expected[name].shape],
            lambda name: (
                f"{name} is {tuple(weights[name].shape)} in the file, {tuple(expected[name].shape)} in the network"
            ),
        ),
    ]
    if problems:
        raise CheckpointMismatch(f"The weights of {origin} do not fit its config.json: {'; '.join(problems)}.")
    broken = [name for name, tensor in weights.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise CheckpointMismatch(f"The weights of {origin} hold NaN or infinity: {', '.join(broken[:5])}.")
    model.load_state_dict(weights, strict=True, assign=True)


def _name_some(kind: str, names: list[str], describe: Callable[[str], str]) -> list[str]:
    """Say how many, and name the first five."""
    return [f"{len(names)} {kind} ({', '.join(describe(name) for name in names[:5])})"] if names else []


def _write(path: Path, content: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
