"""Faster R-CNN, Mask R-CNN and RetinaNet on a backbone with attention and a feature pyramid.

The parts are torchvision's; the backbone is ours. Differences to torchvision's own models: object classes are numbered
from 0 in targets and outputs of all three (torchvision counts the background in two of them), RetinaNet takes P6 from
the last stage of the backbone as the paper's code does, and masks are returned as the 28 x 28 map of each box: see
`eca_hub.images.masks`.

Source of the layers: Lin et al., Feature Pyramid Networks, CVPR 2017; Ren et al., Faster R-CNN, 2015; He et al., Mask
R-CNN, 2017; Lin et al., RetinaNet, 2017.

Shapes: N images or boxes, H height, W width.
"""

import copy
import dataclasses
import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.transform import (
    GeneralizedRCNNTransform,
    _resize_image_and_masks,
    resize_boxes,
)
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import MultiScaleRoIAlign, initLevelMapper

from eca_hub.checks import check_count
from eca_hub.errors import InvalidConfig
from eca_hub.models.build import build_model, resolve_config
from eca_hub.models.config import MAX_CLASSES, ModelConfig, check_attention
from eca_hub.models.detector_config import DetectorConfig, DetectorName
from eca_hub.models.feature_pyramid import PYRAMID_CHANNELS, PyramidBackbone, p6_and_p7, pyramid_of

_OCTAVE_SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
"""RetinaNet has three anchors of each ratio at a position."""
_FIRST_STRIDE_PX = {"faster_rcnn": 4, "mask_rcnn": 4, "retinanet": 8}
LAST_STRIDE_PX = 32
_CLASS_LAYERS = ("box_predictor.", "mask_fcn_logits.", "classification_head.cls_logits.")


