"""config.json in timm's format, which transformers reads too. Imports no torch.

A package whose network stock timm can build uses this format, so that it loads without eca-hub; what only eca-hub
needs is under the key `eca_hub`, which timm ignores. Source: timm 1.0, models/_hub.py and models/_pretrained.py.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, get_args

from eca_hub.checks import is_number
from eca_hub.models.config import CropMode, ImageConfig, Interpolation, ModelConfig, float_tuple

ECA_HUB_KEY = "eca_hub"
"""Key of the values that timm does not have."""

LabelNaming = Callable[[int], tuple[str, ...]]
"""From the number of classes to their names, for a network without label names."""


def index_labels(num_classes: int) -> tuple[str, ...]:
    """Name classes by their index."""
    return tuple(str(index) for index in range(num_classes))


def config_to_timm_dict(
    config: ModelConfig, model_args: Mapping[str, Any], default_cfg: Mapping[str, Any]
) -> dict[str, Any]:
    """Return config.json in timm's format.

    Args:
        config: A resolved configuration.
        model_args: What timm's network needs besides its name.
        default_cfg: timm's default configuration of the architecture. It describes other weights, so only the names of
            layers and the size of the last map are taken from it.
    """
    image = config.image
    return {
        "architecture": config.architecture,
        "num_classes": config.num_classes,
        "num_features": default_cfg["num_features"],
        "label_names": list(config.labels),
        # transformers' pipeline then answers with sigmoid scores.
        **({"problem_type": config.problem_type} if config.is_multi_label else {}),
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
            "pool_size": default_cfg.get("pool_size"),
            "first_conv": default_cfg.get("first_conv"),
            "classifier": default_cfg.get("classifier"),
        },
        ECA_HUB_KEY: {
            "format": 1,
            "attention": config.attention,
            "attention_args": dict(config.attention_args),
            **({"bit_depth": image.bit_depth} if image.bit_depth is not None else {}),
        },
    }


def config_from_timm_dict(document: Mapping[str, Any], default_labels_for: LabelNaming) -> ModelConfig:
    """Check and convert config.json of timm, or one that `config_to_timm_dict` wrote.

    Args:
        document: The content of config.json.
        default_labels_for: Names the classes where the file does not.

    Raises:
        KeyError: a key is missing.
        TypeError, ValueError, InvalidConfig: a value has the wrong type or cannot be used.
    """
    document = _with_pretrained_cfg(document)
    pretrained_cfg = document["pretrained_cfg"]
    section = document.get(ECA_HUB_KEY, {"format": 1, "attention": "none", "attention_args": {}})
    if not isinstance(pretrained_cfg, dict) or not isinstance(section, dict) or section["format"] != 1:
        raise ValueError("pretrained_cfg or eca_hub is not what this eca-hub reads.")
    num_classes = _first(document.get("num_classes"), pretrained_cfg.get("num_classes"))
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or not 1 <= num_classes <= 100_000:
        raise ValueError(f"num_classes is {num_classes!r}.")
    names = _first(document.get("label_names"), pretrained_cfg.get("label_names"))
    labels = _read_labels(names, num_classes) or default_labels_for(num_classes)
    attention = _text(section["attention"], "attention")
    return ModelConfig(
        architecture=_text(document["architecture"], "architecture"),
        attention=attention,
        attention_args=dict(section["attention_args"]),
        # Labels that eca-hub wrote differ from each other; timm's may repeat, as ImageNet's two cranes do.
        labels=labels if ECA_HUB_KEY in document else unique_labels(labels),
        image=dataclasses.replace(image_config_from_timm(pretrained_cfg), bit_depth=section.get("bit_depth")),
        # Where the attention is ours, model_args only serve timm, which builds the same network from them.
        timm_args=_check_model_args(document.get("model_args") or {}) if attention == "none" else {},
        problem_type=problem_type_in(document),
    )


def _first(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


def is_timm_document(document: Mapping[str, Any]) -> bool:
    """Return whether a config.json is one of timm's, of any version."""
    return "pretrained_cfg" in document or document.keys() >= _LEGACY_KEYS


