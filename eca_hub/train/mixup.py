"""MixUp and CutMix: pictures of a batch blended in pairs, and their targets with them.

Built of torchvision.transforms.v2 and run on whatever device trains. Chance is torch's, which the caller has seeded.

Shapes: N images, H height, W width, K classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import v2

from eca_hub.errors import InvalidConfig


@dataclass(frozen=True)
class MixConfig:
    """How pictures of a batch are blended."""

    mixup: float = 0.0
    """Alpha of MixUp; 0 for none."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0 for none. With both, each batch gets one of them."""
    probability: float = 1.0
    """Share of the batches that are blended."""

    def __post_init__(self) -> None:
        if self.mixup < 0 or self.cutmix < 0 or not 0 <= self.probability <= 1:
            raise InvalidConfig(
                f"mix has mixup {self.mixup}, cutmix {self.cutmix} and probability {self.probability}; the first two "
                "must be 0 or more, the last 0 to 1."
            )


class Mix:
    """Blend batches.

    Args:
        config: How.
        num_classes: K.
    """

    def __init__(self, config: MixConfig, num_classes: int) -> None:
        self._probability = config.probability
        self._ways: list[v2.Transform] = []
        if config.mixup:
            self._ways.append(v2.MixUp(alpha=config.mixup, num_classes=num_classes))
        if config.cutmix:
            self._ways.append(v2.CutMix(alpha=config.cutmix, num_classes=num_classes))

    def __call__(self, x_N3HW: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return pictures and targets: blended, (N, 3, H, W) and (N, K), or as they came."""
        if not self._ways or float(torch.rand(())) >= self._probability:
            return x_N3HW, target_N
        way = self._ways[int(torch.randint(len(self._ways), ()))]
        mixed_N3HW, target_NK = way(x_N3HW, target_N)
        return mixed_N3HW, target_NK
