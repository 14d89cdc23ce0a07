"""Transfer learning: pretrained weights with a new head, frozen layers, distillation."""

import dataclasses
from typing import Literal

import torch
from torch import nn

from eca_hub.errors import InvalidConfig
from eca_hub.hub.pretrained import load_pretrained
from eca_hub.models.build import build_model, resolve_config
from eca_hub.models.config import ModelConfig
from eca_hub.models.weight_init import on_meta_device

Freeze = Literal["none", "norms", "backbone"]


def load_pretrained_backbone(
    id_or_folder: str, revision: str | None, config: ModelConfig
) -> tuple[nn.Module, ModelConfig, bool]:
    """Load the weights of a package. Where labels or problem type differ from the package's, the head is new.

    Args:
        id_or_folder: `owner/name` on the hub, or a folder.
        revision: Branch, tag or commit.
        config: Labels and preprocessing of the new network; architecture and attention are the package's.

    Returns:
        The network, its configuration, and whether its head is new.

    Raises:
        HubError: the package cannot be loaded.
        InvalidConfig: its input has another number of channels.
    """
    source, source_config = load_pretrained(id_or_folder, revision)
    check_channels(source_config, config, f"The package {id_or_folder}")
    new_config = dataclasses.replace(
        source_config, labels=config.labels, image=config.image, problem_type=config.problem_type
    )
    model = build_model(new_config)
    weights = source.state_dict()
    has_new_head = (new_config.labels, new_config.problem_type) != (source_config.labels, source_config.problem_type)
    if has_new_head:
        for name in head_names(new_config):
            del weights[name]
    _, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    return model, new_config, has_new_head


def check_channels(source: ModelConfig, config: ModelConfig, title: str) -> None:
    """Check that a network takes images of as many channels as the data give.

    Raises:
        InvalidConfig: it takes another number.
    """
    if source.image.in_chans != config.image.in_chans:
        raise InvalidConfig(
            f"{title} takes images of {source.image.in_chans} channels, and --data.image.in_chans is "
            f"{config.image.in_chans}.",
            hint=f"Give --data.image.in_chans {source.image.in_chans}.",
        )


def head_names(config: ModelConfig) -> set[str]:
    """Return the names of the weights whose shape depends on the number of classes."""
    with on_meta_device():
        shapes, others = (
            {name: tensor.shape for name, tensor in build_model(config, num_classes=number).state_dict().items()}
            for number in (3, 5)
        )
    return {name for name, shape in shapes.items() if others[name] != shape}


def freeze_parameters(model: nn.Module, config: ModelConfig, freeze: Freeze) -> None:
    """Turn off the gradients of the frozen parameters; `ImageClassifier.train` freezes the statistics of the norms.

    Args:
        model: The network.
        config: Its configuration.
        freeze: `none`, `norms`, or `backbone`: all but the head.
    """
    head = head_names(resolve_config(config)) if freeze == "backbone" else set()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = freeze != "backbone" or name in head
    if freeze == "norms":
        for norm in batch_norms(model):
            norm.requires_grad_(False)


def train_head_only(model: nn.Module) -> None:
    """Set a network with a frozen backbone to training mode: the head and its dropout, but nothing else.

    timm drops features before the head in a function that follows the mode of the whole network.
    """
    model.eval().training = True
    of_head = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, child in model.named_children():
        child.train(name in of_head or isinstance(child, nn.Dropout))
    for norm in batch_norms(model):
        norm.eval()


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Return the layers that keep running statistics."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


class Distillation:
    """A frozen teacher network, whose logits the student learns to match.

    It is no submodule of the student, so checkpoints do not contain it.

    Args:
        id_or_folder: The teacher: `owner/name` on the hub, or a folder.
        config: The student's configuration.

    Raises:
        InvalidConfig: labels, problem type, normalization or input size of the teacher are not the student's.
    """

    def __init__(self, id_or_folder: str, config: ModelConfig) -> None:
        self._model, teacher_config = load_pretrained(id_or_folder)
        if teacher_config.labels != config.labels:
            raise InvalidConfig(
                f"The teacher {id_or_folder} has {teacher_config.num_classes} classes, the data have "
                f"{config.num_classes}, or they are in another order; both must be the same."
            )
        if teacher_config.is_multi_label != config.is_multi_label:
            taught = "several labels" if teacher_config.is_multi_label else "one label"
            raise InvalidConfig(
                f"The teacher {id_or_folder} gives an image {taught}, unlike the data; both must be the same."
            )
        check_channels(teacher_config, config, f"The teacher {id_or_folder}")
        image, student_image = teacher_config.image, config.image
        if (image.mean, image.std) != (student_image.mean, student_image.std):
            raise InvalidConfig(
                f"The teacher {id_or_folder} was trained with mean {image.mean} and std {image.std}, the data have "
                f"{student_image.mean} and {student_image.std}.",
                hint="Give --data.image.mean and --data.image.std.",
            )
        if (image.height_px, image.width_px) != (student_image.height_px, student_image.width_px):
            raise InvalidConfig(
                f"The teacher {id_or_folder} was trained on {image.height_px} x {image.width_px} px, the data have "
                f"{student_image.height_px} x {student_image.width_px} px; both see the same batches.",
                hint=f"Give --data.image.height_px {image.height_px} --data.image.width_px {image.width_px}.",
            )
        self._model.requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, x_N3HW: torch.Tensor) -> torch.Tensor:
        """Return the teacher's logits (N, K) of normalized images (N, 3, H, W)."""
        logits_NK: torch.Tensor = self._model.to(x_N3HW.device)(x_N3HW)
        return logits_NK
