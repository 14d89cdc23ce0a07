"""Results of a run of a classifier: accuracies, confusion matrix, metrics of each class, predictions.csv.

Shapes: K classes.
"""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from eca_hub.hub.card import CardFacts, Result
from eca_hub.hub.pretrained import save_pretrained
from eca_hub.models.build import build_model
from eca_hub.train.data.source import UNLABELED
from eca_hub.train.plots import draw_confusion, draw_curves, write_classes
from eca_hub.train.results import RunResults

_MAX_CLASSES_IN_RESULT = 100


class ClassificationResults(RunResults):
    """Results of a classifier that gives each image one class."""

    val_metrics = ("top1", "top5")
    score_title = "accuracy"

    def collect(self, measured: Mapping[str, float]) -> None:
        """Gather the confusion matrix and the metrics of each class."""
        metrics = self.module.metrics_for("test")
        self._measured = measured
        self._confusion_KK: Tensor = metrics.compute_confusion().cpu()
        self._per_class = {name: values.tolist() for name, values in metrics.compute_per_class().items()}

    def test_figures(self) -> dict[str, Any]:
        """Return accuracies, mean over the classes, F1, calibration error and loss."""
        measured, num_test = self._measured, int(self._confusion_KK.sum())
        return {
            # The metric is a float32; the share of correct predictions, from which it was rounded, is exact.
            "test_top1": int(self._confusion_KK.trace()) / num_test,
            "test_top5": round(float(measured["test_top5"]) * num_test) / num_test,
            "test_macro": round(float(measured["test_macro"]), 6),
            "test_macro_f1": round(float(measured["test_macro_f1"]), 6),
            "test_calibration_error": round(float(measured["test_calibration_error"]), 6),
            "test_loss": measured["test_loss"],
            "num_test_images": num_test,
        }

    def write_files(self, run_dir: Path) -> dict[str, Any]:
        """Draw curves and confusion matrix, write classes.csv; return the metrics of few classes."""
        labels, confusion_KK = self.data.labels, self._confusion_KK
        draw_confusion(confusion_KK, labels, run_dir / "confusion.png")
        write_classes(confusion_KK, labels, run_dir / "classes.csv")
        if (run_dir / "metrics.csv").is_file():
            draw_curves(run_dir / "metrics.csv", run_dir / "curves.png")
        if len(labels) > _MAX_CLASSES_IN_RESULT:
            return {}
        classes = [
            {"label": label} | {name: _rounded(values[index]) for name, values in self._per_class.items()}
            for index, label in enumerate(labels)
        ]
        return {"classes": classes, "confusion": confusion_KK.tolist()}

    def save(self, weights: Mapping[str, Tensor], folder: Path, facts: CardFacts) -> None:
        """Write the package."""
        # A new network: the trained one may be sharded, or have norms for training only.
        network = build_model(self.module.config)
        network.load_state_dict(weights)
        save_pretrained(network, folder, config=self.module.config, facts=facts)

    def headline(self, result: Mapping[str, Any]) -> str:
        """Return accuracies and number of images."""
        return (
            f"test top-1 {result['test_top1']:.4f}, top-5 {result['test_top5']:.4f}, mean over classes "
            f"{result['test_macro']:.4f} on {result['num_test_images']} images"
        )

    def validation_line(self, result: Mapping[str, Any]) -> str:
        """Return the accuracies of the validation."""
        if result["val_top1"] is None:
            return ""
        return (
            f"{result['kept']} validation top-1 {result['val_top1']:.4f}, top-5 {result['val_top5']:.4f} in epoch "
            f"{result['best_epoch']} of {result['epochs']}"
        )

    def card_texts(self) -> tuple[str, str]:
        """Return what the model does and what it is not for."""
        return (
            f"Classifies images into the {len(self.data.labels)} classes of {self.data.title}.",
            f"Every image gets one of the classes of {self.data.title}, whatever it shows.",
        )

    def card_results(self, result: Mapping[str, Any]) -> tuple[Result, ...]:
        """Return the accuracy."""
        return (Result(self.data.title, "test", "accuracy", result["test_top1"], result["num_test_images"]),)

    def metrics_line(self, split: str) -> str:
        """Return all metrics of a split."""
        metrics = self.module.metrics_for(split)
        values = metrics.compute().items()
        numbers = "  ".join(f"{split}_{name} {float(value):.4f}" for name, value in values)
        return f"{numbers}  on {metrics.num_images()} images"

    def write_predictions(self, table: Path) -> None:
        """Write a row per image of the test split, in its order: file, true class, predicted class, probability."""
        source = self.data.predict_source()
        predictions = self.gather(
            [
                prediction
                for index_N, score_NK in self.trainer.predict(self.module, datamodule=self.data) or []
                for prediction in zip(
                    index_N.tolist(), score_NK.argmax(1).tolist(), score_NK.amax(1).tolist(), strict=True
                )
            ]
        )
        if not self.trainer.is_global_zero:
            return
        table.parent.mkdir(parents=True, exist_ok=True)
        num_correct = num_labeled = 0
        with table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "label", "answer", "score"])
            for index, best, score in sorted(predictions):
                target = int(source.targets[index])
                num_labeled += target != UNLABELED
                num_correct += target == best
                label = "" if target == UNLABELED else self.data.labels[target]
                writer.writerow([source.name(index), label, self.data.labels[best], f"{score:.6f}"])
        skipped = len(source.targets) - len(predictions)
        measured = f"{num_correct} of {num_labeled} correct; " if num_labeled else ""
        left_out = f"{skipped} images were not classified; " if skipped else ""
        print(f"{measured}{left_out}predictions: {table}", flush=True)


def _rounded(value: float) -> float | None:
    """Round a metric for JSON, which has no NaN: the recall of a class without images."""
    return None if math.isnan(value) else round(value, 6)