_LEGACY_KEYS = {"architecture", "input_size", "mean", "std"}
"""Before 0.8, timm wrote `pretrained_cfg` into the document itself."""


def _with_pretrained_cfg(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a document of timm before 0.8 in the format of today, any other as it is."""
    if "pretrained_cfg" in document:
        return document
    names = document.get("label_names", document.get("labels"))
    return {
        "architecture": document["architecture"],
        "pretrained_cfg": dict(document),
        **({} if names is None else {"label_names": names}),
    }


def problem_type_in(document: Mapping[str, Any]) -> Any:
    """Return the value of `problem_type`, which packages for one label need not have; `ModelConfig` checks it."""
    return document.get("problem_type") or ModelConfig.problem_type


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} is not a string.")
    return value


def _read_labels(names: Any, num_classes: int) -> tuple[str, ...] | None:
    """Return class names in order: from a list, or from an object by index, whose gaps get their index."""
    if names is None:
        return None
    if isinstance(names, dict):
        names = [names.get(str(index), str(index)) for index in range(num_classes)]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError("label_names is not a list of strings.")
    if len(names) != num_classes:
        raise ValueError(f"num_classes is {num_classes} and there are {len(names)} label_names.")
    return tuple(names)


def unique_labels(labels: tuple[str, ...]) -> tuple[str, ...]:
    """Add the index to names that occur more than once: crane (134), crane (517)."""
    times = Counter(labels)
    unique = tuple(f"{label} ({index})" if times[label] > 1 else label for index, label in enumerate(labels))
    return unique if len(set(unique)) == len(unique) else index_labels(len(labels))


def image_config_from_timm(pretrained_cfg: Mapping[str, Any]) -> ImageConfig:
    """Return the preprocessing in timm's `pretrained_cfg`; what is absent or null is timm's default.

    Raises:
        TypeError, ValueError, InvalidConfig: a value has the wrong type or cannot be used.
    """
    given = {**_DEFAULT_CFG, **{name: value for name, value in pretrained_cfg.items() if value is not None}}
    input_size = given["input_size"]
    if not isinstance(input_size, list | tuple) or len(input_size) != 3:
        raise TypeError("input_size is not a list of channels, height and width.")
    channels, height_px, width_px = input_size
    if channels not in (1, 3):
        raise ValueError(f"the network takes images of {channels!r} channels; eca-hub supports 3 (RGB) and 1 (gray).")
    for name, allowed in (("interpolation", get_args(Interpolation)), ("crop_mode", get_args(CropMode))):
        if given[name] not in allowed:
            raise ValueError(f"{name} is {given[name]!r}; eca-hub supports {', '.join(allowed)}.")
    if not is_number(given["crop_pct"]):
        raise TypeError(f"crop_pct is {str(given['crop_pct'])[:20]!r}; it must be a finite number.")
    return ImageConfig(
        height_px=height_px,
        width_px=width_px,
        crop=float(given["crop_pct"]),
        crop_mode=given["crop_mode"],
        interpolation=given["interpolation"],
        mean=float_tuple("mean", given["mean"]),
        std=float_tuple("std", given["std"]),
        in_chans=channels,
    )


_DEFAULT_CFG: Mapping[str, Any] = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}

# Arguments of timm.create_model itself: a repository must not make it read files or the network.
_FORBIDDEN_MODEL_ARGS = frozenset(
    {
        "model_name", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir",
        "scriptable", "exportable", "no_jit", "features_only", "pretrained_strict", "device", "dtype",
    }
)  # fmt: skip


def _check_model_args(given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise TypeError("model_args is not an object.")
    # timm writes these two here as well; they are read from elsewhere in the file.
    args = {name: value for name, value in given.items() if name != "num_classes" and name != "in_chans"}
    forbidden = sorted(_FORBIDDEN_MODEL_ARGS & args.keys())
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
