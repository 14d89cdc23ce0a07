"""The model card of a detector. Imports no torch."""

from eca_hub.hub.card import (
    CITATION,
    MODEL_ID_PLACEHOLDER,
    CardFacts,
    card_metadata,
    detector_usage_section,
    escape,
    license_section,
    results_section,
    training_section,
)
from eca_hub.models.detector_config import DetectorConfig

_NUM_SHOWN_LABELS = 20
_TITLES = {"faster_rcnn": "Faster R-CNN", "mask_rcnn": "Mask R-CNN", "retinanet": "RetinaNet"}


def render_detector_card(config: DetectorConfig, num_parameters: int | None, facts: CardFacts) -> str:
    """Return README.md: metadata for the Hub, then a page for people.

    Args:
        config: The resolved configuration of the detector.
        num_parameters: How many it has, if they were counted.
        facts: Training, results and texts.
    """
    title = facts.title or config.name
    data = card_metadata("object-detection", title, facts)
    finds = "boxes and instance masks" if config.has_masks else "boxes"
    sections = [
        f"# {escape(title)}",
        facts.summary or f"{_TITLES[config.detector]} that finds {finds} of {config.num_classes} kinds of objects.",
        detector_usage_section(MODEL_ID_PLACEHOLDER),
        results_section(facts),
        _network_section(config, num_parameters),
        training_section(facts),
        f"## Limits and bias\n\n{facts.limits or _UNKNOWN_LIMITS}",
        license_section(facts),
        CITATION,
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


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
        "- paper: [ECA-Net](https://arxiv.org/abs/1910.03151), authors' code: https://github.com/BangguWu/ECANet",
    ]
    return "\n".join(lines)


_UNKNOWN_LIMITS = (
    "Only the classes above are found. What the training data lacks or shows one-sidedly, the network cannot "
    "recognize: measure it on your own images before you rely on it."
)
