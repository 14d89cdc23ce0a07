"""Plots and tables of a run: learning curves, confusion matrix, metrics per class.

Shapes: K classes; confusion rows are true classes, columns are predicted ones.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from eca_hub.train.callbacks.epoch_log import read_rows
from eca_hub.train.tables import write_csv

_MAX_NAMED = 40
"""The largest number of classes whose names fit beside the matrix."""
_MAX_WRITTEN = 12
"""The largest number of classes whose shares are written in all cells; with more, only the large mistakes are."""
_LARGE_MISTAKE = 0.2
_COLORS = {"train": "#8fa3b8", "val": "#d1495b"}
_NAMES = {"train": "training", "val": "validation"}


def draw_curves(
    metrics_csv: Path, image: Path, result: Mapping[str, Any], score: str = "top1", title: str = "top-1"
) -> None:
    """Draw the loss and the score of a metrics file, training beside validation, and mark the published weights.

    Args:
        metrics_csv: The metrics file.
        image: Where to.
        result: What result.json has.
        score: Name of the metric by which the best epoch is chosen.
        title: Its name for people.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    rows = read_rows(metrics_csv)
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), ("loss", score), strict=True):
        for split, color in _COLORS.items():
            points = [(int(row["epoch"]) + 1, float(row[key])) for row in rows if row.get(key := f"{split}_{metric}")]
            if not points:
                continue
            marker = "o" if len(points) < _MAX_NAMED else None
            axes.plot(*zip(*points, strict=True), label=_NAMES[split], color=color, lw=1.8, marker=marker, ms=3)
            if metric == score and split == "val" and (value := result.get(f"val_{score}")) is not None:
                epoch = result["best_epoch"]
                axes.plot(epoch, value, "o", ms=9, mfc="none", mec=color, mew=1.5)
                axes.set_title(f"{title}, {result['kept']} {value:.1%} in epoch {epoch}", loc="left")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if metric == "loss":
            axes.set_title("loss", loc="left")
        else:
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        if axes.lines:
            axes.legend(frameon=False)
    figure.savefig(image, dpi=120)


def draw_confusion(confusion_KK: Tensor, labels: Sequence[str], image: Path) -> None:
    """Draw the confusion matrix, as shares of the true class."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    num_classes, num_images = len(labels), int(confusion_KK.sum())
    share_KK = confusion_KK.double() / confusion_KK.sum(1, keepdim=True).clamp(min=1)
    side = min(max(4.5, 0.3 * num_classes + 2), 14.0)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    # The square root of the share, because a mistake in twenty would be invisible.
    axes.imshow(share_KK.numpy(), cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    if num_classes <= _MAX_NAMED:
        axes.set_xticks(range(num_classes), [plain(label) for label in labels], rotation=90)
        axes.set_yticks(range(num_classes), [plain(label) for label in labels])
        axes.tick_params(length=0)
        for row, column in (share_KK > 0).nonzero().tolist():
            share = float(share_KK[row, column])
            if num_classes <= _MAX_WRITTEN or row == column or share >= _LARGE_MISTAKE:
                color = "white" if share > 0.35 else "black"
                axes.text(column, row, f"{share:.0%}"[:-1], ha="center", va="center", color=color, fontsize=8)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(
        f"{int(confusion_KK.trace()) / max(num_images, 1):.1%} of {num_images} images correct; "
        "percent of each true class",
        loc="left",
        fontsize=10,
    )
    figure.savefig(image, dpi=100)


def write_classes(confusion_KK: Tensor, labels: Sequence[str], table: Path) -> None:
    """Write a row per class: images, recall, precision, and the class it is most often mistaken for."""
    rows = []
    for index, label in enumerate(labels):
        num_correct, num_seen = int(confusion_KK[index, index]), int(confusion_KK[index].sum())
        num_predicted = int(confusion_KK[:, index].sum())
        others_K = confusion_KK[index].clone()
        others_K[index] = 0
        times, likeliest = int(others_K.max()), int(others_K.argmax())
        rows.append(
            [
                label,
                num_seen,
                f"{num_correct / num_seen:.4f}" if num_seen else "",
                f"{num_correct / num_predicted:.4f}" if num_predicted else "",
                labels[likeliest] if times else "",
                times,
            ]
        )
    write_csv(table, ["label", "num_images", "recall", "precision", "most_often_mistaken_for", "times"], rows)


def plain(text: str, max_chars: int = 24) -> str:
    """Escape dollar signs, which matplotlib reads as a formula, and replace characters that the font may lack."""
    return text[:max_chars].replace("$", r"\$").encode("ascii", "replace").decode()
