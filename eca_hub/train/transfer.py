"""What training starts from: fresh weights, or those of a package with a head for other classes.

Knows nothing of optimizers or data.
"""

import dataclasses
from typing import Literal

import torch
from torch import nn

from eca_hub.errors import InvalidConfig
from eca_hub.hub.pretrained import load_pretrained
from eca_hub.models.build import build_model, settle
from eca_hub.models.config import ModelConfig

Train = Literal["all", "all_but_norms", "head"]


def start_from(id_or_folder: str, revision: str | None, config: ModelConfig) -> tuple[nn.Module, ModelConfig]:
    """Take the weights of a package; where its labels are others, with a fresh head for those of the configuration.

    Args:
        id_or_folder: `owner/name` on the hub, or a folder.
        revision: Branch, tag or commit.
        config: Labels and preprocessing of the new network; architecture and attention are the package's.

    Raises:
        HubError: the package is not to be had.
    """
    source, source_config = load_pretrained(id_or_folder, revision)
    new_config = dataclasses.replace(source_config, labels=config.labels, image=config.image)
    model = build_model(new_config)
    weights = source.state_dict()
    if new_config.labels != source_config.labels:
        for name in head_names(new_config):
            del weights[name]
    _, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    return model, new_config


def head_names(config: ModelConfig) -> set[str]:
    """Find the weights whose shape depends on the number of classes."""
    with torch.device("meta"):
        shapes, others = (
            {name: tensor.shape for name, tensor in build_model(config, num_classes=number).state_dict().items()}
            for number in (3, 5)
        )
    return {name for name, shape in shapes.items() if others[name] != shape}


def freeze(model: nn.Module, config: ModelConfig, train: Train) -> None:
    """Stop what shall not learn: its weights keep no gradient, and its norms keep their statistics."""
    head = head_names(settle(config))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = train != "head" or name in head
    if train == "all_but_norms":
        for norm in norms(model):
            for parameter in norm.parameters():
                parameter.requires_grad = False


def norms(model: nn.Module) -> list[nn.Module]:
    """Find the layers that keep statistics."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


class Teacher:
    """A trained network whose answers the student learns as well.

    Kept apart from the student's modules, so that no checkpoint holds it.

    Args:
        id_or_folder: `owner/name` on the hub, or a folder.
        config: The student's; labels must be the same.

    Raises:
        InvalidConfig: the teacher knows other classes, or sees pictures of another size.
    """

    def __init__(self, id_or_folder: str, config: ModelConfig) -> None:
        self._model, teacher_config = load_pretrained(id_or_folder)
        if teacher_config.labels != config.labels:
            raise InvalidConfig(
                f"The teacher {id_or_folder} knows {teacher_config.num_classes} classes, the data have "
                f"{config.num_classes}, or they are in another order; both must be the same."
            )
        image, student_image = teacher_config.image, config.image
        if (image.mean, image.std) != (student_image.mean, student_image.std):
            raise InvalidConfig(
                f"The teacher {id_or_folder} was trained with mean {image.mean} and std {image.std}, the data have "
                f"{student_image.mean} and {student_image.std}.",
                hint="Give --data.image.mean and --data.image.std.",
            )
        self._model.requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, x_N3HW: torch.Tensor) -> torch.Tensor:
        """Answer a batch: normalised (N, 3, H, W) to logits (N, K)."""
        logits_NK: torch.Tensor = self._model.to(x_N3HW.device)(x_N3HW)
        return logits_NK
