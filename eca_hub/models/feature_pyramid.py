"""The feature pyramid of a detector, on the maps of a backbone with attention.

Source: Lin et al., Feature Pyramid Networks, CVPR 2017.

Shapes: N images, H height, W width.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from eca_hub.checks import is_whole
from eca_hub.errors import CheckpointMismatch, InvalidConfig

PYRAMID_CHANNELS = 256


class PyramidBackbone(nn.Module):
    """A backbone and its feature pyramid: maps a batch of images to an ordered dict of maps with 256 channels.

    Args:
        body: A network that returns the maps of all its stages, made with `features_only`.
        strides_px: The strides of the maps that the pyramid takes.
        extra_levels: Makes the levels above the last; called with the channels of the last map.
        title: Name of the backbone in messages.
    """

    def __init__(self, body: nn.Module, strides_px: Sequence[int], extra_levels: Any, title: str) -> None:
        super().__init__()
        self.body = body
        info: Any = body.feature_info
        reductions = list(info.reduction())
        if not set(strides_px) <= set(reductions):
            raise InvalidConfig(
                f"{title} has maps of stride {', '.join(map(str, reductions))} px; a detector needs "
                f"{', '.join(map(str, strides_px))}.",
                hint="Take a backbone for large images, such as resnet50 or mobilenet_v2, and attention that keeps its "
                "strides, such as eca.",
            )
        self._taken = [len(reductions) - 1 - reductions[::-1].index(stride) for stride in strides_px]
        channels = [info.channels()[index] for index in self._taken]
        self.fpn = FeaturePyramidNetwork(channels, PYRAMID_CHANNELS, extra_blocks=extra_levels(channels[-1]))
        self.out_channels = PYRAMID_CHANNELS
        self._module_names = [name.replace(".", "_") for name in info.module_name()]
        self._reductions = reductions
        self._frozen: list[nn.Module] = []
        self._has_frozen_norms = False

    def forward(self, x_N3HW: Tensor) -> dict[str, Tensor]:
        """Map (N, 3, H, W) to the levels of the pyramid, finest first."""
        maps = self.body(x_N3HW)
        levels: dict[str, Tensor] = self.fpn(OrderedDict((str(n), maps[i]) for n, i in enumerate(self._taken)))
        return levels

    def freeze(self, num_stages: int, *, norms: bool) -> None:
        """Keep early stages as they are, and the statistics of all norms.

        Args:
            num_stages: Stages that do not learn; 1 is the stem and the stage of stride 4, 0 is none.
            norms: Whether batch norms of the backbone keep their statistics; their scale and shift go on learning.

        Raises:
            InvalidConfig: the backbone has not so many stages.
        """
        if not is_whole(num_stages) or not 0 <= num_stages <= 4:
            raise InvalidConfig(f"frozen_stages is {num_stages!r}; it must be 0 to 4.")
        self._has_frozen_norms = norms
        self._frozen = []
        if num_stages:
            last = self._module_names[len(self._reductions) - 1 - self._reductions[::-1].index(2 ** (num_stages + 1))]
            children = dict(self.body.named_children())
            if last not in children:
                raise InvalidConfig("This backbone cannot be frozen by stages.", hint="Give frozen_stages 0.")
            self._frozen = list(children.values())[: list(children).index(last) + 1]
        for module in self._frozen:
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "PyramidBackbone":
        """Switch between training and evaluation; what is frozen stays in evaluation mode."""
        super().train(mode)
        if mode:
            for module in self._frozen:
                module.eval()
            for module in self.body.modules():
                if self._has_frozen_norms and isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


def pyramid_of(model: nn.Module) -> PyramidBackbone:
    """Return backbone and pyramid of a detector: the part that exports."""
    pyramid = model.get_submodule("backbone")
    assert isinstance(pyramid, PyramidBackbone)
    return pyramid


def load_backbone(model: nn.Module, weights: Mapping[str, Tensor], *, origin: str) -> None:
    """Give the backbone of a detector the weights of a classifier; the classifier's head is left out.

    Args:
        model: The detector.
        weights: The state dict of a network that `create_model` makes.
        origin: Name of the classifier in messages.

    Raises:
        CheckpointMismatch: the classifier has another architecture or other attention; nothing was loaded.
    """
    body = pyramid_of(model).body
    matched: dict[str, Tensor] = {}
    problems: list[str] = []
    for name, tensor in body.state_dict().items():
        # torchvision's MobileNetV2 keeps its blocks in `features`, which are the body here.
        weight = weights.get(name, weights.get(f"features.{name}"))
        if weight is None:
            problems.append(f"{name} is missing")
        elif weight.shape != tensor.shape:
            problems.append(f"{name} is {tuple(weight.shape)} there, {tuple(tensor.shape)} in the detector")
        else:
            matched[name] = weight
    known = {*matched, *(f"features.{name}" for name in matched)}
    # Layers after the last map: the head. Anything inside a stage that the body lacks is another architecture.
    stages = {name.partition(".")[0] for name, _ in body.named_parameters()}
    problems += [
        f"{name} is unexpected"
        for name in weights
        if name not in known and name.removeprefix("features.").partition(".")[0] in stages
    ]
    if problems:
        raise CheckpointMismatch(
            f"The classifier {origin} does not fit the backbone, {len(problems)} tensors: {'; '.join(problems[:5])}.",
            hint="Backbone, attention and kernel sizes must be the classifier's.",
        )
    body.load_state_dict(matched)


def p6_and_p7(channels: int) -> LastLevelP6P7:
    """Make the two levels above the last map, as RetinaNet has them."""
    extra = LastLevelP6P7(channels, PYRAMID_CHANNELS)
    # torchvision decides by the channels, and would take P5 where a backbone ends in 256.
    extra.use_P5 = False
    return extra
