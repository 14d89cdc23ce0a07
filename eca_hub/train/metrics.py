"""Classification metrics, summed over processes, so that each image has the same weight.

A table of pairs of classes takes K x K numbers, so only the test split has one; the other splits keep a few numbers a
class. (torchmetrics' own macro accuracy builds a K x K table for every batch: 3.8 GB at 21,843 classes.)

Shapes: N images, K classes; confusion rows are targets, columns are predictions.
"""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchmetrics import Metric, SumMetric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
)

LOCAL: dict[str, Any] = {"sync_on_compute": False, "compute_with_cache": False}
"""Options of every metric: `SplitMetrics` synchronizes them."""


class PerClassCounts(Metric):
    """Targets, predictions and correct predictions of each class.

    Args:
        num_classes: K.
    """

    full_state_update = False

    def __init__(self, num_classes: int, **options: Any) -> None:
        super().__init__(**options)
        self.num_targets_K: Tensor
        self.num_predicted_K: Tensor
        self.num_correct_K: Tensor
        for name in ("num_targets_K", "num_predicted_K", "num_correct_K"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.int64), "sum")

    def update(self, logits_NK: Tensor, target_N: Tensor) -> None:
        """Count one batch."""
        predicted_N = logits_NK.argmax(1)
        correct_N = (predicted_N == target_N).long()
        # index_add_ of integers gives the same sums in any order.
        self.num_targets_K.index_add_(0, target_N, torch.ones_like(target_N))
        self.num_predicted_K.index_add_(0, predicted_N, torch.ones_like(target_N))
        self.num_correct_K.index_add_(0, target_N, correct_N)

    def compute(self) -> dict[str, Tensor]:
        """Return precision, recall and F1 of each class, (K,); recall is NaN where there is no target."""
        targets_K, predicted_K = self.num_targets_K.double(), self.num_predicted_K.double()
        correct_K = self.num_correct_K.double()
        return {
            "precision": (correct_K / predicted_K.clamp(min=1)).float(),
            "recall": (correct_K / targets_K).float(),
            "f1": (2 * correct_K / (targets_K + predicted_K).clamp(min=1)).float(),
        }


class CalibrationError(MulticlassCalibrationError):
    """Expected calibration error of logits.

    torchmetrics takes a batch of numbers from 0 to 1 for probabilities, even where they are logits.
    """

    def update(self, logits_NK: Tensor, target_N: Tensor) -> None:
        """Count one batch."""
        super().update(logits_NK.float().softmax(1), target_N)


