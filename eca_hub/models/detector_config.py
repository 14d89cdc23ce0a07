"""What a detector is: the dataclass that Python, YAML and a package's config.json share. Imports no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from eca_hub.errors import InvalidConfig, UnknownName
from eca_hub.models.config import IMAGENET_MEAN, IMAGENET_STD, check_labels

DetectorName = Literal["faster_rcnn", "mask_rcnn", "retinanet"]
HeadNorm = Literal["none", "group"]

DETECTORS: tuple[DetectorName, ...] = get_args(DetectorName)
MAX_SIDE_PX = 4096
_NUM_LEVELS = 5


@dataclass(frozen=True)
class DetectorConfig:
    """Which detector, on which backbone with which attention, for which labels."""

    detector: DetectorName = "faster_rcnn"
    """`faster_rcnn` and `retinanet` find boxes, `mask_rcnn` boxes and instance masks."""
    backbone: str = "resnet50"
    """Name of the backbone: see `eca-hub models`."""
    attention: str = "eca"
    """Name of the attention inside each block of the backbone, or `none`."""
    attention_args: Mapping[str, Any] = field(default_factory=dict)
    """Options of the attention, such as `kernel_sizes: [5, 5, 5, 5]`."""
    labels: tuple[str, ...] = ()
    """Names of the object classes, without background; training takes them from the data."""
    min_side_px: int = 800
    """The shorter side of an image is resized to this, as long as the longer one stays within `max_side_px`."""
    max_side_px: int = 1333
    """The longer side is not resized beyond this."""
    anchor_sizes_px: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    """Side of the square anchor of each of the five pyramid levels, in pixels of the resized image."""
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width of the anchors at each position."""
    head_norm: HeadNorm = "none"
    """`group` puts GroupNorm into RetinaNet's head, which then learns from few images; the paper has `none`."""
    min_score: float = 0.05
    """The network gives no detection with a lower score."""
    nms_iou: float = 0.5
    """Of two boxes of one class that overlap by more than this, the one with the lower score is dropped."""
    max_detections: int = 100
    """The network gives at most this many detections for an image."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of each color, in units of 1 = white, subtracted first."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Standard deviation of each color, divided by afterwards."""
    bit_depth: int | None = None
    """Bits in use of 16-bit images, such as 12 for X-rays: see `ImageConfig.bit_depth`."""

    def __post_init__(self) -> None:
        if self.detector not in DETECTORS:
            raise UnknownName.among("detector", self.detector, DETECTORS, listing=", ".join(DETECTORS))
        if not 32 <= self.min_side_px <= self.max_side_px <= MAX_SIDE_PX:
            raise InvalidConfig(
                f"min_side_px is {self.min_side_px} and max_side_px {self.max_side_px}; they must be 32 to "
                f"{MAX_SIDE_PX}, the first not above the second."
            )
        if len(self.anchor_sizes_px) != _NUM_LEVELS or not _all_positive(self.anchor_sizes_px):
            raise InvalidConfig(
                f"anchor_sizes_px is {list(self.anchor_sizes_px)}; give {_NUM_LEVELS} sizes above 0, one a level."
            )
        if not 1 <= len(self.anchor_ratios) <= 16 or not _all_positive(self.anchor_ratios):
            raise InvalidConfig(f"anchor_ratios is {list(self.anchor_ratios)}; give 1 to 16 numbers above 0.")
        if self.head_norm not in get_args(HeadNorm) or (self.head_norm != "none" and self.detector != "retinanet"):
            raise InvalidConfig(
                f"head_norm is {self.head_norm!r} for {self.detector}; it must be none, or group for retinanet."
            )
        if not 0 <= self.min_score < 1 or not 0 < self.nms_iou <= 1 or self.max_detections < 1:
            raise InvalidConfig(
                f"min_score is {self.min_score}, nms_iou {self.nms_iou} and max_detections {self.max_detections}; they "
                "must be 0 to below 1, above 0 to 1, and at least 1."
            )
        if len(self.mean) != 3 or not all(map(math.isfinite, self.mean)):
            raise InvalidConfig(f"mean is {self.mean}; it needs three numbers.")
        if len(self.std) != 3 or not _all_positive(self.std):
            raise InvalidConfig(f"std is {self.std}; it needs three numbers above 0.")
        if self.bit_depth is not None and not 1 <= self.bit_depth <= 16:
            raise InvalidConfig(f"bit_depth is {self.bit_depth}; it must be 1 to 16.")
        check_labels(self.labels)

    @property
    def num_classes(self) -> int:
        """K, the number of object classes, background excluded."""
        return len(self.labels)

    @property
    def has_masks(self) -> bool:
        """Whether detections come with instance masks."""
        return self.detector == "mask_rcnn"

    @property
    def name(self) -> str:
        """Such as `faster_rcnn_eca_resnet50`."""
        attention = "" if self.attention == "none" else f"{self.attention}_"
        return f"{self.detector}_{attention}{self.backbone}"


def _all_positive(numbers: tuple[float, ...]) -> bool:
    return all(math.isfinite(number) and number > 0 for number in numbers)
