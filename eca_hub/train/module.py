"""The LightningModule: a network, its loss, its metrics and its optimizer.

Batches arrive as uint8 pixels and are normalised here by the same code that serves, on whatever device trains. Knows
nothing of files or hubs.

Shapes: N images, H height, W width, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics.classification import MulticlassAccuracy

from eca_hub.images import EvalTransform
from eca_hub.models.build import build_model, settle
from eca_hub.models.config import ImageConfig, ModelConfig, Stem
from eca_hub.train.optim import OptimConfig, make_optimizer, rate_factor


class ImageClassifier(LightningModule):
    """Train a network to name pictures.

    Args:
        architecture: Name of the backbone, see `eca-hub models`.
        attention: Name of the attention inside each block, or `none`.
        attention_args: Options of the attention, such as `kernel_sizes: [3, 5, 5, 7]`.
        stem: `small` keeps the picture whole up to the first block, for pictures up to 64 px.
        optim: Optimizer and learning rate.
        label_smoothing: Share of each target that is spread over all classes.
        labels: Class names; comes from the data.
        image: Preprocessing; comes from the data.
    """

    def __init__(
        self,
        architecture: str = "resnet50",
        attention: str = "eca",
        attention_args: Mapping[str, Any] | None = None,
        stem: Stem = "own",
        optim: OptimConfig = OptimConfig(),
        label_smoothing: float = 0.0,
        labels: Sequence[str] = (),
        image: ImageConfig = ImageConfig(),
    ) -> None:
        super().__init__()
        self.config = settle(ModelConfig(architecture, attention, attention_args or {}, tuple(labels), image, stem))
        self.optim_config = optim
        self.model = build_model(self.config)
        self.transform = EvalTransform(image)
        self.loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        num_classes = self.config.num_classes
        self.metrics = nn.ModuleDict(
            {f"{split}_top1": MulticlassAccuracy(num_classes, average="micro") for split in ("train", "val", "test")}
        )

    def forward(self, pixels_N3HW: Tensor) -> Tensor:
        """Map uint8 pixels (N, 3, H, W) to logits (N, K)."""
        logits_NK: Tensor = self.model(self.transform.normalize(pixels_N3HW))
        return logits_NK

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Return the loss of one batch."""
        return self._measure(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Measure one batch of the validation split."""
        self._measure(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Measure one batch of the test split."""
        self._measure(batch, "test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make the optimizer and set its rate at every step."""
        num_steps = int(self.trainer.estimated_stepping_batches)
        steps_per_epoch = max(num_steps // max(self.trainer.max_epochs or 1, 1), 1)
        optimizer = make_optimizer(self.optim_config, self.model)
        factor = rate_factor(self.optim_config, num_steps=num_steps, steps_per_epoch=steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}

    def _measure(self, batch: tuple[Tensor, Tensor], split: str) -> Tensor:
        pixels_N3HW, target_N = batch
        logits_NK = self(pixels_N3HW)
        loss: Tensor = self.loss(logits_NK, target_N)
        top1 = self.metrics[f"{split}_top1"]
        assert isinstance(top1, MulticlassAccuracy)
        top1(logits_NK.detach(), target_N)
        num_images = len(target_N)
        self.log(
            f"{split}_loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=num_images
        )
        self.log(f"{split}_top1", top1, on_step=False, on_epoch=True, prog_bar=True, batch_size=num_images)
        if split == "train":
            self.log("lr", torch.tensor(self.trainer.optimizers[0].param_groups[0]["lr"]), on_step=False, on_epoch=True)
        return loss
