"""config.json and README.md of a detector's package. Imports no torch.

The content of config.json is untrusted, so every value is checked.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from eca_hub.hub.card import (
    CITATION,
    MODEL_ID_PLACEHOLDER,
    SOURCES,
    UNKNOWN_LIMITS,
    CardFacts,
    card_metadata,
    escape,
    license_section,
    results_section,
    training_section,
)
from eca_hub.models.detector_config import DetectorConfig

DETECTION_TASK = "object-detection"
"""The value of `task` in config.json; a classifier's has none. Also the Hub's name of the task."""

_MAX_LABELS = 100_000
_NUM_SHOWN_LABELS = 20
_TITLES = {"faster_rcnn": "Faster R-CNN", "mask_rcnn": "Mask R-CNN", "retinanet": "RetinaNet"}
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
    if not 1 <= len(labels) <= _MAX_LABELS or document["num_classes"] != len(labels):
        raise ValueError(f"num_classes is {document['num_classes']!r} and there are {len(labels)} label_names.")
    values: dict[str, Any] = {"labels": tuple(labels)}
    for field in dataclasses.fields(DetectorConfig):
        if field.name != "labels" and (field.name in document or field.name not in _ADDED_LATER):
            values[field.name] = _checked(field.name, document[field.name])
    return DetectorConfig(**values)


def _checked(name: str, value: Any) -> Any:
    if name in _TUPLES:
        if not isinstance(value, list) or len(value) > 16 or not all(_is_number(each) for each in value):
            raise TypeError(f"{name} is not a list of numbers.")
        return tuple(map(float, value))
    if name in ("min_score", "nms_iou"):
        if not _is_number(value):
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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def render_detector_card(config: DetectorConfig, num_parameters: int | None, facts: CardFacts) -> str:
    """Return README.md: metadata for the Hub, then a page for people.

    Args:
        config: The resolved configuration of the detector.
        num_parameters: How many it has, if they were counted.
        facts: Training, results and texts.
    """
    title = facts.title or config.name
    data = card_metadata(DETECTION_TASK, title, facts)
    finds = "boxes and instance masks" if config.has_masks else "boxes"
    sections = [
        f"# {escape(title)}",
        facts.summary or f"{_TITLES[config.detector]} that finds {finds} of {config.num_classes} kinds of objects.",
        detector_usage_section(MODEL_ID_PLACEHOLDER),
        results_section(facts),
        _network_section(config, num_parameters),
        training_section(facts),
        f"## Limits and bias\n\n{facts.limits or f'Only the classes above are found. {UNKNOWN_LIMITS}'}",
        license_section(facts),
        CITATION,
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def detector_usage_section(model_id: str) -> str:
    """Return the section of a detector's card that shows what to type.

    Args:
        model_id: Hub `owner/name`, or the placeholder.
    """
    return (
        "## Use\n\n"
        "```python\n"
        "import eca_hub\n\n"
        f'detector = eca_hub.Detector.from_pretrained("{model_id}")  # this repository, or a folder\n'
        'detector.predict("street.jpg", min_score=0.5)\n'
        "```\n\n```sh\n"
        f"eca-hub detect street.jpg --model {model_id} --save_image found\n"
        "```"
    )


def _network_section(config: DetectorConfig, num_parameters: int | None) -> str:
    labels = ", ".join(escape(label) for label in config.labels[:_NUM_SHOWN_LABELS])
    more = f" and {config.num_classes - _NUM_SHOWN_LABELS} more" if config.num_classes > _NUM_SHOWN_LABELS else ""
    options = ", ".join(f"{key} = {value}" for key, value in config.attention_args.items())
    sizes = ", ".join(f"{size:g}" for size in config.anchor_sizes_px)
    ratios = ", ".join(f"{ratio:g}" for ratio in config.anchor_ratios)
    lines = [
        "## Network and preprocessing",
        "",
        f"- detector: {_TITLES[config.detector]} with a feature pyramid"
        + (f", {num_parameters:,} parameters" if num_parameters else ""),
        f"- backbone: `{config.backbone}`, attention `{config.attention}`" + (f", {options}" if options else ""),
        f"- input: RGB, shorter side {config.min_side_px} px, longer side at most {config.max_side_px} px",
        f"- anchors: {sizes} px on the five levels, height over width {ratios}"
        + (", head with GroupNorm" if config.head_norm == "group" else ""),
        f"- at most {config.max_detections} detections of score {config.min_score:g} or more",
        f"- mean {list(config.mean)}, standard deviation {list(config.std)}",
        f"- {config.num_classes} classes: {labels}{more}",
        SOURCES,
    ]
    return "\n".join(lines)
