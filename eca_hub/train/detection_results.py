"""Results of a run of a detector: average precision, plots, classes.csv and detections.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from eca_hub.atomic import write_atomic
from eca_hub.hub.card.facts import CardFacts, Result
from eca_hub.hub.card.sections import escape
from eca_hub.hub.pretrained import save_detector
from eca_hub.models.detectors import build_detector
from eca_hub.train.data.detection import DetectionDataModule
from eca_hub.train.data.detection_dataset import load_pixels
from eca_hub.train.detection import DetectionModule
from eca_hub.train.detection_metrics import FIGURES
from eca_hub.train.detection_plots import draw_contact_sheet, draw_curves, draw_precision_recall
from eca_hub.train.results import RunResults
from eca_hub.train.tables import write_csv

_NUM_SHOWN = 12


class DetectionResults(RunResults):
    """Results of a detector."""

    # detections.png shows images of the data, which may not be published.
    plots: ClassVar[Mapping[str, str]] = {
        "curves.png": "Loss and average precision by epoch",
        "precision_recall.png": "Precision over recall at IoU 0.5",
    }
    score_title = "AP"

    def collect(self, measured: Mapping[str, float]) -> None:
        """Gather the predictions of all processes."""
        self._precision = self.module.metrics_for("test")
        self._test_metrics = self._precision.compute()
        self._predictions: dict[Any, list[dict[str, Any]]] = self._precision.gather()

    def test_figures(self) -> dict[str, Any]:
        """Return the average precision of boxes and masks."""
        figures = {f"test_{name}": round(float(value), 6) for name, value in self._test_metrics.items()}
        return {**figures, "num_test_images": len(self._predictions)}

    def write_files(self, run_dir: Path, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write detections.json and classes.csv, and draw curves, precision over recall, and some images."""
        results = [each for per_image in self._predictions.values() for each in per_image]
        write_atomic(run_dir / "detections.json", json.dumps(results).encode())
        _write_classes(self.module, self.data, run_dir / "classes.csv")
        draw_precision_recall(self._precision.evaluations, run_dir / "precision_recall.png")
        _draw_detections(self.data, self._predictions, run_dir / "detections.png")
        if (run_dir / "metrics.csv").is_file():
            draw_curves(run_dir / "metrics.csv", run_dir / "curves.png")
        return {}

    def save(self, weights: Mapping[str, Tensor], folder: Path, facts: CardFacts) -> None:
        """Write the package."""
        network = build_detector(self.module.config)
        network.load_state_dict(weights)
        save_detector(network, folder, facts=facts)

    def headline(self, result: Mapping[str, Any]) -> str:
        """Return the average precision and the number of images."""
        return f"test {_figures(result, 'test_')} on {result['num_test_images']} images"

    def validation_line(self, result: Mapping[str, Any]) -> str:
        """Return the average precision of the validation."""
        if "val_AP" not in result:
            return ""
        return (
            f"{result['kept']} validation {_figures(result, 'val_')} in epoch {result['best_epoch']} of "
            f"{result['epochs']}"
        )

    def card_texts(self) -> tuple[str, str]:
        """Return what the model does and what it is not for."""
        return (
            f"Finds the {len(self.data.labels)} kinds of objects of {escape(self.data.title)}.",
            f"Only the classes of {escape(self.data.title)} are found.",
        )

    def card_results(self, result: Mapping[str, Any]) -> tuple[Result, ...]:
        """Return the average precision of boxes and masks, for all sizes of objects that occur."""
        kinds = [("", "boxes"), ("mask_", "masks")] if self.module.config.has_masks else [("", "boxes")]
        values = {f"{name} of {kind}": result[f"test_{prefix}{name}"] for prefix, kind in kinds for name in FIGURES[:6]}
        num_images = result["num_test_images"]
        # COCO's -1 stands for a size that no object has.
        return tuple(
            Result(self.data.title, "test", name, value, num_images) for name, value in values.items() if value >= 0
        )

    def metrics_line(self, split: str) -> str:
        """Return the average precision of a split."""
        metrics = self.module.metrics_for(split)
        values = {f"{split}_{name}": float(value) for name, value in metrics.compute().items()}
        return f"{_figures(values, f'{split}_')}  on {len(metrics.gather())} images"

    def write_predictions(self, table: Path) -> None:
        """Write the detections of the test split as a COCO results file."""
        batches: Any = self.trainer.predict(self.module, datamodule=self.data) or []
        predictions_by_image = self.gather([each for batch in batches for each in batch.items()])
        if not self.trainer.is_global_zero:
            return
        results = [each for _, predictions in predictions_by_image for each in predictions]
        path = table.with_suffix(".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(results).encode())
        print(f"{len(results)} detections in {len(predictions_by_image)} images: {path}", flush=True)


def _figures(values: Mapping[str, Any], prefix: str) -> str:
    boxes = ", ".join(f"{name} {values[prefix + name]:.4f}" for name in FIGURES[:3])
    if f"{prefix}mask_AP" not in values:
        return boxes
    return f"boxes {boxes}; masks " + ", ".join(f"{name} {values[f'{prefix}mask_{name}']:.4f}" for name in FIGURES[:3])


def _write_classes(module: DetectionModule, data: DetectionDataModule, table: Path) -> None:
    """Write a row per class: annotated objects, AP and AP50 of boxes, and of masks."""
    split = data.split("test")
    evaluations = module.metrics_for("test").evaluations
    # Evaluations have the classes in the order of their category ids.
    index_of = {category_id: index for index, category_id in enumerate(sorted(split.category_ids))}
    counts: dict[int, int] = dict.fromkeys(split.category_ids, 0)
    for each in split.ground_truth["annotations"]:
        counts[each["category_id"]] += not each.get("iscrowd")
    prefixes = ["mask_" if iou_type == "segm" else "" for iou_type in evaluations]
    names = [f"{prefix}{name}" for prefix in prefixes for name in ("AP", "AP50")]
    rows = []
    for label, category_id in zip(split.labels, split.category_ids, strict=True):
        index = index_of[category_id]
        values = [
            each[index] for evaluation in evaluations.values() for each in (evaluation.class_ap, evaluation.class_ap50)
        ]
        # COCO's -1 stands for a class without an object.
        rows.append([label, counts[category_id], *(f"{value:.4f}" if value >= 0 else "" for value in values)])
    write_csv(table, ["label", "num_objects", *names], rows)


def _draw_detections(data: DetectionDataModule, predictions: dict[Any, list[dict[str, Any]]], image: Path) -> None:
    split = data.split("test")
    samples: list[tuple[Any, Any, Any]] = []
    for each in split.images:
        if len(samples) == _NUM_SHOWN:
            break
        if each.image_id in predictions:
            pixels_HW3 = load_pixels(each, data.bit_depth).permute(1, 2, 0).numpy()
            samples.append((pixels_HW3, each.boxes.tolist(), predictions[each.image_id]))
    label_of = dict(zip(split.category_ids, split.labels, strict=True))
    draw_contact_sheet(samples, label_of, image)
