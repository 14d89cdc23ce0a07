"""Metrics equal torchmetrics' own on all images at once, for any batches."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from eca_hub.train.metrics import ClassificationMetrics


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(101, 7, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def targets() -> Tensor:
    return torch.randint(7, (101,), generator=torch.Generator().manual_seed(1))


def count(metrics: ClassificationMetrics, logits: Tensor, targets: Tensor) -> ClassificationMetrics:
    for part in torch.split(torch.arange(len(targets)), [64, 1, 36]):
        loss = nn.functional.cross_entropy(logits[part], targets[part])
        metrics.update(logits[part], targets[part], loss)
    return metrics


def test_metrics_do_not_depend_on_the_batches(logits: Tensor, targets: Tensor) -> None:
    metrics = count(ClassificationMetrics(7, is_detailed=True), logits, targets)
    expected = {
        "top1": MulticlassAccuracy(7, average="micro"),
        "top5": MulticlassAccuracy(7, average="micro", top_k=5),
        "macro": MulticlassAccuracy(7, average="macro"),
        "macro_f1": MulticlassF1Score(7, average="macro"),
        "calibration_error": MulticlassCalibrationError(7),
    }
    values = metrics.compute()
    torch.testing.assert_close(values.pop("loss"), nn.functional.cross_entropy(logits, targets))
    torch.testing.assert_close(values, {name: metric(logits, targets) for name, metric in expected.items()})
    assert torch.equal(metrics.compute_confusion(), MulticlassConfusionMatrix(7)(logits, targets))
    assert metrics.num_images() == 101


def test_the_calibration_error_of_logits_from_0_to_1_is_that_of_their_softmax() -> None:
    logits, targets = torch.rand(7, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    errors = []
    for shifted in (logits, logits - 10):
        metrics = ClassificationMetrics(3, is_detailed=True)
        metrics.update(shifted, targets, torch.tensor(1.0))
        errors.append(metrics.compute()["calibration_error"])
    torch.testing.assert_close(errors[0], errors[1])


def test_each_class_has_its_precision_recall_and_f1(logits: Tensor, targets: Tensor) -> None:
    values = count(ClassificationMetrics(7), logits, targets).compute_per_class()
    expected = {"precision": MulticlassPrecision, "recall": MulticlassRecall, "f1": MulticlassF1Score}
    assert torch.equal(values.pop("num_images"), targets.bincount(minlength=7))
    torch.testing.assert_close(
        values, {name: metric(7, average="none")(logits, targets) for name, metric in expected.items()}
    )


def test_a_class_without_images_does_not_count_in_the_mean_of_the_classes() -> None:
    metrics = ClassificationMetrics(3, is_detailed=True)
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    metrics.update(logits, torch.tensor([0, 1]), torch.tensor(1.0))
    values = metrics.compute()
    assert float(values["macro"]) == 0.5
    assert float(values["macro_f1"]) == 0.5


def test_counts_of_an_epoch_are_resumed_without_a_warning(logits: Tensor, targets: Tensor) -> None:
    before = ClassificationMetrics(7, is_persistent=True)
    before.update(logits[:64], targets[:64], nn.functional.cross_entropy(logits[:64], targets[:64]))
    after = ClassificationMetrics(7, is_persistent=True)
    after.load_state_dict({name.removeprefix("x."): value for name, value in before.summed("x.").items()})
    assert after.update_called
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert after.compute() == before.compute()
    after.update(logits[64:], targets[64:], nn.functional.cross_entropy(logits[64:], targets[64:]))
    torch.testing.assert_close(after.compute(), count(ClassificationMetrics(7), logits, targets).compute())
    after.reset()
    assert (after.update_called, after.num_images()) == (False, 0)


def test_only_the_counts_of_training_are_saved_and_none_takes_the_square_of_the_classes() -> None:
    num_classes = 21_843
    saved = ClassificationMetrics(num_classes, is_persistent=True)
    assert sum(tensor.numel() for tensor in saved.state_dict().values()) < 8 * num_classes
    assert not ClassificationMetrics(num_classes).state_dict()
    held = [buffer for metric in saved.children() for buffer in vars(metric).values() if isinstance(buffer, Tensor)]
    assert max(buffer.numel() for buffer in held) == num_classes


def test_a_loss_that_is_nan_shows() -> None:
    metrics = ClassificationMetrics(2)
    metrics.update(torch.eye(2), torch.tensor([0, 1]), torch.tensor(float("nan")))
    assert metrics.compute()["loss"].isnan()
    assert float(metrics.compute()["top1"]) == 1.0
