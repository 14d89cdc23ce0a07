"""What a detector is: the dataclass that Python, YAML and a package's config.json share. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from eca_hub.checks import check_count
from eca_hub.errors import InvalidConfig, UnknownName
from eca_hub.models.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    check_attention,
    check_bit_depth,
    check_labels,
    check_normalization,
    set_number,
    set_numbers,
    set_whole,
)

DetectorName = Literal["faster_rcnn", "mask_rcnn", "retinanet"]
HeadNorm = Literal["none", "group"]

DETECTORS: tuple[DetectorName, ...] = get_args(DetectorName)
MAX_SIDE_PX = 4096
_MAX_DETECTIONS = 10_000
_NUM_LEVELS = 5
_MIN_ANCHOR_PX, _MAX_ANCHOR_PX = 1.0, 16_384.0
_MIN_RATIO, _MAX_RATIO = 0.01, 100.0


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
        check_attention(self.attention, self.attention_args)
        for name in ("min_side_px", "max_side_px", "max_detections", "bit_depth"):
            set_whole(self, name, may_be_none=name == "bit_depth")
        for name in ("min_score", "nms_iou"):
            set_number(self, name)
        for name in ("anchor_sizes_px", "anchor_ratios", "mean", "std"):
            set_numbers(self, name)
        if not 32 <= self.min_side_px <= self.max_side_px <= MAX_SIDE_PX:
            raise InvalidConfig(
                f"min_side_px is {self.min_side_px} and max_side_px {self.max_side_px}; they must be 32 to "
                f"{MAX_SIDE_PX}, the first not above the second."
            )
        sizes, ratios = self.anchor_sizes_px, self.anchor_ratios
        if len(sizes) != _NUM_LEVELS or not all(_MIN_ANCHOR_PX <= size <= _MAX_ANCHOR_PX for size in sizes):
            raise InvalidConfig(
                f"anchor_sizes_px is {list(sizes)}; give {_NUM_LEVELS} sizes from {_MIN_ANCHOR_PX:g} to "
                f"{_MAX_ANCHOR_PX:g} px, one a level."
            )
        if not 1 <= len(ratios) <= 16 or not all(_MIN_RATIO <= ratio <= _MAX_RATIO for ratio in ratios):
            raise InvalidConfig(
                f"anchor_ratios is {list(ratios)}; give 1 to 16 numbers from {_MIN_RATIO} to {_MAX_RATIO:g}."
            )
        if self.head_norm not in get_args(HeadNorm) or (self.head_norm != "none" and self.detector != "retinanet"):
            raise InvalidConfig(
                f"head_norm is {self.head_norm!r} for {self.detector}; it must be none, or group for retinanet."
            )
        if not 0 <= self.min_score < 1 or not 0 < self.nms_iou <= 1:
            raise InvalidConfig(
                f"min_score is {self.min_score} and nms_iou {self.nms_iou}; they must be 0 to below 1, and above 0 to "
                "1."
            )
        check_count("max_detections", self.max_detections, most=_MAX_DETECTIONS)
        check_normalization(self.mean, self.std, 3)
        check_bit_depth(self.bit_depth)
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
        return f"{self.detector}_{self.body_name}"

    @property
    def body_name(self) -> str:
        """Such as `eca_resnet50`."""
        return self.backbone if self.attention == "none" else f"{self.attention}_{self.backbone}"
