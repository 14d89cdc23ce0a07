"""Pictures and tables of a run: curves over the epochs, who was taken for whom. Knows nothing of training.

Shapes: K classes; confusion rows are true classes, columns are answers.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from eca_hub.train.progress import read_rows

_MAX_NAMED = 40


def draw_curves(metrics_csv: Path, picture: Path) -> None:
    """Draw the loss and top-1 columns of a metrics file, training beside validation."""
    from matplotlib.figure import Figure

    rows = read_rows(metrics_csv)
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), ("loss", "top1"), strict=True):
        for split in ("train", "val"):
            points = [(int(row["epoch"]) + 1, float(row[key])) for row in rows if row.get(key := f"{split}_{metric}")]
            if points:
                axes.plot(*zip(*points, strict=True), label=split, marker="." if len(points) < _MAX_NAMED else None)
        axes.set(xlabel="epoch", title=metric)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(picture, dpi=120)


def draw_confusion(confusion_KK: Tensor, labels: Sequence[str], picture: Path) -> None:
    """Draw how often each class was taken for each, as shares of the true class."""
    from matplotlib.figure import Figure

    share_KK = confusion_KK.double() / confusion_KK.sum(1, keepdim=True).clamp(min=1)
    side = min(max(4.0, 0.3 * len(labels) + 2), 16.0)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share_KK.numpy(), cmap="viridis", vmin=0, vmax=1)
    if len(labels) <= _MAX_NAMED:
        axes.set_xticks(range(len(labels)), [_plain(label) for label in labels], rotation=90)
        axes.set_yticks(range(len(labels)), [_plain(label) for label in labels])
    axes.set(xlabel="answer", ylabel="truth")
    figure.colorbar(image, ax=axes, shrink=0.7)
    figure.savefig(picture, dpi=100)


def write_classes(confusion_KK: Tensor, labels: Sequence[str], table: Path) -> None:
    """Write a row a class: pictures, recall, precision, and the class it is most often taken for."""
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "num_images", "recall", "precision", "most_often_taken_for", "times"])
        for index, label in enumerate(labels):
            right, seen = int(confusion_KK[index, index]), int(confusion_KK[index].sum())
            answered = int(confusion_KK[:, index].sum())
            others_K = confusion_KK[index].clone()
            others_K[index] = 0
            times, rival = int(others_K.max()), int(others_K.argmax())
            writer.writerow(
                [
                    label,
                    seen,
                    f"{right / seen:.4f}" if seen else "",
                    f"{right / answered:.4f}" if answered else "",
                    labels[rival] if times else "",
                    times,
                ]
            )


def _plain(label: str) -> str:
    """A name with dollar signs would be read as a formula, and a font need not have every character."""
    return label.replace("$", r"\$").encode("ascii", "replace").decode()[:24]
