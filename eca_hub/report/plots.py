"""The figures of a report."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from eca_hub.report.statistics import Summary
from eca_hub.report.study import PERCENT, Block, Study
from eca_hub.sweep.results import Row
from eca_hub.train.plots import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = {"none": "#8c8c8c", "se": "#3b6fb6", "eca": "#d1495b"}
_MORE_COLORS = ("#2a9d8f", "#e9a23b", "#7b5ea7", "#4f772d", "#222222", "#1b7f9e", "#b0578d", "#6c757d")
_MAX_CLASSES = 40
_MAX_WIDE = 10
"""Methods that are drawn far enough apart for their names to be nearly level."""
_MAX_TITLE_CHARS = 90


def draw_all(study: Study) -> dict[str, "Figure"]:
    """Draw every figure that the tables have data for, by file name."""
    blocks, metric = study.blocks, study.plan.metric
    figures: dict[str, Figure] = {}
    for number, block in enumerate(blocks, start=1):
        suffix = f"_{number}" if len(blocks) > 1 else ""
        figures[f"accuracy{suffix}"] = accuracy(block, metric)
        if any(method.parameters and method.multiply_adds for method in block.methods):
            figures[f"bubbles{suffix}"] = bubbles(block, metric)
        if sum(method.kernel_size is not None for method in block.methods) > 1:
            figures[f"kernel_size{suffix}"] = kernel_sizes(block, metric)
        if curves := training_curves(block, metric, study.curves):
            figures[f"curves{suffix}"] = curves
        if study.classes and {"eca", "none"} <= {method.name for method in block.methods}:
            figures[f"classes{suffix}"] = class_gains(block, study.classes)
    if study.gates:
        figures["gates_1" if len(blocks) > 1 else "gates"] = gates(study.gates)
    return figures


def accuracy(block: Block, metric: str) -> "Figure":
    """Each seed as a point, the mean with its 95 % interval as a bar."""
    num_methods = len(block.methods)
    inches, degrees = (0.9, 20) if num_methods <= _MAX_WIDE else (0.5, 50)
    figure, axes = _axes(block.name, "", _percent(metric), width=max(4.5, inches * num_methods + 1.5))
    for position, method in enumerate(block.methods):
        color = _color(method.name, position)
        spread = np.linspace(-0.12, 0.12, len(method.values)) if len(method.values) > 1 else [0.0]
        axes.plot([position + each for each in spread], method.values, "o", ms=4, color=color, alpha=0.5)
        summary = method.summary
        half = summary.high - summary.mean if summary.num_seeds > 1 else 0.0
        axes.errorbar(position + 0.28, summary.mean, yerr=half, fmt="s", ms=6, capsize=4, color=color)
    names = [plain(method.name) for method in block.methods]
    axes.set_xticks(range(num_methods), names, rotation=degrees, ha="right", rotation_mode="anchor")
    return figure


def bubbles(block: Block, metric: str) -> "Figure":
    """Accuracy against parameters; the area of a bubble is its multiply-adds (figure 1 of the paper)."""
    figure, axes = _axes(block.name, "parameters (millions)", _percent(metric))
    counted = [method for method in block.methods if method.parameters and method.multiply_adds]
    largest = max(method.multiply_adds or 0 for method in counted)
    for position, method in enumerate(counted):
        area = 900 * (method.multiply_adds or 0) / largest
        x, y = (method.parameters or 0) / 1e6, method.summary.mean
        axes.scatter(x, y, s=area, color=_color(method.name, position), alpha=0.45)
        axes.annotate(plain(method.name), (x, y), ha="center", va="center", fontsize=9)
    axes.margins(0.2)
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.locator_params(axis="x", nbins=6)
    name = plain(block.name, _MAX_TITLE_CHARS // 2)
    axes.set_title(f"{name}; area: multiply-adds, largest {largest / 1e6:,.1f} million", loc="left", fontsize=10)
    return figure


def kernel_sizes(block: Block, metric: str) -> "Figure":
    """Accuracy against the kernel size of ECA (figure 4 of the paper); methods without one as lines."""
    figure, axes = _axes(block.name, "kernel size k", _percent(metric))
    sized: dict[str, list[tuple[int, Summary]]] = {}
    for method in block.methods:
        if method.kernel_size is not None:
            sized.setdefault(method.name.partition(" ")[0], []).append((method.kernel_size, method.summary))
    by_default = {method.name for method in block.methods if method.kernel_size is None}
    for position, (name, points) in enumerate(sized.items()):
        points.sort(key=lambda point: point[0])
        ks, means = [k for k, _ in points], [each.mean for _, each in points]
        halves = [each.high - each.mean if each.num_seeds > 1 else 0.0 for _, each in points]
        label = f"{plain(name)}, one k for all blocks" if name in by_default else plain(name)
        axes.errorbar(ks, means, yerr=halves, fmt="o-", capsize=4, color=_color(name, position), label=label)
    for position, method in enumerate(method for method in block.methods if method.kernel_size is None):
        color, summary = _color(method.name, position), method.summary
        label = f"{plain(method.name)}, default k" if method.name in sized else plain(method.name)
        axes.axhline(summary.mean, ls="--", lw=1.2, color=color, label=label)
        if method.name in sized and summary.num_seeds > 1:
            axes.axhspan(summary.low, summary.high, color=color, alpha=0.1, lw=0)
    axes.set_xticks(sorted({k for points in sized.values() for k, _ in points}))
    # Beside the axes, because lines cross all of them.
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def training_curves(block: Block, metric: str, curves: Sequence[Row]) -> "Figure | None":
    """The metric by epoch, dashed for training and with points for validation: means and ranges over the seeds.

    Returns:
        The figure; None if the table of curves does not have the metric.
    """
    name = metric.removeprefix("test_").removeprefix("val_")
    columns = {f"train_{name}": "--", f"val_{name}": "o-"}
    if not any(_is_number(row.get(column)) for row in curves for column in columns):
        return None
    figure, axes = _axes(f"{block.name}; dashed: training", "epoch", _percent(f"val_{name}"))
    for position, method in enumerate(block.methods):
        color = _color(method.name, position)
        axes.plot([], [], color=color, label=plain(method.name))
        rows = [row for row in curves if row["run"] in method.runs]
        for column, style in columns.items():
            values: dict[int, list[float]] = {}
            for row in rows:
                if _is_number(row.get(column)):
                    values.setdefault(int(row["epoch"]) + 1, []).append(PERCENT * float(row[column]))
            epochs = sorted(values)
            axes.plot(epochs, [float(np.mean(values[epoch])) for epoch in epochs], style, ms=4, lw=1.2, color=color)
            low, high = ([extreme(values[epoch]) for epoch in epochs] for extreme in (min, max))
            axes.fill_between(epochs, low, high, color=color, alpha=0.15, lw=0)
    axes.legend(frameon=False)
    return figure


def class_gains(block: Block, classes: Sequence[Row]) -> "Figure":
    """Recall or AP of each class with ECA less that without attention, the classes with the largest changes."""
    column = "recall" if "recall" in classes[0] else "AP"
    means = _class_means(block, classes, column)
    gains = sorted(
        (
            (PERCENT * (means["eca"][label] - value), label)
            for label, value in means["none"].items()
            if label in means["eca"]
        ),
        key=lambda gain: -abs(gain[0]),
    )[:_MAX_CLASSES]
    gains.sort()
    figure, axes = _axes(
        block.name, f"{column} with eca less {column} with none (points)", "", height=1.2 + 0.22 * len(gains)
    )
    colors = [_COLORS["eca"] if gain >= 0 else _COLORS["none"] for gain, _ in gains]
    axes.barh(range(len(gains)), [gain for gain, _ in gains], color=colors)
    axes.set_yticks(range(len(gains)), [plain(label) for _, label in gains], fontsize=8)
    return figure


def gates(rows: Sequence[Row]) -> "Figure":
    """Gates of the last block of each stage: a line for each class over the channels (the paper's channel weights).

    Args:
        rows: As `eca_hub.report.gates.mean_gates` returns them.
    """
    from matplotlib.figure import Figure

    stages = sorted({int(row["stage"]) for row in rows})
    labels = list(dict.fromkeys(str(row["label"]) for row in rows))
    figure = Figure(figsize=(6.4, 1.4 * len(stages) + 0.6), layout="constrained")
    all_axes = figure.subplots(len(stages), 1, squeeze=False)[:, 0]
    for axes, stage in zip(all_axes, stages, strict=True):
        for position, label in enumerate(labels):
            values = [float(row["gate"]) for row in rows if row["stage"] == stage and str(row["label"]) == label]
            axes.plot(values, lw=0.8, color=_MORE_COLORS[position % len(_MORE_COLORS)], label=plain(label))
        axes.set_title(f"stage {stage}, {len(values)} channels", loc="left", fontsize=9)
        axes.margins(x=0.01)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].legend(frameon=False, fontsize=8, ncols=len(labels), loc="lower right", bbox_to_anchor=(1.0, 1.0))
    all_axes[-1].set_xlabel("channel")
    figure.supylabel("gate", fontsize=9)
    return figure


def _class_means(block: Block, classes: Sequence[Row], column: str) -> Mapping[str, dict[str, float]]:
    method_of = {run: method.name for method in block.methods for run in method.runs}
    values: dict[str, dict[str, list[float]]] = {"eca": {}, "none": {}}
    for row in classes:
        method = method_of.get(str(row["run"]), "")
        if method in values and _is_number(row.get(column)):
            values[method].setdefault(str(row["label"]), []).append(float(row[column]))
    return {name: {label: float(np.mean(each)) for label, each in labels.items()} for name, labels in values.items()}


def _axes(title: str, x: str, y: str, *, width: float = 6.4, height: float = 4.0) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(plain(title, _MAX_TITLE_CHARS), loc="left", fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _percent(metric: str) -> str:
    """Name a metric on an axis."""
    split, _, name = metric.partition("_")
    known = {"test": "test split", "val": "validation split"}
    if name == "top1" and split in known:
        return f"accuracy on the {known[split]} (%)"
    return f"{plain(metric, _MAX_TITLE_CHARS)} (%)"


def _color(name: str, position: int) -> str:
    return _COLORS.get(name, _MORE_COLORS[position % len(_MORE_COLORS)])
