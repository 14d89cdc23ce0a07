"""Results of a run of a classifier: accuracies, confusion matrix, metrics of each class, predictions.csv.

Shapes: K classes.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from eca_hub.hub.card.facts import CardFacts, Result
from eca_hub.hub.card.sections import escape
from eca_hub.hub.pretrained import save_pretrained
from eca_hub.models.build import build_model
from eca_hub.models.weight_init import SkipRandomInit
from eca_hub.train.data.source import UNLABELED
from eca_hub.train.plots import draw_confusion, draw_curves, write_classes
from eca_hub.train.results import RunResults
from eca_hub.train.tables import write_csv

_MAX_CLASSES_IN_RESULT = 100
_TOP_K = 5
"""With so many classes, or fewer, every prediction is among the top 5."""


class _ClassifierResults(RunResults):
    """What the results of all classifiers have in common."""

    def collect(self, measured: Mapping[str, float]) -> None:
        """Gather the metrics of each class."""
        self._measured = measured
        metrics = self.module.metrics_for("test")
        self._num_images = metrics.num_images()
        self._per_class = {name: values.tolist() for name, values in metrics.compute_per_class().items()}

    def save(self, weights: Mapping[str, Tensor], folder: Path, facts: CardFacts) -> None:
        """Write the package."""
        # A new network: the trained one may be sharded, or have norms for training only.
        with SkipRandomInit():
            network = build_model(self.module.config)
        network.load_state_dict(weights)
        save_pretrained(network, folder, config=self.module.config, facts=facts)

    def metrics_line(self, split: str) -> str:
        """Return all metrics of a split."""
        metrics = self.module.metrics_for(split)
        values = metrics.compute().items()
        numbers = "  ".join(f"{split}_{name} {float(value):.4f}" for name, value in values)
        return f"{numbers}  on {metrics.num_images()} images"

    def classes(self) -> dict[str, Any]:
        """Return the metrics of each class for result.json, if there are not too many."""
        if len(self.data.labels) > _MAX_CLASSES_IN_RESULT:
            return {}
        return {
            "classes": [
                {"label": label} | {name: _rounded(values[index]) for name, values in self._per_class.items()}
                for index, label in enumerate(self.data.labels)
            ]
        }

    def predict(self, rows_of: Callable[[Tensor], list[Any]]) -> list[tuple[int, Any]]:
        """Return index and prediction of the images of all processes, in order; all processes must call it.

        Args:
            rows_of: From the scores of a batch (N, K) to what is kept of each image.
        """
        batches: Any = self.trainer.predict(self.module, datamodule=self.data) or []
        share = [
            row
            for index_N, score_NK in batches
            for row in zip(index_N.tolist(), rows_of(score_NK.float()), strict=True)
        ]
        return sorted(self.gather(share), key=lambda row: row[0])


class ClassificationResults(_ClassifierResults):
    """Results of a classifier that gives each image one class."""

    plots: ClassVar[Mapping[str, str]] = {
        "curves.png": "Loss and accuracy by epoch",
        "confusion.png": "Confusion matrix of the test split",
    }
    val_metrics = ("top1", "top5")
    score_title = "accuracy"

    def collect(self, measured: Mapping[str, float]) -> None:
        """Gather the confusion matrix and the metrics of each class."""
        super().collect(measured)
        self._confusion_KK: Tensor = self.module.metrics_for("test").compute_confusion().cpu()

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

    def write_files(self, run_dir: Path, result: Mapping[str, Any]) -> dict[str, Any]:
        """Draw curves and confusion matrix, write classes.csv; return the metrics of few classes."""
        labels, confusion_KK = self.data.labels, self._confusion_KK
        draw_confusion(confusion_KK, labels, run_dir / "confusion.png")
        write_classes(confusion_KK, labels, run_dir / "classes.csv")
        if (run_dir / "metrics.csv").is_file():
            draw_curves(run_dir / "metrics.csv", run_dir / "curves.png", result)
        classes = self.classes()
        return {**classes, "confusion": confusion_KK.tolist()} if classes else {}

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
            f"Classifies images into the {len(self.data.labels)} classes of {escape(self.data.title)}.",
            f"Every image gets one of the classes of {escape(self.data.title)}, whatever it shows.",
        )

    def card_results(self, result: Mapping[str, Any]) -> tuple[Result, ...]:
        """Return accuracies, F1 and calibration error."""
        names = {
            "accuracy": "top1",
            "top-5 accuracy": "top5",
            "macro F1": "macro_f1",
            "calibration error": "calibration_error",
        }
        if len(self.data.labels) <= _TOP_K:
            del names["top-5 accuracy"]
        return tuple(
            Result(self.data.title, "test", name, result[f"test_{key}"], result["num_test_images"])
            for name, key in names.items()
        )

    def write_predictions(self, table: Path) -> None:
        """Write a row per image of the test split, in its order: file, true class, predicted class, probability."""
        source, labels = self.data.predict_source(), self.data.labels
        predictions = self.predict(
            lambda score_NK: list(zip(*(each.tolist() for each in score_NK.max(1)), strict=True))
        )
        if not self.trainer.is_global_zero:
            return
        rows: list[list[str]] = []
        num_correct = num_labeled = 0
        for index, (score, best) in predictions:
            target = int(source.targets[index])
            num_labeled += target != UNLABELED
            num_correct += target == best
            label = "" if target == UNLABELED else labels[target]
            rows.append([source.name(index), label, labels[best], f"{score:.6f}"])
        write_csv(table, ["file", "label", "predicted", "score"], rows)
        skipped = len(source.targets) - len(predictions)
        measured = f"{num_correct} of {num_labeled} correct; " if num_labeled else ""
        left_out = f"{skipped} images were not classified; " if skipped else ""
        print(f"{measured}{left_out}predictions: {table}", flush=True)


class MultiLabelResults(_ClassifierResults):
    """Results of a classifier that gives an image any number of classes."""

    plots: ClassVar[Mapping[str, str]] = {"curves.png": "Loss and mean average precision by epoch"}
    score_title = "mAP"

    def test_figures(self) -> dict[str, Any]:
        """Return mean average precision, F1 and loss."""
        names = ("mAP", "macro_f1", "micro_f1", "loss")
        figures = {f"test_{name}": round(float(self._measured[f"test_{name}"]), 6) for name in names}
        return {**figures, "num_test_images": self._num_images}

    def write_files(self, run_dir: Path, result: Mapping[str, Any]) -> dict[str, Any]:
        """Draw curves, write classes.csv; return the metrics of few classes."""
        columns = [
            ["" if math.isnan(each) else f"{each:.6g}" for each in values] for values in self._per_class.values()
        ]
        write_csv(run_dir / "classes.csv", ["label", *self._per_class], zip(self.data.labels, *columns, strict=True))
        if (run_dir / "metrics.csv").is_file():
            draw_curves(run_dir / "metrics.csv", run_dir / "curves.png", result, "mAP", "mean average precision")
        return self.classes()

    def headline(self, result: Mapping[str, Any]) -> str:
        """Return mean average precision, F1 and number of images."""
        return (
            f"test mAP {result['test_mAP']:.4f}, macro F1 {result['test_macro_f1']:.4f}, micro F1 "
            f"{result['test_micro_f1']:.4f} on {result['num_test_images']} images"
        )

    def validation_line(self, result: Mapping[str, Any]) -> str:
        """Return the mean average precision of the validation."""
        if result.get("val_mAP") is None:
            return ""
        return (
            f"{result['kept']} validation mAP {result['val_mAP']:.4f}, micro F1 {result['val_micro_f1']:.4f} in epoch "
            f"{result['best_epoch']} of {result['epochs']}"
        )

    def card_texts(self) -> tuple[str, str]:
        """Return what the model does and what it is not for."""
        return (
            f"Says which of the {len(self.data.labels)} classes of {escape(self.data.title)} apply to an image: any "
            "number of them, or none.",
            f"Only the classes of {escape(self.data.title)} are recognized.",
        )

    def card_results(self, result: Mapping[str, Any]) -> tuple[Result, ...]:
        """Return mean average precision and F1."""
        return tuple(
            Result(self.data.title, "test", name, result[f"test_{key}"], result["num_test_images"])
            for name, key in (("mean average precision", "mAP"), ("macro F1", "macro_f1"), ("micro F1", "micro_f1"))
        )

    def write_predictions(self, table: Path) -> None:
        """Write a row per image of the test split, in its order: file, true and predicted classes, all probabilities.

        Predicted are the classes with a probability above 0.5; several are joined by `|`, which has a backslash before
        it where it belongs to a name.
        """
        source, labels = self.data.predict_source(), self.data.labels
        predictions = self.predict(Tensor.tolist)
        if not self.trainer.is_global_zero:
            return
        rows = []
        for index, scores in predictions:
            true = [label for label, applies in zip(labels, source.targets[index], strict=True) if applies == 1]
            predicted = [label for label, score in zip(labels, scores, strict=True) if score > 0.5]
            rows.append([source.name(index), _joined(true), _joined(predicted), *(f"{score:.6f}" for score in scores)])
        write_csv(table, ["file", "labels", "predicted", *labels], rows)
        skipped = len(source.targets) - len(predictions)
        left_out = f"{skipped} images were not classified; " if skipped else ""
        print(f"{left_out}predictions: {table}", flush=True)


def results_of(trainer: Any, module: Any, data: Any) -> RunResults:
    """Return the results of a classifier: of one class an image, or of any number."""
    return (MultiLabelResults if data.is_multi_label else ClassificationResults)(trainer, module, data)


def _joined(labels: list[str]) -> str:
    return "|".join(label.replace("\\", r"\\").replace("|", r"\|") for label in labels)


def _rounded(value: float) -> float | None:
    """Round a metric for JSON, which has no NaN: the recall of a class without images."""
    return None if math.isnan(value) else round(value, 6)
