"""Initialize ECA-MobileNetV2 from a trained Lite0: `python -m experiments.select_weights LITE0 OUT`.

MobileNetV2 and EfficientNet-Lite0 are chains of inverted residual blocks with ReLU6, and Lite0 is wider. The stem, the
first two stages and the last layer have the same shapes and are copied; in the other stages the most important channels
are kept, and 5x5 kernels are cropped to 3x3. ECA's kernels start at zero, where every gate is 0.5, so the norms before
them are doubled. Blocks that Lite0 does not have start as the identity.

Sources: weight selection: Xu et al., Initializing Models with Larger Ones, ICLR 2024; importance of a channel by the
size of the weights that read it: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017.

Shapes: C channels, I inputs, O outputs of a convolution.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eca_hub.attention.eca import ECA
from eca_hub.errors import InvalidConfig
from eca_hub.hub.card.facts import CardFacts
from eca_hub.hub.pretrained import load_pretrained, save_pretrained
from eca_hub.models.build import build_model, resolve_config
from eca_hub.models.config import ModelConfig
from experiments.program import run_program

Modules = Any
"""A network of timm or torchvision, or a part of one, whose attributes are its layers."""

TEACHER = "tf_efficientnet_lite0"
_DEPTHS = (1, 2, 3, 4, 3, 3, 1)
"""Blocks of each stage of MobileNetV2."""
_NUM_QUANTILES = 1001


def select_weights(teacher: nn.Module, config: ModelConfig) -> tuple[nn.Module, ModelConfig]:
    """Build ECA-MobileNetV2 with the labels and preprocessing of `config`, from the weights of its network.

    Args:
        teacher: A trained EfficientNet-Lite0 of timm.
        config: Its configuration.

    Raises:
        InvalidConfig: the configuration is that of another network.
    """
    if config.architecture.partition(".")[0] != TEACHER:
        raise InvalidConfig(f"The weights are those of {config.architecture}; they must be those of {TEACHER}.")
    student_config = resolve_config(ModelConfig("mobilenet_v2", "eca", {}, config.labels, config.image))
    student = build_model(student_config)
    with torch.no_grad():
        _copy_all(student, teacher)
    return student.eval(), student_config


def _copy_all(student: Modules, teacher: Modules) -> None:
    layers, stages = student.features, list(teacher.blocks)
    _copy_conv(layers[0], teacher.conv_stem, teacher.bn1)
    kept_C = torch.arange(layers[0][0].out_channels)
    first = 1
    for number, (depth, stage) in enumerate(zip(_DEPTHS, stages, strict=True)):
        readers = [stage[index].conv_pw for index in range(1, len(stage))]
        readers.append(stages[number + 1][0].conv_pw if number + 1 < len(stages) else teacher.conv_head)
        width = layers[first].out_channels
        outputs_C = _most_important(_stream_variance(stage) * _reading(readers), width)
        for index in range(depth):
            source = stage[min(index, len(stage) - 1)]
            block = layers[first + index].conv
            _copy_block(block, source, kept_C if index == 0 else outputs_C, outputs_C)
            if index >= len(stage):
                _last_norm(block).weight.zero_()
                _last_norm(block).bias.zero_()
        kept_C, first = outputs_C, first + depth
    _copy_conv(layers[first], teacher.conv_head, teacher.bn2, inputs_C=kept_C)
    student.classifier[1].load_state_dict(teacher.classifier.state_dict())


def _copy_block(block: Modules, source: Modules, inputs_C: Tensor, outputs_C: Tensor) -> None:
    """Copy an inverted residual block: expansion, if there is one, depthwise convolution, projection."""
    children = list(block.children())
    if isinstance(children[-1], ECA):
        eca = children.pop()
        eca.conv.weight.zero_()
    depthwise, projection, norm = children[-3:]
    if len(children) == 3:
        hidden_C = inputs_C
        _copy_conv(depthwise, source.conv_dw, source.bn1, outputs_C=hidden_C)
        last_conv, last_norm = source.conv_pw, source.bn2
    else:
        width = depthwise[0].out_channels
        hidden_C = _most_important(_activation_variance(source.bn2) * _reading([source.conv_pwl]), width)
        expansion = children[0]
        _copy_conv(expansion, source.conv_pw, source.bn1, inputs_C=inputs_C, outputs_C=hidden_C)
        _copy_conv(depthwise, source.conv_dw, source.bn2, outputs_C=hidden_C)
        last_conv, last_norm = source.conv_pwl, source.bn3
    _copy_conv(
        nn.Sequential(projection, norm),
        last_conv,
        last_norm,
        inputs_C=hidden_C,
        outputs_C=outputs_C,
    )
    # A gate of ECA is 0.5 at first.
    norm.weight.mul_(2)
    norm.bias.mul_(2)


def _copy_conv(
    layer: Modules,
    conv: Modules,
    norm: Modules,
    *,
    inputs_C: Tensor | None = None,
    outputs_C: Tensor | None = None,
) -> None:
    """Copy some inputs and outputs of a convolution, and its norm, whose epsilon may differ."""
    target, target_norm = layer[0], layer[1]
    weight_OIHW: Tensor = conv.weight
    if outputs_C is not None:
        weight_OIHW = weight_OIHW[outputs_C]
    if inputs_C is not None:
        weight_OIHW = weight_OIHW[:, inputs_C]
    margin = (weight_OIHW.shape[-1] - target.kernel_size[0]) // 2
    if margin:
        weight_OIHW = weight_OIHW[..., margin:-margin, margin:-margin]
    target.weight.copy_(weight_OIHW)
    chosen = slice(None) if outputs_C is None else outputs_C
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(target_norm, name).copy_(getattr(norm, name)[chosen])
    target_norm.running_var.add_(norm.eps - target_norm.eps)


def _last_norm(block: nn.Module) -> nn.BatchNorm2d:
    return [module for module in block.children() if isinstance(module, nn.BatchNorm2d)][-1]


def _stream_variance(stage: Modules) -> Tensor:
    """Variance of each channel after a stage: each block adds a normed map, whose deviation is the norm's weight."""
    norms = [getattr(block, "bn3", block.bn2) for block in stage.children()]
    return torch.stack([norm.weight.square() for norm in norms]).sum(0)


def _activation_variance(norm: Modules) -> Tensor:
    """Variance of ReLU6 of a normal variable with the norm's bias as mean and its weight as deviation."""
    shares = (torch.arange(_NUM_QUANTILES) + 0.5) / _NUM_QUANTILES
    z_Q1 = torch.special.ndtri(shares)[:, None]
    values_QC = (norm.bias + norm.weight.abs() * z_Q1).clamp(0, 6)
    variance_C: Tensor = values_QC.var(0)
    return variance_C


def _reading(convs: Sequence[Modules]) -> Tensor:
    """Sum of the squared weights by which convolutions read each channel."""
    return torch.stack([conv.weight.square().sum((0, 2, 3)) for conv in convs]).sum(0)


def _most_important(importance_C: Tensor, width: int) -> Tensor:
    """Indices of the `width` most important channels, in ascending order."""
    return importance_C.topk(width).indices.sort().values


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lite0", help="Package or run folder of EfficientNet-Lite0, or OWNER/NAME.")
    parser.add_argument("out", help="Folder for the package of ECA-MobileNetV2.")
    args = parser.parse_args(arguments)
    model, config = select_weights(*load_pretrained(args.lite0))
    facts = CardFacts(summary=f"Initial weights for training, selected from those of {TEACHER}; not yet trained.")
    print(save_pretrained(model, Path(args.out), config=config, facts=facts))
    return 0


if __name__ == "__main__":
    run_program(main)
