"""Convert checkpoints of ECANet, torchvision, timm and mmdetection into packages.

Nothing is written unless every tensor fits. `export` converts the other way.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from torch import nn

from eca_hub.errors import CheckpointMismatch, InvalidConfig
from eca_hub.hub.card.edit import license_facts
from eca_hub.hub.card.facts import CardFacts
from eca_hub.hub.convert.architecture import (
    check_architecture,
    detect_architecture,
    has_same_small_stem,
    same_tensors,
)
from eca_hub.hub.convert.checkpoint_reader import Checkpoint, read_checkpoint
from eca_hub.hub.convert.mmdetection import backbone_of, is_mmdetection, translate_heads
from eca_hub.hub.package import (
    CARD_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    check_new_folder,
    command_for,
    config_from_json,
    is_own_config,
    is_package_config,
    new_folder,
)
from eca_hub.hub.pretrained import default_labels, save_detector, save_pretrained
from eca_hub.hub.timm_format import image_config_from_timm, index_labels
from eca_hub.hub.weights import build_and_load
from eca_hub.models.backbones import BACKBONES
from eca_hub.models.build import build_model, resolve_config
from eca_hub.models.config import ImageConfig, ModelConfig
from eca_hub.models.detector_config import DetectorConfig
from eca_hub.models.detectors import build_detector

_log = logging.getLogger(__name__)


def convert_checkpoint(
    file: str | Path | Checkpoint,
    folder: str | Path | None = None,
    *,
    architecture: str | None = None,
    labels: Sequence[str] | None = None,
    image: ImageConfig | Mapping[str, Any] | None = None,
) -> tuple[nn.Module, ModelConfig]:
    """Build a network of this library from a checkpoint of ECANet, torchvision or timm, with the same outputs.

    Depth, attention method and kernel sizes are detected from the tensors; or the network, labels and preprocessing are
    read from the config.json that timm writes beside its weights. What the file leaves open is logged as a warning:
    which of several sets of weights was read, which other networks have the same tensors, and a config.json that was
    not used.

    Args:
        file: What torch.save wrote (`.pth.tar`, `.pth`, `.pt`), or a `.safetensors` file; or what `read_checkpoint`
            returned.
        folder: Where to write a package, new or empty; none is written if not given.
        architecture: Such as `resnet50` or `eca_resnet50`, or any network of timm, `ecaresnet50d`. Needed only for
            those of timm that are not in `eca-hub models`.
        labels: Class names in the order of the outputs; those of ImageNet for 1000 outputs, else indices, when not
            given.
        image: Preprocessing, or those fields of it that differ from the authors' validation:
            `{"height_px": 288, "width_px": 288}` for weights of larger images.

    Returns:
        The network in evaluation mode, and its configuration.

    Raises:
        InvalidConfig: no such file, not a checkpoint, the weights of a package, a folder that is not empty, too few or
            too many labels, or preprocessing that cannot work.
        UnknownName: an unknown architecture, or a tag that timm does not have for it.
        CheckpointMismatch: the weights do not fit; names the first that do not.
    """
    if folder is not None:
        check_new_folder(folder)
    if architecture is not None:
        check_architecture(architecture)
    checkpoint = file if isinstance(file, Checkpoint) else read_checkpoint(file)
    file, weights = checkpoint.path, checkpoint.weights
    if is_mmdetection(weights):
        raise CheckpointMismatch(
            f"{file} holds a detector of mmdetection, not a classifier.",
            hint="Convert it with eca_hub.convert_detector, or eca-hub convert.",
        )
    known = _config_beside(file, is_used=architecture is None)
    if checkpoint.note:
        _log.warning("%s", checkpoint.note)
    source = f", which the {CONFIG_FILE} beside it names" if known else ""
    if known is None:
        detected = detect_architecture(weights, architecture)
        known = dataclasses.replace(
            detected.config,
            labels=default_labels(detected.num_classes),
            image=_image_config(detected.config.architecture, architecture),
        )
        weights = detected.weights
        if architecture is None and (others := same_tensors(detected.config)):
            _log.warning(
                "%s was taken for %s. Tensors of the same names and shapes, and other outputs: %s. "
                "--architecture NAME decides.",
                file,
                _name(detected.config),
                ", ".join(others),
            )
        if architecture is None and has_same_small_stem(detected.config):
            _log.warning("%s was taken for a network with the default stem; a small stem has the same tensors.", file)
    config = dataclasses.replace(
        known,
        labels=_labels(labels, known.num_classes) if labels is not None else known.labels,
        image=image if isinstance(image, ImageConfig) else _replace_fields(known.image, image or {}),
    )
    resolved = resolve_config(config)
    name = _name(resolved)
    model = build_and_load(
        lambda: build_model(resolved), weights, sentence=f"The weights in {file} do not fit {name}{source}"
    ).eval()
    model.config = resolved  # type: ignore[assignment]
    if folder is not None:
        with new_folder(folder) as draft:
            save_pretrained(model, draft, facts=card_facts(file, resolved))
    return model, resolved


def convert_detector(
    file: str | Path | Checkpoint, folder: str | Path | None = None, *, labels: Sequence[str] | None = None
) -> tuple[nn.Module, DetectorConfig]:
    """Build a detector of this library from a checkpoint of mmdetection, with all of its tensors.

    Its average precision is not that of mmdetection: anchors and regions are computed in torchvision's way.

    Args:
        file: What mmdetection wrote, or what `read_checkpoint` returned.
        folder: Where to write a package, new or empty; none is written if not given.
        labels: Class names in the order of mmdetection's; indices when not given.

    Returns:
        The network in evaluation mode, and its configuration.

    Raises:
        InvalidConfig: no such file, not a checkpoint, a folder that is not empty, or too few or too many labels.
        CheckpointMismatch: it holds another detector, or other tensors than these detectors have.
    """
    if folder is not None:
        check_new_folder(folder)
    checkpoint = file if isinstance(file, Checkpoint) else read_checkpoint(file)
    file, weights = checkpoint.path, checkpoint.weights
    if not is_mmdetection(weights):
        raise CheckpointMismatch(
            f"{file} holds no detector of mmdetection.", hint="Classifiers: eca_hub.convert_checkpoint."
        )
    if checkpoint.note:
        _log.warning("%s", checkpoint.note)
    detector, num_classes, heads = translate_heads(weights, str(file))
    body = detect_architecture(backbone_of(weights), hint="Detectors with another backbone cannot be converted.")
    if labels is not None and len(labels) != num_classes:
        raise InvalidConfig(f"There are {len(labels)} labels, and the detector in the file has {num_classes} classes.")
    config = DetectorConfig(
        detector,
        body.config.architecture,
        body.config.attention,
        body.config.attention_args,
        tuple(labels) if labels is not None else index_labels(num_classes),
    )
    model = build_and_load(
        lambda: build_detector(config),
        heads | {f"backbone.body.{name}": tensor for name, tensor in body.weights.items()},
        sentence=f"The weights in {file} do not fit {config.name}",
    ).eval()
    resolved = model.config
    assert isinstance(resolved, DetectorConfig)
    if folder is not None:
        with new_folder(folder) as draft:
            save_detector(model, draft, facts=_detector_facts(resolved, file))
    return model, resolved


def _config_beside(file: Path, *, is_used: bool) -> ModelConfig | None:
    """Return the configuration in the config.json that timm writes beside its weights, if there is one.

    Other programs write a config.json too, which says nothing about the file.

    Raises:
        InvalidConfig: the file is the weights of a package, or config.json cannot be read.
    """
    path = file.with_name(CONFIG_FILE)
    try:
        text = path.read_bytes() if path.is_file() else None
    except OSError as error:
        raise InvalidConfig(f"{path} cannot be read: {error.strerror or error}.") from None
    if text is None:
        return None
    if not is_used or not is_package_config(text):
        reason = "it is neither eca-hub's nor timm's" if is_used else "the architecture is given"
        _log.warning("%s is not used: %s.", path, reason)
        return None
    if file.name == WEIGHTS_FILE and is_own_config(text):
        raise InvalidConfig(
            f"{file} is part of the package {file.parent}, which needs no conversion.",
            hint=f"Use it: eca-hub {command_for(text)} image.jpg --model {file.parent}",
        )
    return config_from_json(text, origin=str(file.parent), default_labels_for=default_labels)


def _name(config: ModelConfig) -> str:
    return config.architecture if config.attention == "none" else f"{config.attention}_{config.architecture}"


def _labels(given: Sequence[str], num_classes: int) -> tuple[str, ...]:
    if len(given) != num_classes:
        raise InvalidConfig(f"There are {len(given)} labels, and the network in the file has {num_classes} outputs.")
    return tuple(given)


def _image_config(backbone: str, requested: str | None) -> ImageConfig:
    """Return the authors' validation: timm's own configuration; for ECANet and torchvision 256, bilinear, crop 224."""
    if requested is None or (backbone in BACKBONES and "." not in requested):
        return ImageConfig(interpolation="bilinear")
    pretrained_cfg = timm.get_pretrained_cfg(requested)
    if pretrained_cfg is None:
        return ImageConfig()
    try:
        return image_config_from_timm(vars(pretrained_cfg))
    except ValueError as error:
        raise InvalidConfig(f"timm's preprocessing for {requested} cannot be used: {error}") from None


def _replace_fields(image: ImageConfig, fields: Mapping[str, Any]) -> ImageConfig:
    known = [field.name for field in dataclasses.fields(ImageConfig)]
    unknown = [name for name in fields if name not in known]
    if unknown:
        raise InvalidConfig(f"Preprocessing has no {', '.join(unknown)}; it has {', '.join(known)}.")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return dataclasses.replace(image, **values)


def card_facts(file: str | Path, config: ModelConfig) -> CardFacts:
    """Return what the model card of a converted checkpoint states; its license is that of the package around the file.

    Args:
        file: The checkpoint.
        config: Its resolved configuration, as `convert_checkpoint` returns it.
    """
    path, name = Path(file), _name(config)
    config_bytes = _read_beside(path, CONFIG_FILE)
    is_package = is_package_config(config_bytes)
    return dataclasses.replace(
        license_facts(_read_beside(path, CARD_FILE), config_bytes) if is_package else CardFacts(),
        title=name,
        summary=f"A {name} image classifier with {config.num_classes} classes, converted from `{path.name}`. "
        "The weights are unchanged.",
    )


def _read_beside(file: Path, name: str) -> bytes:
    with contextlib.suppress(OSError):
        return file.with_name(name).read_bytes()
    return b""


def _detector_facts(config: DetectorConfig, file: Path) -> CardFacts:
    return CardFacts(
        title=config.name,
        summary=f"A detector of {config.num_classes} classes, converted from `{file.name}`, a checkpoint of "
        "mmdetection. The weights are unchanged; anchors, regions and P7 of RetinaNet are computed in torchvision's "
        "way, so that the average precision that mmdetection reports does not carry over: measure it again.",
    )
