"""Losses equal torch's and timm's own, and weights of classes balance them."""

import pytest
import torch
from timm.loss import BinaryCrossEntropy
from torch import nn
from torch.nn.functional import one_hot

from eca_hub.train.losses import ClassificationLoss, LossName, balanced_weights

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
