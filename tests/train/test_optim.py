"""The learning rate is a pure function of the step, and only matrices decay."""

import pytest
from torch import nn

import eca_hub
from eca_hub.errors import InvalidConfig
from eca_hub.train.optim import OptimConfig, make_optimizer, rate_factor


def test_cosine_rises_through_the_warmup_and_falls_to_zero() -> None:
    factor = rate_factor(OptimConfig(warmup_epochs=1), num_steps=100, steps_per_epoch=10)
    assert [factor(step) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert factor(10) == 1.0
    assert factor(55) == pytest.approx(0.5)
    assert factor(100) == pytest.approx(0.0)


def test_step_falls_by_ten() -> None:
    factor = rate_factor(OptimConfig(schedule="step", step_epochs=30), num_steps=1000, steps_per_epoch=10)
    assert [factor(step) for step in (0, 299, 300, 600)] == pytest.approx([1.0, 1.0, 0.1, 0.01])


def test_norms_biases_and_attention_kernels_that_are_vectors_do_not_decay() -> None:
    model = eca_hub.create_model("eca_resnet20", num_classes=3)
    optimizer = make_optimizer(OptimConfig(weight_decay=0.1), model)
    decaying = [group for group in optimizer.param_groups if group["weight_decay"] > 0]
    decayed = {id(weight) for group in decaying for weight in group["params"]}
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert id(module.weight) not in decayed
        if isinstance(module, nn.Conv2d):
            assert id(module.weight) in decayed


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
def test_every_named_optimizer_can_be_made(name: str) -> None:
    assert make_optimizer(OptimConfig(name=name), nn.Linear(2, 2)).param_groups  # type: ignore[arg-type]


def test_a_rate_that_cannot_work_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="lr -1"):
        OptimConfig(lr=-1)
