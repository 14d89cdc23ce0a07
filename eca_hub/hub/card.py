"""The model card: README.md of a package, rendered from its configuration and from what was measured. Imports no torch.

Numbers that were not measured and a license that was not given are left out.
"""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from huggingface_hub import EvalResult, ModelCardData

from eca_hub.models.config import ModelConfig

if TYPE_CHECKING:
    from eca_hub.models.complexity import Complexity

MODEL_ID_PLACEHOLDER = "OWNER/NAME"
"""Placeholder for the id of the model until it is pushed."""

PAPER = "1910.03151"
"""Number of ECA-Net's paper on arXiv."""

_NUM_SHOWN_LABELS = 20
_METRIC_IDS = {
    "accuracy": "accuracy",
    "top-5 accuracy": "top_5_accuracy",
    "macro F1": "f1",
    "micro F1": "f1",
    "calibration error": "expected_calibration_error",
    "mean average precision": "mean_average_precision",
}
"""Name of a metric on the page to its name in the metadata; others have one name."""


@dataclass(frozen=True)
class Result:
    """One measured number."""

    dataset: str
    """Name of the data set, such as `scikit-learn digits`."""
    split: str
    """Split that was measured."""
    metric: str
    """Name of the metric, such as `accuracy`."""
    value: float
    """The value, 0 to 1 for an accuracy."""
    num_images: int
    """Number of images that it was measured on."""


@dataclass(frozen=True)
class CardFacts:
    """Contents of a model card beyond the configuration."""

    title: str = ""
    """Heading; the architecture when empty."""
    summary: str = ""
    """One or two sentences: what the model is for."""
    license: str = ""
    """License of the weights as the Hub spells it, if the author gave one."""
    results: tuple[Result, ...] = ()
    """Measurements of the run that trained the weights."""
    recipe: Mapping[str, str] = field(default_factory=dict)
    """Training settings: name to value."""
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Name of a number that was measured every epoch, such as `val_top1`, to its values."""
    pictures: Mapping[str, str] = field(default_factory=dict)
    """File name of a plot in the package, one of `PICTURES`, to what it shows."""
    datasets: tuple[str, ...] = ()
    """Ids of the Hub's data sets that it was trained on."""
    base_model: str = ""
    """Id of the Hub's model that it was fine-tuned from."""
    measured_on: str = ""
    """Date, hardware and software of the run."""
    command: str = ""
    """Command line that trains it again."""
    commit: str = ""
    """Git commit of the training code."""
    seed: int | None = None
    """Seed of the run."""
    limits: str = ""
    """What it is not for."""


