"""What a split was answered, counted: exact for any number of processes, batches and pictures in a batch.

Shapes: N images, K classes; confusion rows are true classes, columns are answers.
"""

import torch
from torch import Tensor
from torchmetrics import Metric


class ClassificationMetrics(Metric):
    """Count answers, and derive loss, top-1, top-5 and the accuracy of each class.

    Sums, not means, are kept and added up over processes, so uneven shares weigh what they hold.

    Args:
        num_classes: K.
    """

    full_state_update = False

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.loss_sum: Tensor
        self.num_top5: Tensor
        self.confusion_KK: Tensor
        self.add_state("loss_sum", torch.zeros((), dtype=torch.float64), "sum", persistent=True)
        self.add_state("num_top5", torch.zeros((), dtype=torch.int64), "sum", persistent=True)
        self.add_state("confusion_KK", torch.zeros(num_classes, num_classes, dtype=torch.int64), "sum", persistent=True)

    def update(self, logits_NK: Tensor, target_N: Tensor, loss: Tensor) -> None:
        """Count one batch.

        Args:
            logits_NK: What the network said.
            target_N: The truth.
            loss: Mean of the batch.
        """
        num_classes = len(self.confusion_KK)
        self.loss_sum += loss.detach().double() * len(target_N)
        best_N5 = logits_NK.topk(min(5, num_classes), dim=1).indices
        self.num_top5 += (best_N5 == target_N[:, None]).sum()
        cell_N = target_N * num_classes + best_N5[:, 0]
        # index_add_ of integers gives the same sums in any order.
        self.confusion_KK.view(-1).index_add_(0, cell_N, torch.ones_like(cell_N))

    def compute(self) -> dict[str, Tensor]:
        """Return loss, top1, top5 and macro (the mean of the accuracies of the classes that occur)."""
        right_K, seen_K = self.confusion_KK.diagonal().double(), self.confusion_KK.sum(1).double()
        num_images = seen_K.sum().clamp(min=1)
        return {
            "loss": (self.loss_sum / num_images).float(),
            "top1": (right_K.sum() / num_images).float(),
            "top5": (self.num_top5 / num_images).float(),
            "macro": (right_K / seen_K)[seen_K > 0].mean().float(),
        }

    def local_means(self) -> dict[str, float]:
        """Return loss and top1 of this process so far, for a glance in between."""
        num_images = max(int(self.confusion_KK.sum()), 1)
        return {"loss": float(self.loss_sum) / num_images, "top1": float(self.confusion_KK.trace()) / num_images}

    def whole_confusion(self) -> Tensor:
        """Return the confusion of all processes together."""
        return self.summed()["confusion_KK"]

    def summed(self, prefix: str = "") -> dict[str, Tensor]:
        """Return the counts of all processes together, which must all ask for them.

        Args:
            prefix: What stands before each name.
        """
        self.sync(should_sync=self._to_sync and torch.distributed.is_initialized())
        counts = {prefix + name: getattr(self, name).clone() for name in self._defaults}
        if self._is_synced:
            self.unsync()
        return counts

    def forget(self) -> None:
        """Leave the counts so far to another process."""
        self.reset()
        # Nothing to add is not the same as nothing counted, which torchmetrics warns of.
        self._update_count = 1