class SplitMetrics(nn.Module):
    """Base of the metrics of a split: the loss, and what is summed over the processes.

    Args:
        metrics: Name of an attribute to the metric, all but the loss.
        is_persistent: Whether checkpoints hold the counts, so that an epoch can be resumed.
    """

    score_name: ClassVar[str]
    """The metric by which the best weights are chosen, higher is better."""

    def __init__(self, metrics: Mapping[str, Metric], *, is_persistent: bool) -> None:
        super().__init__()
        # MPS has no float64.
        dtype = torch.float32 if torch.backends.mps.is_available() else torch.float64
        # A sum, because MeanMetric ignores the weights of the batches unless it looks for NaN in each of them, which
        # synchronizes the GPU; and a NaN must show.
        self.loss_sum = SumMetric(nan_strategy="disable", **LOCAL).set_dtype(dtype)
        for name, metric in metrics.items():
            self.add_module(name, metric)
        for metric in self._metrics():
            metric.persistent(is_persistent)
        self.update_called = False
        """Whether there is something to compute: a batch was counted, here or before the run was resumed."""
        self.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]
            lambda metrics, _: setattr(metrics, "update_called", is_persistent)
        )

    def update(self, logits_NK: Tensor, target: Tensor, loss: Tensor) -> None:
        """Count one batch.

        Args:
            logits_NK: Of the network.
            target: True classes: their indices (N,), or whether each applies (N, K).
            loss: Mean of the batch.
        """
        self.update_called = True
        self.loss_sum.update(loss.detach() * len(target))
        for metric in self._metrics():
            if metric is not self.loss_sum:
                metric.update(*self._inputs(logits_NK, target))

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics of all processes together, which must all call it."""
        with self._synchronized():
            return self._values()

    def compute_per_class(self) -> dict[str, Tensor]:
        """Return num_images and the metrics of each class, (K,); all processes must call it."""
        with self._synchronized():
            return self._per_class()

    def local_means(self) -> dict[str, float]:
        """Return loss and accuracy of this process so far, for the progress bar."""
        raise NotImplementedError

    def num_images(self) -> int:
        """Return the number of images that all processes have counted; all must call it."""
        with self._synchronized():
            return int(self._num_images())

    def summed(self, prefix: str) -> dict[str, Tensor]:
        """Return the persistent counts of all processes together, which must all call it.

        Args:
            prefix: Put before each name.
        """
        with self._synchronized():
            return {name: tensor.clone() for name, tensor in self.state_dict(prefix=prefix).items()}

    def reset(self) -> None:
        """Count anew."""
        self.clear()
        self.update_called = False

    def clear(self) -> None:
        """Set the counts to zero, because another process holds those before the run was resumed."""
        for metric in self._metrics():
            metric.reset()

    def _inputs(self, logits_NK: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return logits_NK, target

    def _values(self) -> dict[str, Tensor]:
        raise NotImplementedError

    def _per_class(self) -> dict[str, Tensor]:
        raise NotImplementedError

    def _num_images(self) -> Tensor:
        raise NotImplementedError

    def _loss(self) -> Tensor:
        loss: Tensor = self.loss_sum.compute() / self._num_images()
        return loss.float()

    def _metrics(self) -> list[Metric]:
        return [metric for metric in self.children() if isinstance(metric, Metric)]

    @contextlib.contextmanager
    def _synchronized(self) -> Iterator[None]:
        """Let the metrics hold the sums of all processes."""
        with contextlib.ExitStack() as stack:
            for metric in self._metrics():
                stack.enter_context(metric.sync_context())
            stack.enter_context(without_warning())
            yield


class ClassificationMetrics(SplitMetrics):
    """Loss, top-1 and top-5 accuracy, and the mean of the classes' accuracies (`macro`).

    Args:
        num_classes: K.
        is_persistent: Whether checkpoints hold the counts, so that an epoch can be resumed.
        is_detailed: Whether to measure macro F1, calibration error and the confusion table as well.
    """

    score_name = "top1"

    def __init__(self, num_classes: int, *, is_persistent: bool = False, is_detailed: bool = False) -> None:
        options: dict[str, Any] = {"average": "micro", "validate_args": False} | LOCAL
        metrics: dict[str, Metric] = {
            "top1": MulticlassAccuracy(num_classes, **options),
            "top5": MulticlassAccuracy(num_classes, top_k=min(5, num_classes), **options),
            "per_class": PerClassCounts(num_classes, **LOCAL),
        }
        if is_detailed:
            metrics["calibration_error"] = CalibrationError(num_classes, validate_args=False, **LOCAL)
            metrics["confusion"] = MulticlassConfusionMatrix(num_classes, validate_args=False, **LOCAL)
        super().__init__(metrics, is_persistent=is_persistent)
        self.top1: MulticlassAccuracy
        self.top5: MulticlassAccuracy
        self.per_class: PerClassCounts
        self._is_detailed = is_detailed

    def local_means(self) -> dict[str, float]:
        """Return loss and top1 of this process so far, for the progress bar."""
        with without_warning():
            return {"loss": float(self._loss()), "top1": float(self.top1.compute())}

    def compute_confusion(self) -> Tensor:
        """Return the confusion table (K, K); all processes must call it."""
        confusion = self.get_submodule("confusion")
        with self._synchronized():
            confusion_KK: Tensor = confusion.compute()  # type: ignore[operator]
            return confusion_KK.clone()

    def _values(self) -> dict[str, Tensor]:
        # Before `per_class.compute()`, which ends the synchronization of that metric: torchmetrics' own context inside
        # `compute` sets the counts back to those of this process.
        loss = self._loss()
        per_class = self.per_class.compute()
        recall_K = per_class["recall"]
        has_target_K = ~recall_K.isnan()
        values = {
            "loss": loss,
            "top1": self.top1.compute(),
            "top5": self.top5.compute(),
            "macro": recall_K[has_target_K].mean(),
        }
        if self._is_detailed:
            values["macro_f1"] = per_class["f1"][has_target_K].mean()
            values["calibration_error"] = self.get_submodule("calibration_error").compute()  # type: ignore[operator]
        return values

    def _per_class(self) -> dict[str, Tensor]:
        """Return num_images, precision, recall and f1 of each class."""
        return {"num_images": self.per_class.num_targets_K.clone(), **self.per_class.compute()}

    def _num_images(self) -> Tensor:
        return self.per_class.num_targets_K.sum()


@contextlib.contextmanager
def without_warning() -> Iterator[None]:
    """Silence torchmetrics' warnings of counts that come from a checkpoint, and of classes without an image."""
    with warnings.catch_warnings():
        for message in (".*was called before the ``update`` method.*", "No positive samples found in target.*"):
            warnings.filterwarnings("ignore", message=message)
        yield
