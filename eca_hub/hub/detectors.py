"""Detectors as packages: the network, its config.json, its weights and its model card."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
from torch import nn

from eca_hub.atomic import write_atomic
from eca_hub.errors import CheckpointMismatch, InvalidConfig
from eca_hub.hub.card import CardFacts
from eca_hub.hub.detector_card import render_detector_card
from eca_hub.hub.detector_format import detector_to_dict
from eca_hub.hub.package import (
    CARD_FILE,
    CONFIG_FILE,
    FORMAT,
    LIBRARY_NAME,
    WEIGHTS_FILE,
    Package,
    detector_config_from_json,
    to_json_text,
)
from eca_hub.hub.safetensors_reader import read_tensors
from eca_hub.hub.weights import build_and_load, check_finite
from eca_hub.models.build import count_parameters
from eca_hub.models.detector_config import DetectorConfig
from eca_hub.models.detectors import build_detector


def save_detector(
    model: nn.Module, folder: str | Path, *, labels: Sequence[str] | None = None, facts: CardFacts | None = None
) -> Path:
    """Write a detector as a package: config.json, model.safetensors and a model card; config.json last.

    Args:
        model: The network, as `create_detector` makes it.
        folder: Where to; made if absent.
        labels: Class names in the order of the outputs; those of the configuration when not given.
        facts: Training and results for the model card.

    Returns:
        The folder.

    Raises:
        InvalidConfig: there are no labels, or not one for each class, or the network is no detector.
        CheckpointMismatch: a weight is NaN or infinite.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, DetectorConfig):
        raise InvalidConfig("This network is no detector: it has no DetectorConfig.", hint="create_detector sets it.")
    if labels is not None:
        config = dataclasses.replace(config, labels=tuple(labels))
    if not config.labels:
        raise InvalidConfig("A package needs labels, one for each class.", hint='Give labels=["car", "dog"].')
    num_classes = num_classes_of(model)
    if config.num_classes != num_classes:
        raise InvalidConfig(f"There are {config.num_classes} labels, and the network has {num_classes} classes.")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    check_finite(weights, sentence="The network cannot be saved")
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    card = render_detector_card(config, count_parameters(model), facts or CardFacts())
    document = {"format": FORMAT, "library_name": LIBRARY_NAME, **detector_to_dict(config)}
    write_atomic(path / CARD_FILE, card.encode())
    write_atomic(path / WEIGHTS_FILE, safetensors.torch.save(weights, metadata={"format": "pt"}))
    write_atomic(path / CONFIG_FILE, to_json_text(document).encode())
    return path


def read_detector(package: Package) -> nn.Module:
    """Build the detector of a package, with its weights, in evaluation mode; its `config` has the labels.

    Raises:
        InvalidPackage: the package is no detector, or its config.json cannot be used.
        CheckpointMismatch: the weights do not fit the network that config.json describes.
    """
    config = detector_config_from_json(package.config_bytes, origin=package.model_id)
    try:
        weights = read_tensors(package.weights_bytes)
    except ValueError as error:
        raise CheckpointMismatch(f"{WEIGHTS_FILE} of {package.model_id} is broken: {error}.") from None
    sentence = f"The weights of {package.model_id} do not fit its {CONFIG_FILE}"
    # Anchors are outside the state dict, so the network is built a second time, off the meta device.
    return build_and_load(lambda: build_detector(config), weights, sentence=sentence).eval()


def num_classes_of(model: nn.Module) -> int:
    """Count the object classes of a detector by its last layer."""
    if hasattr(model, "head"):
        return int(model.get_submodule("head.classification_head").num_classes)  # type: ignore[arg-type]
    return int(model.get_submodule("roi_heads.box_predictor.cls_score").out_features) - 1  # type: ignore[arg-type]
