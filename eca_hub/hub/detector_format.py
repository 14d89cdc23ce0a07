"""config.json of a detector's package. Imports no torch.

The content of config.json is untrusted, so every value is checked.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from eca_hub.checks import is_number
from eca_hub.models.config import MAX_CLASSES, float_tuple
from eca_hub.models.detector_config import DetectorConfig

DETECTION_TASK = "object-detection"
"""The value of `task` in config.json; a classifier's has none. Also the Hub's name of the task."""

_ADDED_LATER = ("bit_depth",)
"""Fields that older packages lack; they then have the default."""
_TUPLES = ("anchor_sizes_px", "anchor_ratios", "mean", "std")


def detector_to_dict(config: DetectorConfig) -> dict[str, Any]:
    """Return the fields of config.json behind format and library name."""
    fields = dataclasses.asdict(config)
    labels = list(fields.pop("labels"))
    return {
        "task": DETECTION_TASK,
        **{name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()},
        "num_classes": len(labels),
        "label_names": labels,
        # The Hub's own field for the names of classes.
        "id2label": {str(index): label for index, label in enumerate(labels)},
    }


def detector_from_dict(document: Mapping[str, Any]) -> DetectorConfig:
    """Read the fields of a detector.

    Raises:
        KeyError, TypeError, ValueError, InvalidConfig: a field is missing or cannot be used.
    """
    labels = document["label_names"]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise TypeError("label_names is not a list of strings.")
    if not 1 <= len(labels) <= MAX_CLASSES or document["num_classes"] != len(labels):
        raise ValueError(f"num_classes is {document['num_classes']!r} and there are {len(labels)} label_names.")
    values: dict[str, Any] = {"labels": tuple(labels)}
    for field in dataclasses.fields(DetectorConfig):
        if field.name != "labels" and (field.name in document or field.name not in _ADDED_LATER):
            values[field.name] = _checked(field.name, document[field.name])
    return DetectorConfig(**values)


def _checked(name: str, value: Any) -> Any:
    if name in _TUPLES:
        if isinstance(value, list) and len(value) > 16:
            raise ValueError(f"{name} has {len(value)} numbers; at most 16 are allowed.")
        return float_tuple(name, value)
    if name in ("min_score", "nms_iou"):
        if not is_number(value):
            raise TypeError(f"{name} is not a number.")
        return float(value)
    if name in ("min_side_px", "max_side_px", "max_detections"):
        if type(value) is not int or value > 10_000:
            raise TypeError(f"{name} is not a whole number up to 10000.")
        return value
    if name == "bit_depth":
        if value is not None and type(value) is not int:
            raise TypeError("bit_depth is not a whole number.")
        return value
    if name == "attention_args":
        if not isinstance(value, dict):
            raise TypeError("attention_args is not an object.")
        return value
    if not isinstance(value, str):
        raise TypeError(f"{name} is not a string.")
    return value