def render_card(
    config: ModelConfig, complexity: "Complexity | None", facts: CardFacts, *, is_timm: bool = False
) -> str:
    """Return README.md: metadata for the Hub, then a page for people.

    Args:
        config: The resolved configuration of the network.
        complexity: Its parameters and multiply-adds, if they were counted.
        facts: Training, results and texts.
        is_timm: Whether stock timm loads the package as well.
    """
    name = config.architecture if config.attention == "none" else f"{config.attention}_{config.architecture}"
    title = facts.title or name
    data = card_metadata("image-classification", title, facts, is_timm=is_timm, is_multi_label=config.is_multi_label)
    sections = [
        f"# {escape(title)}",
        facts.summary or f"A {name} image classifier with {config.num_classes} classes.",
        usage_section(MODEL_ID_PLACEHOLDER, is_timm=is_timm),
        # torchvision's MobileNetV2 has other methods than timm's networks.
        _EMBEDDINGS.format(_TORCHVISION_FEATURES if config.architecture == "mobilenet_v2" else _TIMM_FEATURES),
        results_section(facts),
        _network_section(config, name, complexity),
        training_section(facts),
        f"## Limits and bias\n\n{facts.limits or (_UNKNOWN_CLASSES if config.is_multi_label else _ONE_CLASS)}",
        license_section(facts),
        CITATION,
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def card_metadata(
    task: str, title: str, facts: CardFacts, *, is_timm: bool = False, is_multi_label: bool = False
) -> ModelCardData:
    """Return the metadata of a card.

    Args:
        task: The Hub's name of the task.
        title: Heading of the card.
        facts: Training, results and texts.
        is_timm: Whether stock timm loads the package as well.
        is_multi_label: Whether any number of classes applies to an image.
    """
    tags = ["eca-hub", task, "eca-net", f"arxiv:{PAPER}"]
    tags += ["multi-label-classification"] if is_multi_label else []
    tags += ["timm", "transformers"] if is_timm else []
    return ModelCardData(
        library_name="timm" if is_timm else "eca-hub",
        pipeline_tag=task,
        license=facts.license or None,
        tags=tags,
        model_name=title,
        datasets=list(facts.datasets) or None,
        base_model=facts.base_model or None,
        # The Hub's word for all training that starts from another model's weights, whichever layers learn.
        base_model_relation="finetune" if facts.base_model else None,
        metrics=sorted({_METRIC_IDS.get(result.metric, result.metric) for result in facts.results}) or None,
        eval_results=[
            EvalResult(
                task_type=task,
                # The Hub refuses an empty type, which a name without a Latin letter or digit would give.
                dataset_type=re.sub(r"[^a-z0-9]+", "-", result.dataset.lower()).strip("-") or "imagefolder",
                dataset_name=result.dataset,
                dataset_split=result.split,
                metric_type=_METRIC_IDS.get(result.metric, result.metric),
                metric_name=result.metric,
                metric_value=round(result.value, 6),
            )
            for result in facts.results
        ]
        or None,
    )


def usage_section(model_id: str, *, is_timm: bool) -> str:
    """Return the section of a card that shows what to type.

    Args:
        model_id: Hub `owner/name`, or the placeholder.
        is_timm: Whether stock timm loads the package as well.
    """
    return (
        "## Use\n\n"
        "```python\n"
        "import eca_hub\n\n"
        f'classifier = eca_hub.Classifier.from_pretrained("{model_id}")  # this repository, or a folder\n'
        'classifier.predict("image.png", top_k=3)\n'
        "```\n\n" + (_WITH_TIMM.format(model_id) if is_timm else "") + "```sh\n"
        f"eca-hub serve --model {model_id} --port 8000\n"
        "curl --data-binary @image.png -H 'Content-Type: image/png' http://127.0.0.1:8000/v1/classify\n"
        "```"
    )


def escape(text: str) -> str:
    """Escape the characters of a name from data that mean something in Markdown, HTML or on the Hub's pages."""
    single_line = html.escape(" ".join(text.split()), quote=False)
    escaped = re.sub(r"([\\`*\[\]|$])", r"\\\1", single_line)
    escaped = re.sub(r"(?<![^\W_])_|_(?![^\W_])|~(?=~)", lambda found: f"\\{found[0]}", escaped)
    return escaped.replace("://", r":\//").replace("www.", r"www\.")


def license_section(facts: CardFacts) -> str:
    """Return the section about the license of the weights."""
    return f"## License\n\n{f'Of the weights: {escape(facts.license)}.' if facts.license else NO_LICENSE}"


def results_section(facts: CardFacts) -> str:
    """Return the table of results; nothing if there are none."""
    if not facts.results:
        return ""
    rows = [
        f"| {escape(each.dataset)} | {escape(each.split)} | {each.num_images} | {each.metric} | {each.value:.4f} |"
        for each in facts.results
    ]
    table = "\n".join(["| data set | split | images | metric | value |", "| --- | --- | --- | --- | --- |", *rows])
    measured = f"\n\nMeasured {escape(facts.measured_on)}." if facts.measured_on else ""
    pictures = "".join(f"\n\n![{escape(shows)}]({name})" for name, shows in facts.pictures.items())
    return f"## Results\n\n{table}{measured}{pictures}"


def _network_section(config: ModelConfig, name: str, complexity: "Complexity | None") -> str:
    image = config.image
    labels = ", ".join(escape(label) for label in config.labels[:_NUM_SHOWN_LABELS])
    more = f" and {config.num_classes - _NUM_SHOWN_LABELS} more" if config.num_classes > _NUM_SHOWN_LABELS else ""
    options = ", ".join(f"{key} = {value}" for key, value in config.attention_args.items())
    lines = [
        "## Network and preprocessing",
        "",
        f"- architecture: `{name}`" + (f", {complexity.num_parameters:,} parameters" if complexity else ""),
        *(
            [
                f"- {complexity.multiply_adds / 1e6:,.1f} million multiply-adds and "
                f"{complexity.num_activations / 1e6:,.2f} million activations for one image"
            ]
            if complexity
            else []
        ),
        f"- attention: `{config.attention}`" + (f", {options}" if options else ""),
        f"- input: {'RGB' if image.in_chans == 3 else 'gray'}, {image.height_px} x {image.width_px} px, "
        f"{image.crop_mode} crop of {image.crop:g}, {image.interpolation}",
        f"- mean {list(image.mean)}, standard deviation {list(image.std)}",
        f"- {config.num_classes} classes: {labels}{more}",
        *(["- a score is the probability of that class by itself (sigmoid)"] if config.is_multi_label else []),
        SOURCES,
    ]
    return "\n".join(lines)


def training_section(facts: CardFacts) -> str:
    """Return the recipe; nothing if there is none."""
    lines = [f"- fine-tuned from `{facts.base_model}`"] if facts.base_model else []
    lines += [f"- data set `{dataset}`" for dataset in facts.datasets]
    lines += [f"- {escape(key)}: {escape(value)}" for key, value in facts.recipe.items()]
    lines += [f"- seed: {facts.seed}"] if facts.seed is not None else []
    lines += [f"- code: commit `{escape(facts.commit)}`"] if facts.commit else []
    lines += [
        f"- {escape(name)} by epoch: {sparkline(values)} from {values[0]:.4g} to {values[-1]:.4g}"
        for name, values in facts.curves.items()
        if values
    ]
    command = f"```sh\n{facts.command.replace('```', '')}\n```" if facts.command else ""
    blocks = ["## Training", "\n".join(lines), command]
    return "\n\n".join(block for block in blocks if block) if lines or command else ""


def sparkline(values: Sequence[float]) -> str:
    """Draw numbers as a line of small bars, lowest to highest; at most 60, evenly picked."""
    step = max(1, -(-len(values) // 60))
    picked = [*values[:-1:step], values[-1]] if len(values) > 1 else list(values)
    low, high = min(picked), max(picked)
    span = (high - low) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[min(int((value - low) / span * 8), 7)] for value in picked)


_WITH_TIMM = """```python
import timm  # eca-hub need not be installed

model = timm.create_model("hf-hub:{}", pretrained=True)
```

"""

_EMBEDDINGS = """The network before its classifier gives embeddings of images, as `POST /v1/embed` does:

```python
pixels = classifier.transform(classifier.transform.decode("image.png"))[None]
network = classifier.model
embedding = {}
```"""
_TIMM_FEATURES = "network.forward_head(network.forward_features(pixels), pre_logits=True)"
_TORCHVISION_FEATURES = "network.features(pixels).mean((2, 3))"

SOURCES = (
    f"- paper: [ECA-Net](https://arxiv.org/abs/{PAPER}), authors' code: https://github.com/BangguWu/ECANet, code of "
    "this model: `pip install eca-hub`"
)
"""The line of papers and code."""

NO_LICENSE = "The authors of the weights have not stated a license."

UNKNOWN_LIMITS = (
    "What the training data lacks or shows one-sidedly, the network cannot recognize: measure it on your own images "
    "before you rely on it."
)
_ONE_CLASS = f"Every image gets one of the classes above, whatever it shows. {UNKNOWN_LIMITS}"
_UNKNOWN_CLASSES = f"Only the classes above are recognized. {UNKNOWN_LIMITS}"

CITATION = """## Citation

```bibtex
@inproceedings{wang2020eca,
  title     = {ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks},
  author    = {Wang, Qilong and Wu, Banggu and Zhu, Pengfei and Li, Peihua and Zuo, Wangmeng and Hu, Qinghua},
  booktitle = {CVPR},
  year      = {2020}
}
```"""
