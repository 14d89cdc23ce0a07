"""The LightningModule of detectors: a network, its losses, average precision and its optimizer.

Batches arrive as uint8 pixels and are normalized and resized by the network itself, so training and inference share
one transform.

Shapes: N objects of an image.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from eca_hub.detector import encode_prediction, load_detector_weights
from eca_hub.errors import InvalidConfig
from eca_hub.hub.pretrained import load_pretrained
from eca_hub.hub.pull import is_local
from eca_hub.models.build import resolve_config
from eca_hub.models.detector_config import MAX_SIDE_PX, DetectorConfig, DetectorName, HeadNorm
from eca_hub.models.detectors import LAST_STRIDE_PX, backbone_config, build_detector, is_class_weight
from eca_hub.models.feature_pyramid import load_backbone, pyramid_of
from eca_hub.train.data.detection_dataset import DetectionBatch
from eca_hub.train.data.rng import derive_seed, seed_rng
from eca_hub.train.detection_metrics import AveragePrecision, DetectionLosses, IouType
from eca_hub.train.ema import EMA
from eca_hub.train.optim import OptimConfig, lr_factor
from eca_hub.train.training_module import TrainingModule

_MILESTONE_FACTOR = 0.1
_LOSSES = {
    "faster_rcnn": ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"),
    "mask_rcnn": ("loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"),
    "retinanet": ("classification", "bbox_regression"),
}


class DetectionModule(TrainingModule):
    """Train a network to find objects.

    Args:
        detector: `faster_rcnn`, `mask_rcnn` or `retinanet`.
        backbone: Name of the backbone, see `eca-hub models`; resnet50 by default.
        attention: Name of the attention inside each block of the backbone, or `none`; eca by default.
        attention_args: Options of the attention, such as `kernel_sizes: [5, 5, 5, 5]`.
        backbone_from: Classifier package whose weights the backbone starts from, `owner/name` or a folder; backbone,
            attention, mean and std are then its own.
        from_pretrained: Detector package to start from, `owner/name` or a folder; everything but the classes is then
            its own, and the last layers are new if the classes are.
        revision: Branch, tag or commit of that package.
        frozen_stages: Stages of the backbone that do not learn; 1 is the stem and the stage of stride 4.
        frozen_norms: Whether batch norms of the backbone keep their statistics.
        min_side_px: The shorter side of an image is resized to this.
        max_side_px: The longer side is not resized beyond this.
        train_min_sides_px: Further shorter sides to draw from in training; none by default.
        anchor_sizes_px: Side of the square anchor of each of the five pyramid levels.
        anchor_ratios: Height over width of the anchors at each position.
        head_norm: `group` puts GroupNorm into RetinaNet's head.
        rois_per_image: Regions of an image from which the box head of the R-CNNs learns; on a CPU, 64 instead of 512
            make a step three times as fast.
        optim: Optimizer and learning rate.
        lr_batch_size: Images in a batch of all processes that `optim.lr` is for: with other batches it is scaled in
            proportion. 0 takes it as it is.
        lr_milestones_epochs: Epochs after which the learning rate is divided by ten, such as [8, 11]; with none,
            `optim.schedule` decides.
        ema_decay: Decay of an average of the weights, which is then validated and published. 0 for none.
        channels_last: Whether channels are innermost in memory; with bf16, a step on a CPU is 1.8 times as fast.
        labels: Class names; come from the data.
        bit_depth: Bits in use of 16-bit images; comes from the data.
    """

    score_name = "AP"
    metrics_prefix: ClassVar[str] = "losses."

    def __init__(
        self,
        detector: DetectorName = "faster_rcnn",
        backbone: str | None = None,
        attention: str | None = None,
        attention_args: Mapping[str, Any] | None = None,
        backbone_from: str | None = None,
        from_pretrained: str | None = None,
        revision: str | None = None,
        frozen_stages: int = 0,
        frozen_norms: bool = False,
        min_side_px: int = 800,
        max_side_px: int = 1333,
        train_min_sides_px: Sequence[int] = (),
        anchor_sizes_px: Sequence[float] = (32.0, 64.0, 128.0, 256.0, 512.0),
        anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        head_norm: HeadNorm = "none",
        rois_per_image: int = 512,
        optim: OptimConfig = OptimConfig(lr=0.02, nesterov=False, weight_decay_norms_and_biases=True),
        lr_batch_size: int = 16,
        lr_milestones_epochs: Sequence[int] = (),
        ema_decay: float = 0.0,
        channels_last: bool = False,
        labels: Sequence[str] = (),
        bit_depth: int | None = None,
    ) -> None:
        super().__init__()
        if backbone_from and from_pretrained:
            raise InvalidConfig("model has backbone_from and from_pretrained; give one of both.")
        if (frozen_stages or frozen_norms) and not (backbone_from or from_pretrained):
            raise InvalidConfig(
                f"model has frozen_stages {frozen_stages} and frozen_norms {frozen_norms} for a backbone with random "
                "weights, which would stay random.",
                hint="Give --model.backbone_from, a classifier package, or freeze nothing.",
            )
        if not 0 <= ema_decay < 1 or lr_batch_size < 0 or any(each < 1 for each in lr_milestones_epochs):
            raise InvalidConfig(
                f"model has ema_decay {ema_decay}, lr_batch_size {lr_batch_size} and lr_milestones_epochs "
                f"{list(lr_milestones_epochs)}; they must be 0 to below 1, 0 or more, and each 1 or more."
            )
        if optim.has_scheduler_class and (lr_batch_size or lr_milestones_epochs):
            raise InvalidConfig(
                "A scheduler class sets the learning rate alone, without lr_batch_size and lr_milestones_epochs.",
                hint="Give --model.lr_batch_size 0 and no milestones.",
            )
        config = DetectorConfig(
            detector,
            backbone or DetectorConfig.backbone,
            attention or DetectorConfig.attention,
            attention_args or {},
            tuple(labels),
            min_side_px,
            max_side_px,
            tuple(map(float, anchor_sizes_px)),
            tuple(map(float, anchor_ratios)),
            head_norm,
            bit_depth=bit_depth,
        )
        start = from_pretrained or backbone_from or ""
        self.base_model = start if start and not is_local(start) else ""
        self.model, made, self.has_new_head = _start(config, backbone_from, from_pretrained, revision, rois_per_image)
        if any(not 32 <= side <= made.max_side_px for side in train_min_sides_px):
            raise InvalidConfig(
                f"train_min_sides_px is {list(train_min_sides_px)}; each must be 32 to max_side_px, {made.max_side_px}."
            )
        # The images of this run are decoded so, whatever those of the package were.
        self.config = dataclasses.replace(made, bit_depth=bit_depth)
        if start:
            _check_agrees(self.config, start, backbone, attention, attention_args)
        if from_pretrained:
            _check_own(self.config, config, from_pretrained)
        transform = self.model.get_submodule("transform")
        # In evaluation mode the last one counts.
        transform.min_size = (*train_min_sides_px, self.config.min_side_px)  # type: ignore[assignment]
        pyramid_of(self.model).freeze(frozen_stages, norms=frozen_norms)
        if channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.seed = 0
        self.optim_config = optim
        self.last_lr = optim.lr
        self.ema = EMA(self.model, ema_decay) if ema_decay else None
        self._has_frozen_norms = frozen_norms
        self._smallest_side_px = min(*train_min_sides_px, self.config.min_side_px, MAX_SIDE_PX)
        self._lr_batch_size = lr_batch_size
        self._milestones = tuple(sorted(lr_milestones_epochs))
        iou_types: list[IouType] = ["bbox", *(["segm"] if self.config.has_masks else [])]  # type: ignore[list-item]
        self.losses = DetectionLosses(_LOSSES[self.config.detector])
        self._precision = {split: AveragePrecision(iou_types) for split in ("val", "test")}
        self.train()

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Map uint8 images (3, H, W) to the boxes, labels, scores and masks of each, in pixels of that image."""
        detections: list[dict[str, Tensor]] = self.model(self._to_float(images))
        return detections

    def training_step(self, batch: DetectionBatch, batch_index: int) -> Tensor:
        """Return the loss of one batch."""
        seed_rng(derive_seed("step", self.seed, self.trainer.current_epoch, batch_index, self.global_rank), self.device)
        if not batch.images:
            # Every image of the batch is broken: nothing to learn, but each process must make a backward pass.
            return torch.stack([each.sum() for each in self.model.parameters() if each.requires_grad]).sum() * 0
        losses: dict[str, Tensor] = self.model(self._to_float(batch.images), batch.targets)
        self.losses.update(losses, len(batch.images))
        return torch.stack(list(losses.values())).sum()

    def validation_step(self, batch: DetectionBatch, batch_index: int) -> None:
        """Find the objects of one batch of the validation split."""
        self._measure(batch, "val")

    def test_step(self, batch: DetectionBatch, batch_index: int) -> None:
        """Find the objects of one batch of the test split."""
        self._measure(batch, "test")

    def predict_step(self, batch: DetectionBatch, batch_index: int) -> dict[Any, list[dict[str, Any]]]:
        """Return the predictions of each image, by its id, as a COCO results file has them."""
        return self._predictions(batch, "test")

    def configure_model(self) -> None:
        """Refuse to be sharded: the heads call parts of the network out of order."""
        if self.device_mesh is not None:
            raise InvalidConfig("Detectors cannot be trained with fsdp.", hint="Give --trainer.strategy ddp.")

    def make_schedule(self, num_steps: int, steps_per_epoch: int) -> Callable[[int], float]:
        """Divide by ten at the milestones, after the warm-up of `optim`; without milestones, follow `optim`."""
        batch_size = self.trainer.datamodule.batch_size * self.trainer.world_size  # type: ignore[attr-defined]
        batch_size *= self.trainer.accumulate_grad_batches
        scale = batch_size / self._lr_batch_size if self._lr_batch_size else 1.0
        if scale != 1 and self.trainer.is_global_zero:
            print(
                f"learning rate {self.optim_config.lr:g} is for {self._lr_batch_size} images; with {batch_size} it is "
                f"{self.optim_config.lr * scale:g} (--model.lr_batch_size 0 takes it as it is)",
                flush=True,
            )
        if not self._milestones:
            schedule = lr_factor(self.optim_config, num_steps=num_steps, steps_per_epoch=steps_per_epoch)
            return lambda step: scale * schedule(step)
        steady = dataclasses.replace(self.optim_config, schedule="constant")
        warmup = lr_factor(steady, num_steps=num_steps, steps_per_epoch=steps_per_epoch)

        def factor(step: int) -> float:
            num_passed = sum(step >= epoch * steps_per_epoch for epoch in self._milestones)
            return scale * warmup(step) * float(_MILESTONE_FACTOR**num_passed)

        return factor

    def setup(self, stage: str) -> None:
        """Check that objects come with masks where the detector has them.

        Raises:
            InvalidConfig: the package to start from has masks and the options say another detector, or the reverse.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if data.with_masks != self.config.has_masks:
            raise InvalidConfig(
                f"{self.base_model or 'The package'} is a {self.config.detector}, and model.detector says another one.",
                hint=f"Give --model.detector {self.config.detector}.",
            )

    def start_measuring(self, split: str) -> None:
        """Reset the metrics, and give them the annotations of the split."""
        self._precision[split].reset(self._split(split).ground_truth)

    def check_batch(self, num_images: int) -> None:
        """Check that the norms of the backbone can be trained with a batch of so many images.

        Raises:
            InvalidConfig: of a square image, the last norms would see a single value per channel.
        """
        if num_images == 1 and self._smallest_side_px <= LAST_STRIDE_PX and not self._has_frozen_norms:
            raise InvalidConfig(
                f"A batch of one image of {self._smallest_side_px} px has a feature map of 1 x 1, which norms cannot "
                "be trained with.",
                hint="Give --data.batch_size 2 or more, or a larger --model.min_side_px.",
            )

    def head_weights(self) -> set[str]:
        """Return the names of the weights that depend on the labels."""
        return {name for name in self.model.state_dict() if is_class_weight(name)}

    def metrics_for(self, split: str) -> Any:
        """Return the losses of `fit`, or the average precision of `val` or `test`."""
        return self.losses if split == "fit" else self._precision[split]

    def _measure(self, batch: DetectionBatch, name: str) -> None:
        for image_id, predictions in self._predictions(batch, name).items():
            self._precision[name].update(image_id, predictions)

    def _predictions(self, batch: DetectionBatch, name: str) -> dict[Any, list[dict[str, Any]]]:
        if not batch.images:
            return {}
        split = self._split(name)
        outputs = self(batch.images)
        predictions = {}
        for index, image, output in zip(batch.indices.tolist(), batch.images, outputs, strict=True):
            image_id = split.images[index].image_id
            height, width = image.shape[1:]
            predictions[image_id] = [
                {"image_id": image_id, "category_id": split.category_ids[label], **prediction}
                for label, prediction in encode_prediction(output, height, width)
            ]
        return predictions

    def _split(self, name: str) -> Any:
        return self.trainer.datamodule.split(name)  # type: ignore[attr-defined]

    def _to_float(self, images: list[Tensor]) -> list[Tensor]:
        dtype = next(self.model.parameters()).dtype
        return [image.to(dtype) / 255 for image in images]


def _check_agrees(
    config: DetectorConfig, start: str, backbone: str | None, attention: str | None, args: Mapping[str, Any] | None
) -> None:
    """Refuse a backbone or attention other than that of the package to start from, which would be passed over."""
    own_args = config.attention_args if attention in (None, config.attention) else {}
    given = DetectorConfig(
        config.detector, backbone or config.backbone, attention or config.attention, args or own_args
    )
    requested = resolve_config(backbone_config(given))
    for name, own, other in (
        ("backbone", config.backbone, requested.architecture),
        ("attention", config.attention, requested.attention),
        ("attention_args", dict(config.attention_args), dict(requested.attention_args)),
    ):
        if own != other:
            raise InvalidConfig(
                f"{start} has {name} {own}, and model.{name} is {other}.",
                hint=f"Leave model.{name} out, or start from another package.",
            )


def _check_own(own: DetectorConfig, given: DetectorConfig, start: str) -> None:
    """Refuse what is given and differs from the package to start from; a default may not have been given at all."""
    for name in ("detector", "min_side_px", "max_side_px", "anchor_sizes_px", "anchor_ratios", "head_norm"):
        value, default = getattr(given, name), getattr(DetectorConfig, name)
        if value not in (default, getattr(own, name)):
            raise InvalidConfig(
                f"{start} has {name} {getattr(own, name)}, and model.{name} is {value}.",
                hint=f"Leave model.{name} out: the weights are for that of the package.",
            )


def _start(
    config: DetectorConfig,
    backbone_from: str | None,
    from_pretrained: str | None,
    revision: str | None,
    rois_per_image: int,
) -> tuple[nn.Module, DetectorConfig, bool]:
    """Make the network with random weights, or those of a package; say whether a package's classes are others."""
    if from_pretrained:
        return load_detector_weights(from_pretrained, revision, config.labels, rois_per_image=rois_per_image)
    if not backbone_from:
        model = build_detector(config, rois_per_image=rois_per_image)
        return model, model.config, False  # type: ignore[return-value]
    classifier, source = load_pretrained(backbone_from, revision)
    if len(source.image.mean) != 3:
        raise InvalidConfig(f"The classifier {backbone_from} takes gray images; a detector needs one for RGB.")
    (red, green, blue), (red_std, green_std, blue_std) = source.image.mean, source.image.std
    config = dataclasses.replace(
        config,
        backbone=source.architecture,
        attention=source.attention,
        attention_args=dict(source.attention_args),
        mean=(red, green, blue),
        std=(red_std, green_std, blue_std),
    )
    model = build_detector(config, rois_per_image=rois_per_image)
    load_backbone(model, classifier.state_dict(), origin=backbone_from)
    return model, model.config, False  # type: ignore[return-value]
