"""The way back: a network of ours as one that timm loads without eca-hub, with the same outputs.

Where timm has a block of the same kind, its weights are ours, padded with zeros to the sizes that timm derives from the
channels: an ECA kernel gets zeros at both ends, for the channels beyond its reach; an SE bottleneck gets hidden
channels that nothing reads, and a bias of zero. What timm cannot express is refused with the reason. Source of the
format: timm 1.0, models/_hub.py.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from huggingface_hub import ModelCardData
from torch import Tensor, nn
from torch.nn.functional import pad

from eca_hub.errors import InvalidConfig
from eca_hub.hub.card import escape
from eca_hub.hub.fit import load_strictly
from eca_hub.hub.package import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from eca_hub.hub.whole import check_free, whole_folder
from eca_hub.models.build import settle
from eca_hub.models.config import ModelConfig


def export_to_timm(model: nn.Module, config: ModelConfig, folder: str | Path) -> nn.Module:
    """Write a network as a folder that stock timm loads: `timm.create_model("local-dir:FOLDER", pretrained=True)`.

    The outputs stay the same; so do labels and preprocessing. Published on a hub, `hf-hub:OWNER/NAME` loads it.

    Args:
        model: The network.
        config: Its configuration, with labels.
        folder: Where to; a new or empty one.

    Returns:
        The network that timm makes of it, in evaluation mode.

    Raises:
        InvalidConfig: timm cannot express this network, or the folder is not empty.
    """
    path = check_free(folder)
    settled = settle(config)
    stock, model_args = to_stock_timm(model, settled)
    weights = {name: tensor.contiguous() for name, tensor in stock.state_dict().items()}
    with whole_folder(path) as draft:
        (draft / CARD_FILE).write_text(_card(settled), encoding="utf-8")
        (draft / WEIGHTS_FILE).write_bytes(safetensors.torch.save(weights, metadata={"format": "pt"}))
        document = _timm_config(settled, stock, model_args)
        (draft / CONFIG_FILE).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return stock


def to_stock_timm(model: nn.Module, config: ModelConfig) -> tuple[nn.Module, dict[str, Any]]:
    """Make the network that stock timm has for ours, with the same outputs.

    Returns:
        The network, and the arguments besides its name that timm makes it with.

    Raises:
        InvalidConfig: timm cannot express it; says why.
    """
    settled = settle(config)
    name = settled.architecture
    if settled.attention not in _PADDERS:
        kinds = ", ".join(_PADDERS)
        raise _refused(settled, f"attention {settled.attention!r} has no equal there; those that have are {kinds}")
    if not timm.is_model(name):
        raise _refused(settled, _ABSENT.get(name, f"timm has no network {name!r}"))
    if settled.stem != "own":
        raise _refused(settled, "timm has no small stem for it")
    model_args: dict[str, Any] = {}
    if settled.attention != "none":
        model_args["block_args"] = {"attn_layer": settled.attention}
    with torch.device("meta"):
        stock = timm.create_model(name, num_classes=settled.num_classes, **model_args)
    shapes = {key: tensor.shape for key, tensor in stock.state_dict().items()}
    ours = {key: tensor.detach().cpu() for key, tensor in model.state_dict().items()}
    weights = _PADDERS[settled.attention](ours, shapes, settled)
    load_strictly(stock, weights, sentence=f"The weights do not fit timm's {name}")
    return stock.eval(), model_args


def _refused(config: ModelConfig, reason: str) -> InvalidConfig:
    name = config.architecture if config.attention == "none" else f"{config.attention}_{config.architecture}"
    return InvalidConfig(f"Stock timm cannot express this {name}: {reason}.", hint="eca-hub loads it from a package.")


_ABSENT = {
    "mobilenet_v2": "its MobileNetV2 has no place for attention behind the projection, and other names for weights"
}

Shapes = Mapping[str, torch.Size]
Weights = dict[str, Tensor]


def _pad_nothing(weights: Weights, shapes: Shapes, config: ModelConfig) -> Weights:
    return weights


def _pad_kernels(weights: Weights, shapes: Shapes, config: ModelConfig) -> Weights:
    """Zeros at both ends of a kernel add nothing: timm pads channels with zeros as we do."""
    padded = dict(weights)
    for name, shape in shapes.items():
        if name.endswith(".se.conv.weight"):
            missing = shape[2] - weights[name].shape[2]
            if missing < 0:
                raise _refused(
                    config,
                    f"{name} has {weights[name].shape[2]} numbers, timm's rule gives {shape[2]} at this width, "
                    "and a kernel can be lengthened but not cut",
                )
            padded[name] = pad(weights[name], (missing // 2, missing // 2))
    return padded


def _pad_bottlenecks(weights: Weights, shapes: Shapes, config: ModelConfig) -> Weights:
    """A hidden channel that comes from zeros and goes to zeros changes nothing; nor does a bias of zero."""
    padded = dict(weights)
    for name, shape in shapes.items():
        if ".se.fc" not in name:
            continue
        tensor = weights.get(name, torch.zeros(shape))
        if name.endswith(".weight"):
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
"""Attention that timm has by the same name, to what makes our weights its."""


def _timm_config(config: ModelConfig, stock: Any, model_args: dict[str, Any]) -> dict[str, Any]:
    """Write what timm reads; of its own record, which tells of other weights, only the names of layers stay."""
    image, record = config.image, stock.default_cfg
    return {
        "architecture": config.architecture,
        "num_classes": config.num_classes,
        "num_features": stock.num_features,
        "label_names": list(config.labels),
        **({"model_args": model_args} if model_args else {}),
        "pretrained_cfg": {
            "input_size": [3, image.height_px, image.width_px],
            "fixed_input_size": False,
            "interpolation": image.interpolation,
            "crop_pct": image.crop,
            "crop_mode": image.crop_mode,
            "mean": list(image.mean),
            "std": list(image.std),
            "num_classes": config.num_classes,
            "pool_size": record.get("pool_size"),
            "first_conv": record.get("first_conv"),
            "classifier": record.get("classifier"),
        },
    }


def _card(config: ModelConfig) -> str:
    name = config.architecture if config.attention == "none" else f"{config.attention}_{config.architecture}"
    data = ModelCardData(
        library_name="timm", pipeline_tag="image-classification", tags=["timm", "image-classification", "eca-net"]
    )
    return (
        f"---\n{data.to_yaml()}\n---\n\n# {escape(name)}\n\n"
        f"A {escape(name)} image classifier with {config.num_classes} classes, exported by eca-hub for stock timm.\n\n"
        '```python\nimport timm\n\nmodel = timm.create_model("hf-hub:OWNER/NAME", pretrained=True)'
        '  # a folder: "local-dir:PATH"\n```\n'
    )
