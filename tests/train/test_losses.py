"""Losses equal torch's and timm's own, and weights of classes balance them."""

import pytest
import torch
from timm.loss import BinaryCrossEntropy
from torch import nn
from torch.nn.functional import one_hot

from eca_hub.train.losses import (
    ClassificationLoss,
    LossName,
    MultiLabelLoss,
    balanced_weights,
    distillation_loss,
    positive_weights,
)

LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 1, 2, 0, 0, 0])


def test_cross_entropy_is_that_of_torch() -> None:
    expected = nn.CrossEntropyLoss(label_smoothing=0.1)(LOGITS, TARGETS)
    torch.testing.assert_close(ClassificationLoss(label_smoothing=0.1)(LOGITS, TARGETS), expected)


def test_binary_cross_entropy_is_that_of_timm() -> None:
    expected = BinaryCrossEntropy(smoothing=0.0)(LOGITS, TARGETS)
    torch.testing.assert_close(ClassificationLoss("bce")(LOGITS, TARGETS), expected)


@pytest.mark.parametrize("name", ["cross_entropy", "bce"])
def test_blended_targets_of_one_class_are_that_class(name: LossName) -> None:
    loss = ClassificationLoss(name, 0.1)
    torch.testing.assert_close(loss(LOGITS, one_hot(TARGETS, 3).float()), loss(LOGITS, TARGETS))


@pytest.mark.parametrize("name", ["cross_entropy", "bce"])
def test_balanced_weights_let_a_rare_class_weigh_as_much_as_a_frequent_one(name: LossName) -> None:
    loss, plain = ClassificationLoss(name), ClassificationLoss(name)
    loss.class_weights_K = balanced_weights([4, 1, 1])
    by_class = [plain(LOGITS[number == TARGETS], TARGETS[number == TARGETS]) for number in range(3)]
    torch.testing.assert_close(loss(LOGITS, TARGETS), torch.stack(by_class).mean())
    assert not loss.state_dict()


SEVERAL = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 0]], dtype=torch.int8)


def test_the_loss_of_several_labels_is_that_of_torch_with_weights_of_the_positives() -> None:
    loss = MultiLabelLoss(0.1)
    loss.class_weights_K = positive_weights([2, 3, 1], 6)
    smooth = SEVERAL * 0.9 + 0.05
    expected = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0, 1.0, 5.0]))(LOGITS, smooth)
    torch.testing.assert_close(loss(LOGITS, SEVERAL), expected)
    assert not loss.state_dict()


def test_distillation_of_several_labels_is_the_sum_of_the_divergences_of_the_classes() -> None:
    teacher = LOGITS.flip(0)
    own, other = (LOGITS / 2).sigmoid(), (teacher / 2).sigmoid()
    divergence = other * (other / own).log() + (1 - other) * ((1 - other) / (1 - own)).log()
    expected = 4 * divergence.sum(1).mean()
    torch.testing.assert_close(distillation_loss(LOGITS, teacher, 2.0, is_multi_label=True), expected)
    assert float(distillation_loss(LOGITS, LOGITS, 2.0, is_multi_label=True)) == pytest.approx(0, abs=1e-6)