class InputTransform(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision has no types
    """Normalize, resize and pad images; bring boxes back to input pixels and leave masks as small maps of their box.

    torchvision pastes all masks of an image into floats of its full size: 100 masks of 50 megapixels take 20 GB.
    """

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Resize the boxes of each image to its original size."""
        if not self.training:
            for each, shape, original in zip(result, image_shapes, original_image_sizes, strict=True):
                each["boxes"] = resize_boxes(each["boxes"], shape, original)
        return result

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Resize an image and its target, in training to a side drawn from `min_size`; a side has at least 1 px."""
        size = _size_of_thin(image, self.max_size)
        if size is None:
            resized: tuple[Tensor, dict[str, Tensor] | None] = super().resize(image, target)
            return resized
        fixed = copy.copy(self)
        fixed.fixed_size = size
        return GeneralizedRCNNTransform.resize(fixed, image, target)  # type: ignore[no-any-return]

    def prepare(self, channels_HW: Iterable[Tensor]) -> Tensor:
        """Normalize and resize one image as in evaluation, a channel at a time to spare memory.

        Args:
            channels_HW: uint8, the colors of the image, red first.

        Returns:
            float32 (3, h, w), what `forward` makes of the same image as float (3, H, W) from 0 to 1.
        """
        side_px, limit_px = self.min_size[-1], self.max_size
        resized_1hw = []
        for channel_HW, mean, std in zip(channels_HW, self.image_mean, self.image_std, strict=True):
            channel_1HW = channel_HW[None].float().div_(255).sub_(mean).div_(std)
            size = _size_of_thin(channel_1HW, limit_px)
            resized_1hw.append(_resize_image_and_masks(channel_1HW, side_px, limit_px, fixed_size=size)[0])
        return torch.cat(resized_1hw)


def _size_of_thin(image: Tensor, limit_px: int) -> tuple[int, int] | None:
    """Return width and height to resize to, if the limit of the longer side would leave the shorter one 0 px."""
    height, width = image.shape[-2:]
    if math.floor(min(height, width) * (limit_px / max(height, width))) >= 1:
        return None
    return (limit_px, 1) if width > height else (1, limit_px)


class _PreparedInput(InputTransform):
    """Only pads: for images that `InputTransform.prepare` has made."""

    def normalize(self, image: Tensor) -> Tensor:
        """Return the image."""
        return image

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return image and target."""
        return image, target


class _ZeroBasedLabels(nn.Module):
    """Mixin: number the object classes from 0, for a torchvision model whose class 0 is the background."""

    config: DetectorConfig

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Return the losses in training mode, and the detections of each image in evaluation mode.

        Args:
            images: float (3, H, W), 0 to 1.
            targets: `boxes` (N, 4) as x1, y1, x2, y2 in pixels, `labels` (N,) from 0, and for masks `masks` (N, H, W).
        """
        if targets is not None:
            targets = [{**target, "labels": target["labels"] + 1} for target in targets]
        outputs = super().forward(images, targets)
        if not self.training:
            for each in outputs:
                each["labels"] = each["labels"] - 1
        return outputs


class ZeroBasedFasterRCNN(_ZeroBasedLabels, FasterRCNN):  # type: ignore[misc]
    """torchvision's Faster R-CNN with object classes from 0."""


class ZeroBasedMaskRCNN(_ZeroBasedLabels, MaskRCNN):  # type: ignore[misc]
    """torchvision's Mask R-CNN with object classes from 0; masks are returned as (N, 1, 28, 28)."""


def create_detector(
    detector: DetectorName = "faster_rcnn",
    *,
    backbone: str = "resnet50",
    attention: str = "eca",
    num_classes: int,
    rois_per_image: int = 512,
    frozen_stages: int = 0,
    frozen_norms: bool = False,
    **options: Any,
) -> nn.Module:
    """Make a detector with fresh weights.

    In training mode `model(images, targets)` returns a dict of losses; in evaluation mode `model(images)` returns a
    dict of `boxes`, `labels`, `scores` (and `masks`) for each image, in pixels of that image. `model.config` says what
    it is.

    Args:
        detector: `faster_rcnn`, `mask_rcnn` or `retinanet`.
        backbone: Any network of `eca-hub models` with maps of stride 4 to 32 px.
        attention: Name of a method, or `none`.
        num_classes: K, the number of object classes, background excluded.
        rois_per_image: Regions of an image from which the box head of the R-CNNs learns.
        frozen_stages: Stages of the backbone that do not learn; 1 is the stem and the stage of stride 4.
        frozen_norms: Whether batch norms of the backbone keep their statistics.
        options: Further fields of `DetectorConfig`, such as `min_side_px` or `anchor_sizes_px`; what is none of them is
            an option of the attention, such as `kernel_sizes=(5, 5, 5, 5)`.

    Raises:
        UnknownName: no such detector, backbone or attention; carries the closest names.
        InvalidConfig: an option cannot work, or the backbone lacks a map that the pyramid needs.
    """
    names = {field.name for field in dataclasses.fields(DetectorConfig)}
    attention_args = options.pop("attention_args", {})
    check_attention(attention, attention_args)
    further = {name: value for name, value in options.items() if name not in names}
    if twice := ", ".join(sorted(further.keys() & attention_args)):
        raise InvalidConfig(f"Given twice, once in attention_args: {twice}.")
    config = DetectorConfig(
        detector,
        backbone=backbone,
        attention=attention,
        attention_args={**attention_args, **further},
        **{name: value for name, value in options.items() if name in names},
    )
    model = build_detector(config, num_classes=num_classes, rois_per_image=rois_per_image)
    pyramid_of(model).freeze(frozen_stages, norms=frozen_norms)
    return model


def build_detector(config: DetectorConfig, *, num_classes: int | None = None, rois_per_image: int = 512) -> nn.Module:
    """Make the detector that a configuration describes, with as many classes as it has labels."""
    resolved = resolve_detector_config(config)
    num_classes = resolved.num_classes if num_classes is None else num_classes
    check_count("num_classes", num_classes, most=MAX_CLASSES)
    check_count("rois_per_image", rois_per_image)
    body = build_model(backbone_config(resolved), num_classes=1, features_only=True)
    first = _FIRST_STRIDE_PX[resolved.detector]
    strides_px = [stride for stride in (4, 8, 16, LAST_STRIDE_PX) if stride >= first]
    shared: dict[str, Any] = {
        "min_size": resolved.min_side_px,
        "max_size": resolved.max_side_px,
        "image_mean": list(resolved.mean),
        "image_std": list(resolved.std),
    }
    if resolved.detector == "retinanet":
        pyramid = PyramidBackbone(body, strides_px, p6_and_p7, resolved.body_name)
        anchors = _anchors(resolved)
        model: nn.Module = RetinaNet(
            pyramid,
            num_classes,
            anchor_generator=anchors,
            head=RetinaNetHead(
                PYRAMID_CHANNELS,
                anchors.num_anchors_per_location()[0],
                num_classes,
                norm_layer=partial(nn.GroupNorm, 32) if resolved.head_norm == "group" else None,
            ),
            score_thresh=resolved.min_score,
            nms_thresh=resolved.nms_iou,
            detections_per_img=resolved.max_detections,
            **shared,
        )
    else:
        made = ZeroBasedMaskRCNN if resolved.has_masks else ZeroBasedFasterRCNN
        model = made(
            PyramidBackbone(body, strides_px, lambda channels: LastLevelMaxPool(), resolved.body_name),
            num_classes + 1,
            rpn_anchor_generator=_anchors(resolved),
            box_score_thresh=resolved.min_score,
            box_nms_thresh=resolved.nms_iou,
            box_detections_per_img=resolved.max_detections,
            box_batch_size_per_image=rois_per_image,
            **shared,
        )
        _fix_scales(model, strides_px)
    transform = InputTransform(resolved.min_side_px, resolved.max_side_px, list(resolved.mean), list(resolved.std))
    model.transform = transform
    model.config = resolved  # type: ignore[assignment]
    return model


def resolve_detector_config(config: DetectorConfig) -> DetectorConfig:
    """Write down what weights depend on: one backbone name, one attention name and every option of the attention."""
    resolved = resolve_config(backbone_config(config))
    if "map_sizes_px" in resolved.attention_args:
        raise InvalidConfig(
            f"Attention {resolved.attention!r} has position codes for one map size, but detectors take any size.",
            hint="Take eca, se, cbam or another method.",
        )
    return dataclasses.replace(
        config,
        backbone=resolved.architecture,
        attention=resolved.attention,
        attention_args=dict(resolved.attention_args),
    )


def for_prepared_images(model: nn.Module) -> nn.Module:
    """Return the same detector, with the same weights, for images that its transform has prepared."""
    config: Any = model.config
    prepared = copy.copy(model)
    transform = _PreparedInput(config.min_side_px, config.max_side_px, list(config.mean), list(config.std)).eval()
    prepared._modules = {**model._modules, "transform": transform}
    return prepared


def prediction_heads(model: nn.Module) -> list[nn.Module]:
    """Return the modules whose outputs are scores and boxes: of RetinaNet one, of the others those of both stages."""
    parts: Any = model
    return [parts.head] if parts.config.detector == "retinanet" else [parts.rpn.head, parts.roi_heads.box_predictor]


def backbone_config(config: DetectorConfig) -> ModelConfig:
    """Return the configuration of the backbone alone."""
    return ModelConfig(config.backbone, config.attention, config.attention_args)


def is_class_weight(name: str) -> bool:
    """Whether the name of a detector's weight is that of a layer that has an output for each class."""
    return any(part in name for part in _CLASS_LAYERS)


def _fix_scales(model: nn.Module, strides_px: Sequence[int]) -> None:
    """Tell the regions' pooling the strides of its maps.

    torchvision would guess them from the first batch and keep them, and of small images it guesses wrong: what is found
    in an image, and what a resumed run learns, would then depend on which batch came first.
    """
    for pool in model.modules():
        if isinstance(pool, MultiScaleRoIAlign):
            pool.scales = [1 / stride for stride in strides_px]
            first, last = (int(math.log2(stride)) for stride in (strides_px[0], strides_px[-1]))
            pool.map_levels = initLevelMapper(first, last, pool.canonical_scale, pool.canonical_level)


def _anchors(config: DetectorConfig) -> AnchorGenerator:
    scales = _OCTAVE_SCALES if config.detector == "retinanet" else (1.0,)
    # torchvision truncates RetinaNet's intermediate sizes to whole pixels; so do we, to load its weights.
    sizes = tuple(
        tuple(int(size * scale) if scale > 1 else size for scale in scales) for size in config.anchor_sizes_px
    )
    return AnchorGenerator(sizes, (tuple(config.anchor_ratios),) * len(sizes))
