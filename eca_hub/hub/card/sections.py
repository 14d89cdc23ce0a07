"""The sections of a model card that classifiers and detectors share. Imports no torch."""

import html
import re
from collections.abc import Sequence

from huggingface_hub import EvalResult, ModelCardData

from eca_hub.hub.card.facts import CardFacts

MODEL_ID_PLACEHOLDER = "OWNER/NAME"
"""Placeholder for the id of the model until it is pushed."""

PAPER = "1910.03151"
"""arXiv id of the ECA-Net paper."""

NUM_SHOWN_LABELS = 20
"""Classes that a card names; the rest is counted."""

_METRIC_IDS = {
    "accuracy": "accuracy",
    "top-5 accuracy": "top_5_accuracy",
    "macro F1": "f1",
    "micro F1": "f1",
    "calibration error": "expected_calibration_error",
    "mean average precision": "mean_average_precision",
}
"""Name of a metric on the page to its name in the metadata; others have one name."""


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
        license_name=facts.license_name or None,
        license_link=facts.license_link or None,
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


def escape(text: str) -> str:
    """Escape the characters of a name from data that mean something in Markdown, HTML or on the Hub's pages."""
    single_line = html.escape(" ".join(text.split()), quote=False)
    escaped = re.sub(r"([\\`*\[\]|$])", r"\\\1", single_line)
    escaped = re.sub(r"(?<![^\W_])_|_(?![^\W_])|~(?=~)", lambda match: f"\\{match[0]}", escaped)
    return escaped.replace("://", r":\//").replace("www.", r"www\.")


def license_section(facts: CardFacts) -> str:
    """Return the section about the license of the weights."""
    name = facts.license_name or facts.license
    return f"## License\n\n{license_sentence(name) if name else NO_LICENSE}"


def license_sentence(license: str) -> str:
    """Return the sentence with the id or the name of the license of the weights."""
    return f"Of the weights: {escape(license)}."


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
    plots = "".join(f"\n\n![{escape(shows)}]({name})" for name, shows in facts.plots.items())
    return f"## Results\n\n{table}{measured}{plots}"


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


SOURCES = (
    f"- paper: [ECA-Net](https://arxiv.org/abs/{PAPER}), authors' code: https://github.com/BangguWu/ECANet, code of "
    "this model: eca-hub"
)
"""The line of papers and code."""

NO_LICENSE = "The license of the weights is not stated here."

UNKNOWN_LIMITS = (
    "What the training data lacks or shows one-sidedly, the network cannot recognize: measure it on your own images "
    "before you rely on it."
)
CITATION = """## Citation

```bibtex
@inproceedings{wang2020eca,
  title     = {ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks},
  author    = {Wang, Qilong and Wu, Banggu and Zhu, Pengfei and Li, Peihua and Zuo, Wangmeng and Hu, Qinghua},
  booktitle = {CVPR},
  year      = {2020}
}
```"""
