"""Losses of classification.

Shapes: N images, K classes.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, kl_div, logsigmoid, one_hot

LossName = Literal["cross_entropy", "bce"]
ClassWeights = Literal["none", "balanced"]


class ClassificationLoss(nn.Module):
    """Cross entropy, or binary cross entropy of each class against the others.

    Args:
        name: `cross_entropy`, or `bce` as in "ResNet strikes back" (Wightman et al. 2021).
        label_smoothing: Share of each target that is spread over all classes.
    """

    def __init__(self, name: LossName = "cross_entropy", label_smoothing: float = 0.0) -> None:
        super().__init__()
        self._name = name
        self._label_smoothing = label_smoothing
        self.class_weights_K: Tensor | None = None
        """Weight of each class; set before training, and no part of a checkpoint."""

    def forward(self, logits_NK: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss.

        Args:
            logits_NK: Of the network.
            target: Class indices (N,), or the share of each class (N, K) after MixUp.
        """
        weights_K = None if self.class_weights_K is None else self.class_weights_K.to(logits_NK)
        if self._name == "cross_entropy":
            return cross_entropy(logits_NK, target, weights_K, label_smoothing=self._label_smoothing)
        num_classes = logits_NK.shape[1]
        share_NK = one_hot(target, num_classes) if target.ndim == 1 else target
        share_NK = share_NK.to(logits_NK.dtype)
        if weights_K is not None:
            # Each term has the weight of the class of its image, as in cross_entropy.
            weights_N1 = share_NK @ weights_K[:, None]
            weights_NK = (weights_N1 / weights_N1.mean()).expand_as(share_NK)
        else:
            weights_NK = None
        share_NK = share_NK * (1 - self._label_smoothing) + self._label_smoothing / num_classes
        return binary_cross_entropy_with_logits(logits_NK, share_NK, weights_NK)


class MultiLabelLoss(nn.Module):
    """Binary cross entropy of each class, the mean over images and classes.

    Args:
        label_smoothing: Share s of each target that becomes 1/2: 0 and 1 become s/2 and 1 - s/2.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self._label_smoothing = label_smoothing
        self.class_weights_K: Tensor | None = None
        """Weight of the positive images of each class; set before training, and no part of a checkpoint."""

    def forward(self, logits_NK: Tensor, target_NK: Tensor) -> Tensor:
        """Return the mean loss.

        Args:
            logits_NK: Of the network.
            target_NK: Whether each class applies (N, K), 0 to 1.
        """
        weights_K = None if self.class_weights_K is None else self.class_weights_K.to(logits_NK)
        share_NK = target_NK.to(logits_NK.dtype) * (1 - self._label_smoothing) + self._label_smoothing / 2
        return binary_cross_entropy_with_logits(logits_NK, share_NK, pos_weight=weights_K)


def distillation_loss(student_NK: Tensor, teacher_NK: Tensor, temperature: float, *, is_multi_label: bool) -> Tensor:
    """Return T^2 KL(teacher || student) of the softened outputs, the mean over the images (Hinton et al. 2015).

    Args:
        student_NK: Logits.
        teacher_NK: Logits.
        temperature: T, by which the logits are divided.
        is_multi_label: Whether each class has a distribution of its own (sigmoid), whose divergences are summed.
    """
    student_NK, teacher_NK = student_NK / temperature, teacher_NK / temperature
    if not is_multi_label:
        distance = kl_div(student_NK.log_softmax(1), teacher_NK.log_softmax(1), reduction="batchmean", log_target=True)
        return temperature**2 * distance
    distances = [
        kl_div(logsigmoid(sign * student_NK), logsigmoid(sign * teacher_NK), reduction="batchmean", log_target=True)
        for sign in (1, -1)
    ]
    return temperature**2 * torch.stack(distances).sum()


def positive_weights(class_counts: Sequence[int], num_images: int) -> Tensor:
    """Return the images without a class for each image with it, so that both weigh the same: (K,)."""
    counts_K = torch.tensor(class_counts, dtype=torch.float32)
    return (num_images - counts_K).clamp(min=1) / counts_K


def balanced_weights(class_counts: Sequence[int]) -> Tensor:
    """Return weights inverse to the number of images of each class, whose mean over the images is 1: (K,)."""
    counts_K = torch.tensor(class_counts, dtype=torch.float32)
    weights_K: Tensor = counts_K.sum() / (len(counts_K) * counts_K)
    return weights_K
