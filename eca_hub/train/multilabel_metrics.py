"""Metrics of images with any number of classes, summed over processes: F1 and mean average precision.

Shapes: N images, K classes.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelStatScores

from eca_hub.train.metrics import LOCAL, ClassificationMetrics, SplitMetrics, without_warning


class MultiLabelMetrics(SplitMetrics):
    """Loss, F1 at a probability of 0.5, and mean average precision, where an image has any number of classes.

    mAP is the mean, over the classes that occur, of the area under precision over recall, from all scores of the split:
    12 bytes are kept for each image and class. `micro_f1` counts all pairs of image and class, `macro_f1` is the mean
    over the classes that occur.

    Args:
        num_classes: K.
        is_persistent: Whether checkpoints hold the counts, so that an epoch can be resumed.
        has_map: Whether to measure the mean average precision.
    """

    score_name = "mAP"

    def __init__(self, num_classes: int, *, is_persistent: bool = False, has_map: bool = True) -> None:
        options: dict[str, Any] = {"average": None, "validate_args": False} | LOCAL
        metrics: dict[str, Metric] = {"counts": MultilabelStatScores(num_classes, **options)}
        if has_map:
            metrics["average_precision"] = MultilabelAveragePrecision(num_classes, **options)
        super().__init__(metrics, is_persistent=is_persistent)
        self.counts: MultilabelStatScores
        self._has_map = has_map
        self._num_classes = num_classes

    def local_means(self) -> dict[str, float]:
        """Return loss and F1 of this process so far, for the progress bar."""
        with without_warning():
            return {"loss": float(self._loss()), "F1": float(self._f1_scores()["micro_f1"])}

    def _inputs(self, logits_NK: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        # torchmetrics takes numbers from 0 to 1 for probabilities, even where they are logits.
        return logits_NK.float().sigmoid(), target.long()

    def _values(self) -> dict[str, Tensor]:
        # The average precision last: its `compute` ends the synchronization.
        values = {"loss": self._loss(), **self._f1_scores()}
        if self._has_map:
            precision_K = self._average_precision()
            values["mAP"] = precision_K[~precision_K.isnan()].mean()
        return values

    def _per_class(self) -> dict[str, Tensor]:
        """Return num_images, precision, recall, f1 and average_precision of each class; NaN where it does not occur."""
        true_K, false_K, num_targets_K = self._pairs()
        recall_K = true_K / num_targets_K
        return {
            "num_images": num_targets_K.long(),
            "precision": (true_K / (true_K + false_K).clamp(min=1)).float(),
            "recall": recall_K.float(),
            "f1": (2 * true_K / (true_K + false_K + num_targets_K).clamp(min=1)).float(),
            "average_precision": self._average_precision(),
        }

    def _f1_scores(self) -> dict[str, Tensor]:
        true_K, false_K, num_targets_K = self._pairs()
        f1_K = 2 * true_K / (true_K + false_K + num_targets_K).clamp(min=1)
        all_pairs = (true_K + false_K + num_targets_K).sum().clamp(min=1)
        return {
            "macro_f1": f1_K[num_targets_K > 0].mean().float(),
            "micro_f1": (2 * true_K.sum() / all_pairs).float(),
        }

    def _pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return true predictions, false predictions and targets of each class, (K,)."""
        true_K, false_K, missed_K = (getattr(self.counts, name).double() for name in ("tp", "fp", "fn"))
        return true_K, false_K, true_K + missed_K

    def _average_precision(self) -> Tensor:
        num_targets_K = self._pairs()[2]
        if not int(self._num_images()):
            return torch.full_like(num_targets_K, torch.nan)
        precision_K: Tensor = self.get_submodule("average_precision").compute()  # type: ignore[operator]
        return torch.where(num_targets_K > 0, precision_K.double(), torch.nan).float()

    def _num_images(self) -> Tensor:
        counts = self.counts
        return (counts.tp + counts.fp + counts.tn + counts.fn)[0]  # type: ignore[operator]

    @contextlib.contextmanager
    def _synchronized(self) -> Iterator[None]:
        if self._has_map:
            # A process whose images are all broken has nothing to concatenate.
            scores: Any = self.get_submodule("average_precision")
            if not len(scores.preds):
                scores.preds.append(torch.zeros(0, self._num_classes, device=scores.device))
                scores.target.append(torch.zeros(0, self._num_classes, dtype=torch.int64, device=scores.device))
        with super()._synchronized():
            yield


def new_metrics(num_classes: int, *, is_multi_label: bool) -> nn.ModuleDict:
    """Return the metrics of training (`fit`), `val` and `test`.

    Args:
        num_classes: K.
        is_multi_label: Whether an image has any number of classes.
    """
    splits: dict[str, nn.Module]
    if is_multi_label:
        splits = {
            "fit": MultiLabelMetrics(num_classes, is_persistent=True, has_map=False),
            "val": MultiLabelMetrics(num_classes),
            "test": MultiLabelMetrics(num_classes),
        }
    else:
        splits = {
            "fit": ClassificationMetrics(num_classes, is_persistent=True),
            "val": ClassificationMetrics(num_classes),
            "test": ClassificationMetrics(num_classes, is_detailed=True),
        }
    return nn.ModuleDict(splits)
