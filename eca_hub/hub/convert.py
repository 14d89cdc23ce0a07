"""Other people's weights into packages: the official ECANet files, torchvision's and timm's.

Nothing in the file is run, nothing is guessed silently, and nothing is written unless everything fits. The way back, to
stock timm, is in `stock_timm`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from torch import nn

from eca_hub.errors import InvalidConfig
from eca_hub.hub.card import CardFacts
from eca_hub.hub.checkpoint_file import read_weights
from eca_hub.hub.fit import load_strictly
from eca_hub.hub.folder import save_pretrained
from eca_hub.hub.imagenet import usual_labels
from eca_hub.hub.layouts import Recognized, recognize
from eca_hub.hub.whole import check_free, whole_folder
from eca_hub.models.backbones import BACKBONES
from eca_hub.models.build import build_model, settle
from eca_hub.models.config import ImageConfig, Interpolation, ModelConfig


def convert_checkpoint(
    file: str | Path,
    folder: str | Path | None = None,
    *,
    architecture: str | None = None,
    labels: Sequence[str] | None = None,
    image: ImageConfig | None = None,
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
        image: Preprocessing; what the authors of the architecture validate with when not given.

    Returns:
        The network in evaluation mode, and its configuration.

    Raises:
        InvalidConfig: no such file, not a checkpoint, a folder that is not empty, or labels that are too few or too
            many.
        UnknownName: nobody knows that architecture.
        CheckpointMismatch: the weights do not fit; names the first that do not.
    """
    if folder is not None:
        check_free(folder)
    found = recognize(read_weights(file), architecture)
    config = dataclasses.replace(
        found.config,
        labels=_labels(labels, found.num_classes),
        image=image or _image_config(found.config.architecture, architecture),
    )
    settled = settle(config)
    with torch.device("meta"):
        model = build_model(settled)
    name = settled.architecture if settled.attention == "none" else f"{settled.attention}_{settled.architecture}"
    load_strictly(model, found.weights, sentence=f"The weights in {file} do not fit {name}")
    model.eval()
    if folder is not None:
        with whole_folder(folder) as draft:
            save_pretrained(model, settled, draft, facts=_facts(name, Path(file), found))
    return model, settled


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
    cfg = timm.get_pretrained_cfg(said)
    if cfg is None:
        return ImageConfig()
    _, height_px, width_px = cfg.input_size
    return ImageConfig(
        height_px=height_px,
        width_px=width_px,
        crop=cfg.crop_pct,
        crop_mode="squash" if cfg.crop_mode == "squash" else "center",
        interpolation=_INTERPOLATIONS.get(cfg.interpolation, "bicubic"),
        mean=tuple(cfg.mean),  # type: ignore[arg-type]
        std=tuple(cfg.std),  # type: ignore[arg-type]
    )


_INTERPOLATIONS: dict[str, Interpolation] = {"nearest": "nearest", "bilinear": "bilinear", "bicubic": "bicubic"}


def _facts(name: str, file: Path, found: Recognized) -> CardFacts:
    return CardFacts(
        title=name,
        summary=f"A {name} image classifier with {found.num_classes} classes, converted from `{file.name}`. "
        "The weights are unchanged.",
        license="other",
    )
