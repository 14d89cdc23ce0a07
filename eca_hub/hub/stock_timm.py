"""A network as stock timm's, with the same outputs, and back.

Where timm has a block of the same kind, its weights are ours, padded with zeros to the sizes that timm derives from the
channels: an ECA kernel gets zeros at both ends, an SE bottleneck gets hidden channels that nothing reads and a bias of
zero. What timm cannot build is refused with the reason. Source of the format: timm 1.0, models/_hub.py.
"""

from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from eca_hub.errors import CheckpointMismatch, InvalidConfig
from eca_hub.hub.weights import Shapes, build_and_load
from eca_hub.models.build import resolve_config
from eca_hub.models.config import ImageConfig, ModelConfig

Weights = dict[str, Tensor]


def to_stock_timm(model: nn.Module, config: ModelConfig) -> tuple[nn.Module, dict[str, Any]]:
    """Return stock timm's network with the same outputs.

    Returns:
        The network, and the arguments besides its name that timm builds it with.

    Raises:
        InvalidConfig: timm cannot build it; says why.
    """
    resolved = resolve_config(config)
    name = resolved.architecture
    if resolved.attention not in _PADDERS:
        kinds = ", ".join(_PADDERS)
        raise _refused(resolved, f"it has no attention {resolved.attention!r}; it has {kinds}")
    if not timm.is_model(name):
        raise _refused(resolved, _ABSENT.get(name, f"timm has no network {name!r}"))
    if resolved.stem != ModelConfig.stem:
        raise _refused(resolved, "timm has no small stem for it")
    model_args: dict[str, Any] = dict(resolved.timm_args)
    if resolved.image.in_chans != ImageConfig.in_chans:
        model_args["in_chans"] = resolved.image.in_chans
    if resolved.attention != "none":
        model_args["block_args"] = {"attn_layer": resolved.attention}
    ours = {key: tensor.detach().cpu() for key, tensor in model.state_dict().items()}
    stock = build_and_load(
        lambda: _create(resolved, model_args),
        lambda shapes: _fit(ours, shapes, resolved),
        sentence=f"The weights do not fit timm's {name}",
    )
    return stock.eval(), model_args


def default_cfg_of(stock: Any) -> dict[str, Any]:
    """Return timm's default configuration of one of its networks, with the width of its last map."""
    return {**stock.default_cfg, "num_features": stock.num_features}


def remove_padding(weights: Weights, shapes: Shapes) -> Weights:
    """Undo `to_stock_timm`: cut the zeros that it added, and nothing else.

    Args:
        weights: The tensors of a package that stock timm loads.
        shapes: Name to shape in our network.

    Raises:
        CheckpointMismatch: these are other weights: a kernel has another size, or a number that would be cut is not 0.
    """
    cut = {}
    for name, tensor in weights.items():
        is_kernel = name.endswith(".se.conv.weight")
        if ".se." not in name or tensor.ndim < len(shapes.get(name, ())):
            cut[name] = tensor
        elif name in shapes:
            cut[name] = _center(tensor, shapes[name]) if is_kernel else _leading(tensor, shapes[name])
        kept = cut.get(name)
        if kept is not None and kept.shape == tensor.shape:
            continue
        if (0 if kept is None else kept.count_nonzero()) != tensor.count_nonzero():
            if is_kernel and name in shapes:
                raise CheckpointMismatch(
                    f"{name} is a kernel of size {tensor.shape[2]}; the network has one of size {shapes[name][2]}, "
                    "which is padded with zeros only."
                )
            raise CheckpointMismatch(f"{name} is not zero in the part that the export pads.")
    return cut


def _create(config: ModelConfig, model_args: Mapping[str, Any]) -> nn.Module:
    try:
        network: nn.Module = timm.create_model(config.architecture, num_classes=config.num_classes, **model_args)
    except Exception as error:  # timm's families raise errors of many types for an argument that they do not take
        reason = " ".join(str(error).split())[:200]
        raise _refused(config, f"it does not take {dict(model_args)}: {type(error).__name__}: {reason}") from None
    return network


def _fit(weights: Weights, shapes: Shapes, config: ModelConfig) -> Weights:
    """Pad the weights to the shapes of timm's network, and refuse those that are of another network."""
    padded = _PADDERS[config.attention](weights, shapes, config)
    lacking = sorted(shapes.keys() - padded.keys())
    if lacking:
        raise _refused(config, f"timm's network has {lacking[0]} as well")
    unknown = sorted(padded.keys() - shapes.keys())
    if unknown:
        raise _refused(config, f"timm's network has no {unknown[0]}")
    for name, shape in shapes.items():
        if padded[name].shape != shape:
            raise _refused(config, f"{name} is {tuple(padded[name].shape)}, and {tuple(shape)} in timm's network")
    return padded


def _refused(config: ModelConfig, reason: str) -> InvalidConfig:
    name = config.architecture if config.attention == "none" else f"{config.attention}_{config.architecture}"
    return InvalidConfig(f"Stock timm cannot build this {name}: {reason}.", hint="eca-hub loads it from a package.")


_ABSENT = {"mobilenet_v2": "its MobileNetV2 has no attention after the projection, and other names for weights"}


def _pad_nothing(weights: Weights, shapes: Shapes, config: ModelConfig) -> Weights:
    return weights


def _pad_kernels(weights: Weights, shapes: Shapes, config: ModelConfig) -> Weights:
    """Add zeros at both ends of a kernel: they change nothing, as timm pads channels with zeros too."""
    padded = dict(weights)
    for name, shape in shapes.items():
        if name.endswith(".se.conv.weight") and name in weights:
            missing = shape[2] - weights[name].shape[2]
            if missing < 0:
                raise _refused(
                    config,
                    f"{name} has size {weights[name].shape[2]}, timm's rule gives {shape[2]} for these channels, "
                    "and a kernel can be padded but not cut",
                )
            padded[name] = pad(weights[name], (missing // 2, missing // 2))
    return padded


def _pad_bottlenecks(weights: Weights, shapes: Shapes, config: ModelConfig) -> Weights:
    """Add hidden channels with zeros on both sides, and biases of zero: they change nothing."""
    padded = dict(weights)
    for name, shape in shapes.items():
        prefix, is_inside, part = name.rpartition(".se.fc")
        # A block without attention has no zeros that change nothing: they would halve its maps.
        if not is_inside or f"{prefix}.se.fc1.weight" not in weights:
            continue
        tensor = weights.get(name, torch.zeros(shape))
        if part.endswith(".weight"):
            tensor = tensor[:, :, None, None]
        if any(ours > stock for ours, stock in zip(tensor.shape, shape, strict=True)):
            raise _refused(config, f"{name} is {tuple(tensor.shape)}, wider than timm's {tuple(shape)}")
        missing = [stock - ours for ours, stock in zip(tensor.shape, shape, strict=True)]
        padded[name] = pad(tensor, [amount for axis in reversed(missing) for amount in (0, axis)])
    return padded


_PADDERS: dict[str, Callable[[Weights, Shapes, ModelConfig], Weights]] = {
    "none": _pad_nothing,
    "eca": _pad_kernels,
    "se": _pad_bottlenecks,
}
"""Attention that timm has under the same name, to the function that pads its weights."""


def _center(kernel: Tensor, shape: torch.Size) -> Tensor:
    start = (kernel.shape[2] - shape[2]) // 2
    return kernel[:, :, start : start + shape[2]]


def _leading(tensor: Tensor, shape: torch.Size) -> Tensor:
    square = tensor.flatten(1) if tensor.ndim == 4 else tensor
    return square[tuple(slice(length) for length in shape)]
