"""Plots of a run of a detector: curves over the epochs, precision over recall, a contact sheet of detections.

Shapes: H height, W width.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eca_hub.images.rle import decode_mask
from eca_hub.train.callbacks.epoch_log import read_rows
from eca_hub.train.detection_metrics import Evaluation, IouType

_COLORS = {"bbox": "#d1495b", "segm": "#2e7d6b"}
_NAMES = {"bbox": "boxes", "segm": "masks"}
_TRUTH_COLOR = "#ffffff"
_NUM_COLUMNS = 4


def draw_curves(metrics_csv: Path, image: Path) -> None:
    """Draw the training loss and the average precision of the validation over the epochs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = read_rows(metrics_csv)
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    loss_axes, ap_axes = figure.subplots(1, 2)
    series = [
        (loss_axes, "train_loss", "#8fa3b8", "-", "loss"),
        (ap_axes, "val_AP", _COLORS["bbox"], "-", "AP, boxes"),
        (ap_axes, "val_AP50", _COLORS["bbox"], "--", "AP50, boxes"),
        (ap_axes, "val_mask_AP", _COLORS["segm"], "-", "AP, masks"),
        (ap_axes, "val_mask_AP50", _COLORS["segm"], "--", "AP50, masks"),
    ]
    for axes, key, color, style, name in series:
        points = [(int(row["epoch"]) + 1, float(row[key])) for row in rows if row.get(key)]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=name, color=color, lw=1.8)
    for axes, title in ((loss_axes, "training loss"), (ap_axes, "average precision of the validation")):
        axes.set_xlabel("epoch")
        axes.set_title(title, loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
    if ap_axes.lines:
        ap_axes.legend(frameon=False)
    figure.savefig(image, dpi=120)


def draw_precision_recall(evaluations: Mapping[IouType, Evaluation], image: Path) -> None:
    """Draw precision over recall at IoU 0.5, mean of the classes that occur."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.2), layout="constrained")
    axes = figure.subplots()
    for iou_type, evaluation in evaluations.items():
        recall = np.linspace(0, 1, len(evaluation.precision))
        label = f"{_NAMES[iou_type]}, AP50 {evaluation.figures['AP50']:.3f}"
        axes.plot(recall, evaluation.precision, color=_COLORS[iou_type], lw=1.8, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.set_title("at IoU 0.5, mean of the classes", loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    figure.savefig(image, dpi=120)


def draw_contact_sheet(
    samples: Sequence[tuple[np.ndarray, Sequence[Sequence[float]], Sequence[Mapping[str, Any]]]],
    label_of: Mapping[int, str],
    image: Path,
    *,
    min_score: float = 0.3,
) -> None:
    """Draw images with their annotated boxes in white and the detections in color.

    Args:
        samples: Pixels uint8 (H, W, 3), annotated boxes as x1, y1, x2, y2, and COCO results of each image.
        label_of: Category id to class name.
        image: Where to.
        min_score: Detections below are left out.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    # With no sample, one empty row.
    num_rows = max(-(-len(samples) // _NUM_COLUMNS), 1)
    figure = Figure(figsize=(4 * _NUM_COLUMNS, 3.2 * num_rows), layout="constrained")
    grid = figure.subplots(num_rows, _NUM_COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, (pixels_HW3, boxes, predictions) in zip(grid.flat, samples, strict=False):
        axes.imshow(pixels_HW3)
        for x1, y1, x2, y2 in boxes:
            axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=_TRUTH_COLOR, lw=2.2))
        shown = sorted((each for each in predictions if each["score"] >= min_score), key=lambda each: each["score"])
        for each in shown:
            x, y, width, height = each["bbox"]
            color = f"C{each['category_id'] % 10}"
            axes.add_patch(Rectangle((x, y), width, height, fill=False, ec=color, lw=1.2))
            # A font need not have every character, and a dollar sign would begin a formula.
            label = label_of[each["category_id"]].replace("$", r"\$").encode("ascii", "replace").decode()[:24]
            axes.text(x, y, f"{label} {each['score']:.2f}", fontsize=6, color="white", backgroundcolor=color)
            if "segmentation" in each:
                overlay = np.zeros((*pixels_HW3.shape[:2], 4))
                overlay[decode_mask(each["segmentation"])] = (1.0, 0.2, 0.3, 0.4)
                axes.imshow(overlay)
    figure.savefig(image, dpi=80)
