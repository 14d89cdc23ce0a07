"""README.md of a detector, rendered from its configuration and from what was measured. Imports no torch."""

from eca_hub.hub.card.facts import CardFacts
from eca_hub.hub.card.sections import (
    CITATION,
    MODEL_ID_PLACEHOLDER,
    NUM_SHOWN_LABELS,
    SOURCES,
    UNKNOWN_LIMITS,
    card_metadata,
    escape,
    license_section,
    results_section,
    training_section,
)
from eca_hub.hub.detector_format import DETECTION_TASK
from eca_hub.models.detector_config import DetectorConfig

_TITLES = {"faster_rcnn": "Faster R-CNN", "mask_rcnn": "Mask R-CNN", "retinanet": "RetinaNet"}


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
    labels = ", ".join(escape(label) for label in config.labels[:NUM_SHOWN_LABELS])
    more = f" and {config.num_classes - NUM_SHOWN_LABELS} more" if config.num_classes > NUM_SHOWN_LABELS else ""
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
