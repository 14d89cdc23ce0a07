"""Metrics of several labels an image equal torchmetrics' own on all images at once, for any batches."""

import torch
from torch import Tensor, nn
from torchmetrics.classification import (
    MultilabelAveragePrecision,
    MultilabelF1Score,
    MultilabelPrecision,
    MultilabelRecall,
)

from eca_hub.train.multilabel_metrics import MultiLabelMetrics

LOGITS = torch.randn(101, 5, generator=torch.Generator().manual_seed(0))
TARGETS = (torch.rand(101, 5, generator=torch.Generator().manual_seed(1)) < 0.3).to(torch.int8)


def count(metrics: MultiLabelMetrics, logits: Tensor, targets: Tensor) -> MultiLabelMetrics:
    for part in torch.split(torch.arange(len(targets)), [64, 1, 36]):
        loss = nn.functional.binary_cross_entropy_with_logits(logits[part], targets[part].float())
        metrics.update(logits[part], targets[part], loss)
    return metrics


def test_metrics_do_not_depend_on_the_batches() -> None:
    values = count(MultiLabelMetrics(5), LOGITS, TARGETS).compute()
    expected = {
        "mAP": MultilabelAveragePrecision(5, average="macro"),
        "macro_f1": MultilabelF1Score(5, average="macro"),
        "micro_f1": MultilabelF1Score(5, average="micro"),
    }
    loss = nn.functional.binary_cross_entropy_with_logits(LOGITS, TARGETS.float())
    torch.testing.assert_close(values.pop("loss"), loss)
    scores = LOGITS.sigmoid()
    torch.testing.assert_close(values, {name: metric(scores, TARGETS.long()) for name, metric in expected.items()})


def test_each_class_has_its_metrics() -> None:
    metrics = count(MultiLabelMetrics(5), LOGITS, TARGETS)
    values = metrics.compute_per_class()
    assert torch.equal(values.pop("num_images"), TARGETS.long().sum(0))
    expected = {
        "precision": MultilabelPrecision,
        "recall": MultilabelRecall,
        "f1": MultilabelF1Score,
        "average_precision": MultilabelAveragePrecision,
    }
    scores = LOGITS.sigmoid()
    torch.testing.assert_close(
        values, {name: metric(5, average="none")(scores, TARGETS.long()) for name, metric in expected.items()}
    )
    assert metrics.num_images() == 101


def test_a_class_that_does_not_occur_is_left_out_of_the_means() -> None:
    targets = TARGETS.clone()
    targets[:, 2] = 0
    metrics = count(MultiLabelMetrics(5), LOGITS, targets)
    others = [0, 1, 3, 4]
    expected = MultilabelAveragePrecision(4, average="macro")(LOGITS[:, others].sigmoid(), targets[:, others].long())
    torch.testing.assert_close(metrics.compute()["mAP"], expected)
    per_class = metrics.compute_per_class()
    assert bool(per_class["average_precision"][2].isnan())
    assert bool(per_class["recall"][2].isnan())


def test_logits_between_0_and_1_are_not_taken_for_probabilities() -> None:
    logits, targets = torch.full((4, 2), 0.2), torch.ones(4, 2, dtype=torch.int8)
    metrics = MultiLabelMetrics(2)
    metrics.update(logits, targets, torch.tensor(0.0))
    assert float(metrics.compute()["micro_f1"]) == 1.0


def test_without_an_image_there_is_no_mean_average_precision() -> None:
    assert bool(MultiLabelMetrics(3).compute()["mAP"].isnan())


def test_the_counts_of_training_are_saved_and_continued() -> None:
    first, second = (
        MultiLabelMetrics(5, is_persistent=True, has_map=False),
        MultiLabelMetrics(5, is_persistent=True, has_map=False),
    )
    count(first, LOGITS, TARGETS)
    second.load_state_dict(first.summed(""))
    assert second.update_called
    assert second.compute() == first.compute()
    assert second.local_means().keys() == {"loss", "F1"}
