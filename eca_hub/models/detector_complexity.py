"""Count parameters and multiply-adds of a detector on a ResNet, by the rule behind the paper's table 5.

The rule is MMDetection's of 2019, for an image of 1280 x 800: products in convolutions and linear maps, one more for
each element that a convolution adds a bias to, 2 for each element of a batch norm, 1 for each that a ReLU layer or a
pooling layer takes in; 1000 proposals go through the box head and 100 through the mask head. Trained parameters leave
out the stem and the first stage, which stay frozen.

The backbone is counted by running it on the meta device. The layers on top of it are the same in every row and are
counted in closed form; no detector is built. Source of the layers: Lin et al., Feature Pyramid Networks, CVPR
2017; Ren et al., Faster R-CNN, 2015; He et al., Mask R-CNN, 2017; Lin et al., RetinaNet, 2017; all as MMDetection 1.0
configures them (81 classes with background, RetinaNet 80).
"""

from dataclasses import dataclass

from eca_hub.models.build import build_model, count_parameters, resolve_config
from eca_hub.models.complexity import run_counted
from eca_hub.models.config import ModelConfig
from eca_hub.models.weight_init import on_meta_device

HEIGHT_PX, WIDTH_PX = 800, 1280

_WIDTH = 256
"""Channels of every pyramid level."""
_STAGE_CHANNELS = (256, 512, 1024, 2048)
_FROZEN = ("conv1.", "bn1.", "layer1.")


@dataclass(frozen=True)
class DetectorComplexity:
    """Parameters and multiply-adds of a detector, for one image."""

    trained_parameters: int
    """Parameters that are trained."""
    num_parameters: int
    """All parameters."""
    attention_parameters: int
    """Parameters of the attention in the backbone."""
    multiply_adds: int
    """By the rule of table 5."""


@dataclass(frozen=True)
class _Part:
    """Parameters and operations of one or several layers of the detector."""

    parameters: int
    ops: int

    def __add__(self, other: "_Part") -> "_Part":
        return _Part(self.parameters + other.parameters, self.ops + other.ops)


def detector_complexity(detector: str, backbone: ModelConfig) -> DetectorComplexity:
    """Count a detector on a backbone.

    Args:
        detector: `faster_rcnn`, `mask_rcnn` or `retinanet`.
        backbone: A ResNet with bottlenecks, with or without attention.
    """
    body = _count_backbone(resolve_config(backbone))
    top = _PARTS[detector]()
    return DetectorComplexity(
        trained_parameters=body.parameters - body.frozen_parameters + top.parameters,
        num_parameters=body.parameters + top.parameters,
        attention_parameters=body.attention_parameters,
        multiply_adds=body.ops + top.ops,
    )


@dataclass(frozen=True)
class _BackboneComplexity:
    parameters: int
    frozen_parameters: int
    attention_parameters: int
    ops: int


def _count_backbone(config: ModelConfig) -> _BackboneComplexity:
    """Run a backbone once for all detectors that use it."""
    key = repr(config)
    if key not in _BACKBONE_CACHE:
        with on_meta_device():
            meta_model = build_model(config, num_classes=1).eval()
            plain_model = build_model(ModelConfig(config.architecture, "none"), num_classes=1)
        meta_model.reset_classifier(0, "")  # type: ignore[operator]
        plain_model.reset_classifier(0, "")  # type: ignore[operator]
        tally = run_counted(meta_model, HEIGHT_PX, WIDTH_PX)[1]
        sizes = {name: parameter.numel() for name, parameter in meta_model.named_parameters()}
        _BACKBONE_CACHE[key] = _BackboneComplexity(
            parameters=sum(sizes.values()),
            frozen_parameters=sum(size for name, size in sizes.items() if name.startswith(_FROZEN)),
            attention_parameters=sum(sizes.values()) - count_parameters(plain_model),
            ops=(tally.convolution + tally.biased + 2 * tally.normalized + tally.activated)
            + (tally.averaged + tally.max_pooled + tally.linear),
        )
    return _BACKBONE_CACHE[key]


_BACKBONE_CACHE: dict[str, _BackboneComplexity] = {}


def _positions(level: int) -> int:
    """Positions of pyramid level P2 to P7; each has half the side of the one before, rounded up."""
    stride = int(2**level)
    return -(-HEIGHT_PX // stride) * -(-WIDTH_PX // stride)


def _conv(channels_in: int, channels_out: int, kernel: int, positions: int, *, with_relu: bool = False) -> _Part:
    """Count a convolution with bias over all positions; an activation that is a layer costs 1 an element."""
    weights = channels_in * channels_out * kernel**2
    return _Part(weights + channels_out, positions * (weights + channels_out * (2 if with_relu else 1)))


def _linear(features_in: int, features_out: int, proposals: int) -> _Part:
    return _Part((features_in + 1) * features_out, proposals * features_in * features_out)


def _sum(parts: list[_Part]) -> _Part:
    return sum(parts, _Part(0, 0))


def _pyramid(first_stage: int) -> _Part:
    """Per stage a 1x1 convolution to 256 channels and a 3x3 convolution."""
    levels = range(first_stage, 4)
    return _sum(
        [_conv(_STAGE_CHANNELS[stage], _WIDTH, 1, _positions(stage + 2)) for stage in levels]
        + [_conv(_WIDTH, _WIDTH, 3, _positions(stage + 2)) for stage in levels]
    )


def _faster_rcnn() -> _Part:
    """Three anchors a position on P2 to P6, two hidden layers for each proposal, boxes for each class."""
    positions = sum(_positions(level) for level in range(2, 7))
    proposals, hidden, classes = 1000, 1024, 81
    regions = [_conv(_WIDTH, channels_out, kernel, positions) for channels_out, kernel in _RPN]
    boxes = [
        _linear(_WIDTH * 7 * 7, hidden, proposals),
        _linear(hidden, hidden, proposals),
        _Part(0, 2 * proposals * hidden),
        _linear(hidden, classes, proposals),
        _linear(hidden, 4 * classes, proposals),
    ]
    return _pyramid(0) + _sum(regions) + _sum(boxes)


_RPN = ((_WIDTH, 3), (3, 1), (12, 1))
"""Output channels and kernel of the region proposal network's layers."""


def _mask_rcnn() -> _Part:
    """Faster R-CNN, and four convolutions on 14 x 14, one transposed to 28 x 28, and a mask for each class."""
    proposals, classes = 100, 81
    small, large = proposals * 14**2, proposals * 28**2
    masks = [_conv(_WIDTH, _WIDTH, 3, small, with_relu=True)] * 4
    # The rule counts the transposed convolution as if each output had seen the whole kernel.
    masks += [_conv(_WIDTH, _WIDTH, 2, large, with_relu=True), _conv(_WIDTH, classes, 1, large)]
    return _faster_rcnn() + _sum(masks)


def _retinanet() -> _Part:
    """P3 to P7, the last two by convolutions with stride; two towers of four convolutions, nine anchors a position."""
    positions = sum(_positions(level) for level in range(3, 8))
    extra = _conv(_STAGE_CHANNELS[-1], _WIDTH, 3, _positions(6)) + _conv(_WIDTH, _WIDTH, 3, _positions(7))
    tower = [_conv(_WIDTH, _WIDTH, 3, positions, with_relu=True)] * 8
    outputs = [_conv(_WIDTH, channels_out, 3, positions) for channels_out in (9 * 80, 9 * 4)]
    return _pyramid(1) + extra + _sum(tower) + _sum(outputs)


_PARTS = {"faster_rcnn": _faster_rcnn, "mask_rcnn": _mask_rcnn, "retinanet": _retinanet}
