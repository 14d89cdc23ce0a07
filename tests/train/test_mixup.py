"""MixUp and CutMix blend targets with images, repeatably for a seed."""

import pytest
import torch

from eca_hub.errors import InvalidConfig
from eca_hub.train.mixup import MixUpConfig, MixUpCutMix


def test_mixed_targets_add_up_to_one_and_repeat_for_the_same_seed() -> None:
    mix = MixUpCutMix(MixUpConfig(mixup_alpha=0.2, cutmix_alpha=1.0), 3)
    x, targets = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append([mix(x, targets) for _ in range(4)])
    for (x_first, target_first), (x_again, target_again) in zip(*results, strict=True):
        assert torch.equal(x_first, x_again)
        assert torch.equal(target_first, target_again)
        torch.testing.assert_close(target_first.sum(1), torch.ones(6))


@pytest.mark.parametrize("option", [{"mixup_alpha": -1.0}, {"cutmix_alpha": -1.0}, {"mix_prob": 1.5}])
def test_values_out_of_range_are_refused(option: dict[str, float]) -> None:
    with pytest.raises(InvalidConfig, match=next(iter(option))):
        MixUpConfig(**option)
