"""Other people's weights into packages: the official ECANet files, torchvision's and timm's.

Nothing in the file is run, nothing is guessed silently, and nothing is written unless everything fits. The way back, to
stock timm, is in `stock_timm`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from eca_hub.errors import InvalidConfig
from eca_hub.hub.card import CardFacts
from eca_hub.hub.checkpoint_reader import read_weights
from eca_hub.hub.detect import Recognized, recognize
from eca_hub.hub.labels import usual_labels
from eca_hub.hub.package import check_new_folder, new_folder
from eca_hub.hub.pretrained import save_pretrained
from eca_hub.hub.timm_config import image_from_timm
from eca_hub.hub.weights import load_strictly
from eca_hub.models.backbones import BACKBONES
from eca_hub.models.build import build_model, resolve_config
from eca_hub.models.config import ImageConfig, ModelConfig


def convert_checkpoint(
    file: str | Path,
    folder: str | Path | None = None,
    *,
    architecture: str | None = None,
    labels: Sequence[str] | None = None,
    image: ImageConfig | Mapping[str, Any] | None = None,
) -> tuple[nn.Module, ModelConfig]:
    """Make a network of this library from a checkpoint of ECANet, torchvision or timm.

    The outputs are those of the network that the weights came from. Depth, method and kernel sizes are read from the
    tensors.

    Args:
        file: What torch.save wrote (`.pth.tar`, `.pth`, `.pt`), or a `.safetensors` file.
        folder: Where to write a package; none is written if not given. A new or empty one.
        architecture: Such as `resnet50` or `eca_resnet50`, or any network of timm, `ecaresnet50d`. Needed only for
            those of timm that are not in `eca-hub models`.
        labels: Class names in the order of the outputs; for 1000 outputs those of ImageNet, else numbers, when not
            given.
        image: Preprocessing, or only those fields of it that differ from what the authors of the architecture validate
            with: `{"height_px": 288, "width_px": 288}` for weights of larger pictures.

    Returns:
        The network in evaluation mode, and its configuration.

    Raises:
        InvalidConfig: no such file, not a checkpoint, a folder that is not empty, labels that are too few or too many,
            or preprocessing that cannot work.
        UnknownName: nobody knows that architecture.
        CheckpointMismatch: the weights do not fit; names the first that do not.
    """
    if folder is not None:
        check_new_folder(folder)
    found = recognize(read_weights(file), architecture)
    if not isinstance(image, ImageConfig):
        image = _changed(_image_config(found.config.architecture, architecture), image or {})
    config = dataclasses.replace(found.config, labels=_labels(labels, found.num_classes), image=image)
    resolved = resolve_config(config)
    with torch.device("meta"):
        model = build_model(resolved)
    name = resolved.architecture if resolved.attention == "none" else f"{resolved.attention}_{resolved.architecture}"
    load_strictly(model, found.weights, sentence=f"The weights in {file} do not fit {name}")
    model.eval()
    if folder is not None:
        with new_folder(folder) as draft:
            save_pretrained(model, resolved, draft, facts=_facts(name, Path(file), found))
    return model, resolved


def _labels(given: Sequence[str] | None, num_classes: int) -> tuple[str, ...]:
    if given is None:
        return usual_labels(num_classes)
    if len(given) != num_classes:
        raise InvalidConfig(f"There are {len(given)} labels, and the network in the file has {num_classes} outputs.")
    return tuple(given)


def _image_config(backbone: str, said: str | None) -> ImageConfig:
    """Preprocess as the authors validate: timm by its own record; ECANet and torchvision 256, bilinear, crop of 224."""
    if said is None or (backbone in BACKBONES and "." not in said):
        return ImageConfig(interpolation="bilinear")
    record = timm.get_pretrained_cfg(said)
    if record is None:
        return ImageConfig()
    try:
        return image_from_timm(vars(record))
    except ValueError as error:
        raise InvalidConfig(f"The preprocessing that timm has for {said} cannot be used: {error}") from None


def _changed(image: ImageConfig, fields: Mapping[str, Any]) -> ImageConfig:
    known = [field.name for field in dataclasses.fields(ImageConfig)]
    unknown = [name for name in fields if name not in known]
    if unknown:
        raise InvalidConfig(f"Preprocessing has no {', '.join(unknown)}; it has {', '.join(known)}.")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return dataclasses.replace(image, **values)


def _facts(name: str, file: Path, found: Recognized) -> CardFacts:
    return CardFacts(
        title=name,
        summary=f"A {name} image classifier with {found.num_classes} classes, converted from `{file.name}`. "
        "The weights are unchanged.",
        license="other",
    )
