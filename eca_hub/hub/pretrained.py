"""A network and the three files that hold it.

Weights are read once into memory and loaded from there: a memory map of the file would let whoever overwrites the file
change, or crash, a running model.
"""

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from eca_hub.atomic import write_atomic
from eca_hub.errors import CheckpointMismatch, InvalidConfig
from eca_hub.hub.card import CardFacts, render_card
from eca_hub.hub.labels import usual_labels
from eca_hub.hub.package import (
    CARD_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    Package,
    check_new_folder,
    config_from_json,
    config_to_words,
    is_written_for_timm,
    new_folder,
    to_text,
)
from eca_hub.hub.pull import pull
from eca_hub.hub.safetensors_reader import read_tensors
from eca_hub.hub.timm_config import to_timm
from eca_hub.hub.timm_export import record_of, to_stock_timm, without_padding
from eca_hub.hub.weights import load_strictly
from eca_hub.models.build import build_model, resolve_config
from eca_hub.models.complexity import count_complexity
from eca_hub.models.config import ModelConfig


def save_pretrained(
    model: nn.Module, config: ModelConfig, folder: str | Path, *, facts: CardFacts | None = None, for_timm: bool = False
) -> Path:
    """Write a network as a package: config.json, model.safetensors and a model card.

    Where stock timm can express the network, the package is one of timm's as well: `timm.create_model("hf-hub:...")`
    and transformers load it without eca-hub, with the same outputs. Each file is complete before it gets its name,
    and config.json, which makes the folder a package, comes last.

    Args:
        model: The network; its weights are written from the CPU.
        config: What `build_model` needs to make it again, with its labels.
        folder: Where to; made if absent.
        facts: What the model card shall tell of training and results.
        for_timm: Refuse to write what stock timm cannot express.

    Returns:
        The folder.

    Raises:
        InvalidConfig: the configuration has no labels, or timm cannot express the network and must.
    """
    if not config.labels:
        raise InvalidConfig(
            "A package needs labels, the class names in the order of the outputs.", hint="ModelConfig(labels=(...))"
        )
    resolved = resolve_config(config)
    network, document = model, config_to_words(resolved)
    try:
        network, model_args = to_stock_timm(model, resolved)
        document = to_timm(resolved, model_args, record_of(network))
    except InvalidConfig:
        if for_timm:
            raise
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    card = render_card(resolved, count_complexity(resolved), facts or CardFacts(), is_timm=network is not model)
    write_atomic(path / CARD_FILE, card.encode())
    write_atomic(path / WEIGHTS_FILE, safetensors.torch.save(weights, metadata={"format": "pt"}))
    write_atomic(path / CONFIG_FILE, to_text(document).encode())
    return path


def export_to_timm(model: nn.Module, config: ModelConfig, folder: str | Path) -> Path:
    """Write a network as a folder that stock timm loads: `timm.create_model("local-dir:FOLDER", pretrained=True)`.

    What `save_pretrained` does wherever it can; here it must. The outputs stay the same; so do labels and
    preprocessing. Published on a hub, `hf-hub:OWNER/NAME` loads it.

    Args:
        model: The network.
        config: Its configuration, with labels.
        folder: Where to; a new or empty one.

    Raises:
        InvalidConfig: timm cannot express this network, which says why, or the folder is not empty.
    """
    with new_folder(check_new_folder(folder)) as draft:
        save_pretrained(model, config, draft, for_timm=True)
    return Path(folder)


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
    """Make the network that a package describes, with its weights, in evaluation mode.

    The bytes of the package become the memory of the network, so that a package makes one network.
    """
    config = config_from_json(package.config_bytes, origin=package.model_id, labels_for=usual_labels)
    try:
        weights = read_tensors(package.weights_bytes)
    except ValueError as error:
        raise CheckpointMismatch(f"{WEIGHTS_FILE} of {package.model_id} is broken: {error}.") from None
    # On the meta device nothing is allocated or initialised, so a config that lies about its size costs nothing.
    with torch.device("meta"), _WithoutRandomNumbers():
        model = build_model(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if config.attention != "none" and is_written_for_timm(package.config_bytes):
        weights = without_padding(weights, shapes)
    load_strictly(model, weights, sentence=f"The weights of {package.model_id} do not fit its config.json")
    return model.eval(), config


class _WithoutRandomNumbers(TorchFunctionMode):
    """Leaves out the start values that a network gives its weights: on the meta device they are nothing, slowly."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return args[0] if func in (Tensor.normal_, Tensor.uniform_) else func(*args, **(kwargs or {}))
