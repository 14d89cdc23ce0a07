"""MixUp and CutMix: blend the images of a batch in pairs, and their targets with them.

Uses torchvision.transforms.v2, on the device that trains. Random numbers come from torch's generator, which is seeded
before every step.

Shapes: N images, H height, W width, K classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import v2

from eca_hub.errors import InvalidConfig


@dataclass(frozen=True)
class MixUpConfig:
    """MixUp and CutMix."""

    mixup_alpha: float = 0.0
    """Alpha of MixUp; 0 for none."""
    cutmix_alpha: float = 0.0
    """Alpha of CutMix; 0 for none. With both, each batch gets one of them."""
    mix_prob: float = 1.0
    """Probability that a batch is blended."""

    def __post_init__(self) -> None:
        if self.mixup_alpha < 0 or self.cutmix_alpha < 0 or not 0 <= self.mix_prob <= 1:
            raise InvalidConfig(
                f"mix has mixup_alpha {self.mixup_alpha}, cutmix_alpha {self.cutmix_alpha} and mix_prob "
                f"{self.mix_prob}; the first two must be 0 or more, the last 0 to 1."
            )


class MixUpCutMix:
    """Blend batches.

    Args:
        config: Which transforms, and how often.
        num_classes: K.
    """

    def __init__(self, config: MixUpConfig, num_classes: int) -> None:
        self._mix_prob = config.mix_prob
        self._transforms: list[v2.Transform] = []
        if config.mixup_alpha:
            self._transforms.append(v2.MixUp(alpha=config.mixup_alpha, num_classes=num_classes))
        if config.cutmix_alpha:
            self._transforms.append(v2.CutMix(alpha=config.cutmix_alpha, num_classes=num_classes))

    def __call__(self, x_N3HW: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (N, 3, H, W) and targets: blended, of shape (N, K), or unchanged."""
        if not self._transforms or float(torch.rand(())) >= self._mix_prob:
            return x_N3HW, target_N
        transform = self._transforms[int(torch.randint(len(self._transforms), ()))]
        mixed_N3HW, target_NK = transform(x_N3HW, target_N)
        return mixed_N3HW, target_NK
