"""config.json as timm writes and reads it, which transformers reads too.

A package whose network stock timm can express carries this shape, so that it loads where eca-hub is not installed; what
only eca-hub knows stands under `eca_hub`, which timm does not look at. Source of the format: timm 1.0, models/_hub.py
and models/_pretrained.py. Knows nothing of networks.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, get_args

from eca_hub.models.config import CropMode, ImageConfig, Interpolation, ModelConfig

OURS = "eca_hub"
"""The key under which stands what timm does not know."""

NumberedLabels = Callable[[int], tuple[str, ...]]
"""Names classes for a network that brings no names."""


def numbers(num_classes: int) -> tuple[str, ...]:
    """Name classes by their number."""
    return tuple(str(index) for index in range(num_classes))


def to_timm(config: ModelConfig, model_args: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Write what timm reads.

    Args:
        config: A resolved configuration.
        model_args: What timm's network needs besides its name.
        record: timm's own default record of the architecture. It tells of other weights, so only the names of layers
            and the size of the last map are taken from it.
    """
    image = config.image
    return {
        "architecture": config.architecture,
        "num_classes": config.num_classes,
        "num_features": record["num_features"],
        "label_names": list(config.labels),
        **({"model_args": dict(model_args)} if model_args else {}),
        "pretrained_cfg": {
            "input_size": [image.in_chans, image.height_px, image.width_px],
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
        OURS: {
            "format": 1,
            "attention": config.attention,
            "attention_args": dict(config.attention_args),
            **({"bit_depth": image.bit_depth} if image.bit_depth is not None else {}),
        },
    }


def from_timm(document: Mapping[str, Any], labels_for: NumberedLabels) -> ModelConfig:
    """Read what timm, or `to_timm`, wrote, trusting nothing in it.

    Args:
        document: The content of config.json.
        labels_for: Names the classes where the file does not.

    Raises:
        KeyError: something is missing.
        TypeError, ValueError, InvalidConfig: something has the wrong kind or value.
    """
    record = document["pretrained_cfg"]
    ours = document.get(OURS, {"format": 1, "attention": "none", "attention_args": {}})
    if not isinstance(record, dict) or not isinstance(ours, dict) or ours["format"] != 1:
        raise ValueError("pretrained_cfg or eca_hub is not what this eca-hub reads.")
    num_classes = document.get("num_classes", record.get("num_classes"))
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or not 1 <= num_classes <= 100_000:
        raise ValueError(f"num_classes is {num_classes!r}.")
    labels = _labels(document.get("label_names", record.get("label_names")), num_classes) or labels_for(num_classes)
    attention = _text(ours["attention"], "attention")
    return ModelConfig(
        architecture=_text(document["architecture"], "architecture"),
        attention=attention,
        attention_args=dict(ours["attention_args"]),
        labels=labels,
        image=dataclasses.replace(image_from_timm(record), bit_depth=ours.get("bit_depth")),
        # With attention of ours, model_args only tell timm how to make the same.
        timm_args=_timm_args(document.get("model_args") or {}) if attention == "none" else {},
    )


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} is not a string.")
    return value


def _labels(names: Any, num_classes: int) -> tuple[str, ...] | None:
    """Class names in order: a list, or an object from number to name, whose gaps get their number."""
    if names is None:
        return None
    if isinstance(names, dict):
        names = [names.get(str(index), str(index)) for index in range(num_classes)]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError("label_names is not a list of strings.")
    if len(names) != num_classes:
        raise ValueError(f"num_classes is {num_classes} and there are {len(names)} label_names.")
    return tuple(names)


def image_from_timm(record: Mapping[str, Any]) -> ImageConfig:
    """Read the preprocessing out of timm's record of weights, its `pretrained_cfg`.

    Raises:
        KeyError: something is missing.
        TypeError, ValueError, InvalidConfig: something has the wrong kind or value, or one that is none of ours.
    """
    channels, height_px, width_px = record["input_size"]
    if channels not in (1, 3):
        raise ValueError(f"the network takes images of {channels} channels; eca-hub gives 3 (RGB) or 1 (gray).")
    interpolation, crop_mode = record.get("interpolation", "bicubic"), record.get("crop_mode", "center")
    for name, value, allowed in (
        ("interpolation", interpolation, get_args(Interpolation)),
        ("crop_mode", crop_mode, get_args(CropMode)),
    ):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; eca-hub knows {', '.join(allowed)}.")
    mean, std = (tuple(float(number) for number in record[name]) for name in ("mean", "std"))
    return ImageConfig(
        height_px=int(height_px),
        width_px=int(width_px),
        crop=float(record.get("crop_pct", 0.875)),
        crop_mode=crop_mode,
        interpolation=interpolation,
        mean=mean,
        std=std,
        in_chans=channels,
    )


# What timm.create_model itself takes: a repository must not make it read files or the network.
_NOT_FROM_A_HUB = frozenset(
    {
        "model_name", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir",
        "scriptable", "exportable", "no_jit", "features_only", "in_chans", "pretrained_strict", "device", "dtype",
    }
)  # fmt: skip


def _timm_args(given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise TypeError("model_args is not an object.")
    # timm itself writes these two; they stand elsewhere in the file as well.
    args = {name: value for name, value in given.items() if name != "num_classes" and (name, value) != ("in_chans", 3)}
    forbidden = sorted(_NOT_FROM_A_HUB & args.keys())
    if forbidden:
        raise ValueError(f"model_args holds {', '.join(forbidden)}, which a repository may not set.")
    if any(number > 65_536 for number in _numbers_in(args)):
        raise ValueError("model_args holds a number above 65536.")
    return args


def _numbers_in(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for each in value.values() for number in _numbers_in(each)]
    if isinstance(value, list):
        return [number for each in value for number in _numbers_in(each)]
    return [value] if isinstance(value, int | float) else []
