"""The model card: what a package says of itself, from what was measured.

A number that nobody measured is left out, never copied. Knows nothing of networks or of the hub's protocol.
"""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from huggingface_hub import EvalResult, ModelCardData

from eca_hub.hub.use import PLACEHOLDER, lines_of_use
from eca_hub.models.complexity import Complexity
from eca_hub.models.config import ModelConfig

_SHOWN_LABELS = 20


@dataclass(frozen=True)
class Result:
    """One measured number."""

    dataset: str
    """Name of the data set, such as `scikit-learn digits`."""
    split: str
    """Part of it that was measured."""
    metric: str
    """Name of the metric, such as `accuracy`."""
    value: float
    """What came out, 0 to 1 for an accuracy."""
    num_images: int
    """How many pictures it was measured on."""


@dataclass(frozen=True)
class CardFacts:
    """What a model card tells beyond the configuration."""

    title: str = ""
    """Heading; the architecture when empty."""
    summary: str = ""
    """One or two sentences: what the model is for."""
    license: str = "apache-2.0"
    """Licence of the weights, as the Hub spells it."""
    results: tuple[Result, ...] = ()
    """What was measured, by the run that made the weights."""
    recipe: Mapping[str, str] = field(default_factory=dict)
    """How it was trained: name of a setting to its value."""
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Name of a number that was measured every epoch to its values, such as `val_top1`."""
    datasets: tuple[str, ...] = ()
    """Data sets of the Hub that it was trained on, by id."""
    base_model: str = ""
    """Model of the Hub that it was fine-tuned from, by id."""
    measured_on: str = ""
    """Date, hardware and software of the run."""
    command: str = ""
    """What to type to train it again."""
    limits: str = ""
    """What it is not for."""


def render_card(config: ModelConfig, complexity: Complexity, facts: CardFacts, *, is_timm: bool = False) -> str:
    """Write README.md: metadata for the Hub, then a page for a person.

    Args:
        config: The resolved configuration of the network.
        complexity: What it costs at the size of its input.
        facts: What was measured, and what else there is to tell.
        is_timm: Whether stock timm loads the package as well.
    """
    name = config.architecture if config.attention == "none" else f"{config.attention}_{config.architecture}"
    title = facts.title or name
    data = ModelCardData(
        library_name="timm" if is_timm else "eca-hub",
        pipeline_tag="image-classification",
        license=facts.license,
        tags=["eca-hub", "image-classification", "eca-net", *(["timm", "transformers"] if is_timm else [])],
        model_name=title,
        datasets=list(facts.datasets) or None,
        base_model=facts.base_model or None,
        # What the Hub calls all training that begins with another model's weights, whatever part of them learns.
        base_model_relation="finetune" if facts.base_model else None,
        metrics=sorted({result.metric for result in facts.results}) or None,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=re.sub(r"[^a-z0-9]+", "-", result.dataset.lower()).strip("-"),
                dataset_name=result.dataset,
                dataset_split=result.split,
                metric_type=result.metric,
                metric_value=round(result.value, 6),
            )
            for result in facts.results
        ]
        or None,
    )
    sections = [
        f"# {escape(title)}",
        facts.summary or f"A {name} image classifier with {config.num_classes} classes.",
        lines_of_use(PLACEHOLDER, is_timm=is_timm),
        _results(facts),
        _network(config, name, complexity),
        _training(facts),
        f"## Limits and bias\n\n{facts.limits or _UNKNOWN_LIMITS}",
        f"## Licence\n\nThe weights: {escape(facts.license)}.",
        _CITATION,
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def escape(text: str) -> str:
    """Make a name that came with data harmless in Markdown and HTML."""
    single_line = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]()#+!|~-])", r"\\\1", html.escape(single_line))


def _results(facts: CardFacts) -> str:
    if not facts.results:
        return ""
    rows = [
        f"| {escape(each.dataset)} | {escape(each.split)} | {each.num_images} | {each.metric} | {each.value:.4f} |"
        for each in facts.results
    ]
    table = "\n".join(["| data set | split | images | metric | value |", "| --- | --- | --- | --- | --- |", *rows])
    measured = f"\n\nMeasured {escape(facts.measured_on)}." if facts.measured_on else ""
    command = f"\n\n```sh\n{facts.command}\n```" if facts.command else ""
    return f"## Results\n\n{table}{measured}{command}"


def _network(config: ModelConfig, name: str, complexity: Complexity) -> str:
    image = config.image
    labels = ", ".join(escape(label) for label in config.labels[:_SHOWN_LABELS])
    more = f" and {config.num_classes - _SHOWN_LABELS} more" if config.num_classes > _SHOWN_LABELS else ""
    options = ", ".join(f"{key} = {value}" for key, value in config.attention_args.items())
    return "\n".join(
        [
            "## Network and preprocessing",
            "",
            f"- architecture: `{name}`, {complexity.num_parameters:,} parameters",
            f"- {complexity.multiply_adds / 1e6:,.1f} million multiply-adds for one picture",
            f"- attention: `{config.attention}`" + (f", {options}" if options else ""),
            f"- input: RGB, {image.height_px} x {image.width_px} px, "
            f"{image.crop_mode} crop of {image.crop:g}, {image.interpolation}",
            f"- mean {list(image.mean)}, standard deviation {list(image.std)}",
            f"- {config.num_classes} classes: {labels}{more}",
        ]
    )


def _training(facts: CardFacts) -> str:
    if not facts.recipe and not facts.curves:
        return ""
    lines = [f"- {escape(key)}: {escape(value)}" for key, value in facts.recipe.items()]
    base = f"- fine-tuned from `{facts.base_model}`" if facts.base_model else ""
    curves = [
        f"- {escape(name)}, epoch by epoch: {sparkline(values)} from {values[0]:.4g} to {values[-1]:.4g}"
        for name, values in facts.curves.items()
        if values
    ]
    return "## Training\n\n" + "\n".join(line for line in (base, *lines, *curves) if line)


def sparkline(values: Sequence[float]) -> str:
    """Draw numbers as a line of small bars, lowest to highest; at most 60, evenly picked."""
    step = max(1, -(-len(values) // 60))
    picked = [*values[:-1:step], values[-1]] if len(values) > 1 else list(values)
    low, high = min(picked), max(picked)
    span = (high - low) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[min(int((value - low) / span * 8), 7)] for value in picked)


_UNKNOWN_LIMITS = (
    "Every picture gets one of the classes above, whatever it shows. What the training data leaves out or shows "
    "one-sidedly, the network does not know: measure it on pictures of your own before you rely on it."
)

_CITATION = """## Citation

```bibtex
@inproceedings{wang2020eca,
  title     = {ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks},
  author    = {Wang, Qilong and Wu, Banggu and Zhu, Pengfei and Li, Peihua and Zuo, Wangmeng and Hu, Qinghua},
  booktitle = {CVPR},
  year      = {2020}
}
```"""
