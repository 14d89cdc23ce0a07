"""The names of mmdetection's Faster R-CNN, Mask R-CNN and RetinaNet with a feature pyramid, and those of torchvision.

Every tensor has a counterpart, and those of the classes are reordered: from version 2 on mmdetection numbers the
background last and has boxes for objects only; version 1, which the authors of ECA-Net used, numbers it first, as
torchvision does.

The outputs are close and not the same, so that the average precision of mmdetection is not claimed: torchvision rounds
the anchors of RetinaNet to whole pixels, applies ReLU before P7, and resizes images and crops regions in its own way.
Backbones of the style `caffe`, whose stride is in the first convolution of a block, have the names and shapes of all
others and give wrong outputs.

Shapes: K object classes, A anchors at a position.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from eca_hub.errors import CheckpointMismatch
from eca_hub.models.detector_config import DetectorName

_BACKBONE = "backbone."

_NAMES = (
    (r"neck\.lateral_convs\.(\d)\.conv", r"backbone.fpn.inner_blocks.\1.0"),
    (r"neck\.fpn_convs\.(\d)\.conv", r"backbone.fpn.layer_blocks.\1.0"),
    (r"rpn_head\.rpn_conv", "rpn.head.conv.0.0"),
    (r"rpn_head\.rpn_cls", "rpn.head.cls_logits"),
    (r"rpn_head\.rpn_reg", "rpn.head.bbox_pred"),
    (r"(?:roi_head\.)?bbox_head\.shared_fcs\.0", "roi_heads.box_head.fc6"),
    (r"(?:roi_head\.)?bbox_head\.shared_fcs\.1", "roi_heads.box_head.fc7"),
    (r"(?:roi_head\.)?bbox_head\.fc_cls", "roi_heads.box_predictor.cls_score"),
    (r"(?:roi_head\.)?bbox_head\.fc_reg", "roi_heads.box_predictor.bbox_pred"),
    (r"(?:roi_head\.)?mask_head\.convs\.(\d)\.conv", r"roi_heads.mask_head.\1.0"),
    (r"(?:roi_head\.)?mask_head\.upsample", "roi_heads.mask_predictor.conv5_mask"),
    (r"(?:roi_head\.)?mask_head\.conv_logits", "roi_heads.mask_predictor.mask_fcn_logits"),
    (r"bbox_head\.cls_convs\.(\d)\.conv", r"head.classification_head.conv.\1.0"),
    (r"bbox_head\.reg_convs\.(\d)\.conv", r"head.regression_head.conv.\1.0"),
    (r"bbox_head\.retina_cls", "head.classification_head.cls_logits"),
    (r"bbox_head\.retina_reg", "head.regression_head.bbox_reg"),
)
"""Names of mmdetection, without `.weight` and `.bias`, and those of torchvision. Version 1 has no `roi_head.`."""

_RETINANET_NAMES = {
    # RetinaNet's pyramid has three maps of the backbone; the two convolutions after them make P6 and P7.
    "backbone.fpn.layer_blocks.3.0": "backbone.fpn.extra_blocks.p6",
    "backbone.fpn.layer_blocks.4.0": "backbone.fpn.extra_blocks.p7",
}
_NUM_RETINANET_ANCHORS = 9
_CLASSES, _BOXES = "roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"
_MASKS = "roi_heads.mask_predictor.mask_fcn_logits"


def is_mmdetection(weights: Mapping[str, Tensor]) -> bool:
    """Return whether the names of a state dict are those of a detector of mmdetection."""
    return any(name.startswith("neck.") for name in weights) and any(name.startswith(_BACKBONE) for name in weights)


def backbone_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the backbone, named as in a classifier."""
    return {name.removeprefix(_BACKBONE): tensor for name, tensor in weights.items() if name.startswith(_BACKBONE)}


def translate_heads(weights: Mapping[str, Tensor], file: str) -> tuple[DetectorName, int, dict[str, Tensor]]:
    """Return kind, number of classes and the tensors behind the backbone, named and ordered as in torchvision.

    Raises:
        CheckpointMismatch: it is another detector.
    """
    is_retinanet = "bbox_head.retina_cls.weight" in weights
    named: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, tensor in weights.items():
        if name.startswith(_BACKBONE):
            continue
        module_name, _, kind = name.rpartition(".")
        renamed = next((re.sub(old, new, module_name) for old, new in _NAMES if re.fullmatch(old, module_name)), None)
        if renamed is None or kind not in ("weight", "bias"):
            unknown.append(name)
            continue
        if not tensor.ndim:
            raise CheckpointMismatch(f"{file} has one number as {name}, which is a list of numbers or a matrix.")
        named[f"{_RETINANET_NAMES.get(renamed, renamed) if is_retinanet else renamed}.{kind}"] = tensor
    if unknown:
        raise CheckpointMismatch(
            f"{file} has {len(unknown)} tensors that are in no Faster R-CNN, Mask R-CNN or RetinaNet of mmdetection: "
            f"{', '.join(unknown[:5])}.",
            hint="Other detectors cannot be converted.",
        )
    if is_retinanet:
        return "retinanet", len(weights["bbox_head.retina_cls.weight"]) // _NUM_RETINANET_ANCHORS, named
    if f"{_CLASSES}.weight" not in named or f"{_BOXES}.weight" not in named:
        raise CheckpointMismatch(f"{file} has neither bbox_head.fc_cls and fc_reg nor bbox_head.retina_cls.")
    num_classes = len(named[f"{_CLASSES}.weight"]) - 1
    _put_background_first(named, num_classes)
    return "mask_rcnn" if f"{_MASKS}.weight" in named else "faster_rcnn", num_classes, named


def _put_background_first(named: dict[str, Tensor], num_classes: int) -> None:
    """Reorder the tensors of the classes, and add what mmdetection has no background for as zeros.

    Boxes for the objects only (4K) are the mark of version 2; in version 1 the background is first already.
    """
    if len(named[f"{_BOXES}.weight"]) != 4 * num_classes:
        return
    for kind in ("weight", "bias"):
        for name, rows_of_background in ((_BOXES, 4), (_MASKS, 1)):
            if f"{name}.{kind}" in named:
                tensor = named[f"{name}.{kind}"]
                named[f"{name}.{kind}"] = torch.cat([tensor.new_zeros(rows_of_background, *tensor.shape[1:]), tensor])
        if f"{_CLASSES}.{kind}" in named:
            named[f"{_CLASSES}.{kind}"] = named[f"{_CLASSES}.{kind}"].roll(1, dims=0)
