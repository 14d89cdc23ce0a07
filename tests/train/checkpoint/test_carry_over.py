"""What a checkpoint keeps for a run with another configuration."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import SGD, Adadelta, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    CyclicLR,
    LambdaLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

from eca_hub.errors import InvalidConfig
from eca_hub.train.checkpoint.carry_over import carry_over, optimizer_name

HEAD = {"1.weight", "1.bias"}
LABELS = ["cat", "dog"]


def network(num_classes: int = 2, width: int = 64) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, width), nn.Linear(width, num_classes))


def sgd(model: nn.Module, **options: Any) -> Optimizer:
    return SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4} | options)


def scheduler_of(optimizer: Optimizer) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: 0.5)


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {f"model.{name}": tensor for name, tensor in model.state_dict().items()}


def checkpoint_of(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """A checkpoint after one step."""
    scheduler = scheduler_of(optimizer)
    torch.autograd.backward(model(torch.ones(2, 8)).square().sum())
    optimizer.step()
    return copy.deepcopy(
        {
            "state_dict": state_of(model),
            "ema": model.state_dict(),
            "optimizer_states": [optimizer.state_dict()],
            "optimizer_name": optimizer_name(optimizer),
            "lr_schedulers": [scheduler.state_dict()],
            "labels": LABELS,
        }
    )


def test_an_unchanged_run_keeps_everything() -> None:
    model = network()
    checkpoint = checkpoint_of(model, sgd(model))
    before = copy.deepcopy(checkpoint)
    assert carry_over(checkpoint, state_of(model), HEAD, scheduler_of(sgd(model)), LABELS) == []
    for name in ("state_dict", "ema", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(checkpoint[name], before[name], rtol=0, atol=0)


def test_changed_hyperparameters_are_used_and_the_momentum_is_kept() -> None:
    model = network()
    checkpoint = checkpoint_of(model, sgd(model))
    optimizer = sgd(model, lr=0.3, momentum=0.1, weight_decay=0.5)
    assert carry_over(checkpoint, state_of(model), HEAD, scheduler_of(optimizer), LABELS) == []
    [state] = checkpoint["optimizer_states"]
    [group] = state["param_groups"]
    assert (group["initial_lr"], group["momentum"], group["weight_decay"]) == (0.3, 0.1, 0.5)
    assert checkpoint["lr_schedulers"][0]["base_lrs"] == [0.3]
    assert len(state["state"]) == 4


def one_cycle(optimizer: Optimizer) -> LRScheduler:
    return OneCycleLR(optimizer, max_lr=0.1, total_steps=9)


def cyclic(optimizer: Optimizer) -> LRScheduler:
    return CyclicLR(optimizer, base_lr=0.01, max_lr=0.1, step_size_up=4)


@pytest.mark.filterwarnings("ignore:.*before `optimizer.step")
@pytest.mark.parametrize("schedule", [one_cycle, cyclic])
@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_a_momentum_that_the_schedule_changes_keeps_its_place_in_the_cycle(
    kind: type[Optimizer], schedule: Callable[[Optimizer], LRScheduler]
) -> None:
    def optimizer_of(model: nn.Module) -> Optimizer:
        return sgd(model) if kind is SGD else AdamW(model.parameters(), lr=0.1)

    model = network()
    optimizer = optimizer_of(model)
    scheduler = schedule(optimizer)
    for _ in range(2):
        scheduler.step()
    checkpoint = checkpoint_of(model, optimizer) | {"lr_schedulers": [scheduler.state_dict()]}
    before = copy.deepcopy(checkpoint["optimizer_states"])
    assert carry_over(checkpoint, state_of(model), HEAD, schedule(optimizer_of(model)), LABELS) == []
    assert checkpoint["optimizer_states"][0]["param_groups"] == before[0]["param_groups"]


CHANGED_SCHEDULES: dict[type[LRScheduler], tuple[dict[str, Any], dict[str, Any]]] = {
    StepLR: ({"step_size": 100}, {"step_size": 3, "gamma": 0.5}),
    MultiStepLR: ({"milestones": [100]}, {"milestones": [3]}),
    OneCycleLR: (
        {"max_lr": 0.1, "total_steps": 9},
        {"max_lr": 0.4, "total_steps": 12, "max_momentum": 0.99, "anneal_strategy": "linear"},
    ),
    CyclicLR: (
        {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 4},
        {"base_lr": 0.02, "max_lr": 0.3, "step_size_up": 6, "base_momentum": 0.7},
    ),
}


@pytest.mark.filterwarnings("ignore:.*before `optimizer.step")
@pytest.mark.parametrize("schedule", CHANGED_SCHEDULES)
def test_a_scheduler_with_changed_arguments_goes_on_with_them(schedule: Any) -> None:
    earlier, changed = CHANGED_SCHEDULES[schedule]
    model = network()
    optimizers = [AdamW(model.parameters(), lr=0.1, betas=(0.9, beta2)) for beta2 in (0.9, 0.8, 0.8)]
    old, resumed, uninterrupted = (
        schedule(optimizer, **args) for optimizer, args in zip(optimizers, (earlier, changed, changed), strict=True)
    )
    for _ in range(2):
        old.step()
        uninterrupted.step()
    checkpoint = checkpoint_of(model, sgd(model)) | {
        "optimizer_states": [copy.deepcopy(old.optimizer.state_dict())],
        "optimizer_name": optimizer_name(old.optimizer),
        "lr_schedulers": [old.state_dict()],
    }
    assert carry_over(checkpoint, state_of(model), HEAD, schedule(resumed.optimizer, **changed), LABELS) == []
    resumed.optimizer.load_state_dict(checkpoint["optimizer_states"][0])
    resumed.load_state_dict(checkpoint["lr_schedulers"][0])
    for each in (resumed, uninterrupted):
        each.step()
    for name in ("lr", "betas"):
        values = [each.optimizer.param_groups[0][name] for each in (resumed, uninterrupted)]
        assert values[0] == pytest.approx(values[1])


def test_a_plateau_with_another_patience_keeps_the_epochs_that_it_has_waited() -> None:
    model = network()
    optimizer = sgd(model)
    old, new = ReduceLROnPlateau(optimizer, patience=10), ReduceLROnPlateau(optimizer, patience=2, min_lr=0.01)
    for loss in (1.0, 2.0):
        old.step(loss)
    checkpoint = checkpoint_of(model, optimizer) | {"lr_schedulers": [old.state_dict()]}
    carry_over(checkpoint, state_of(model), HEAD, new, LABELS)
    [state] = checkpoint["lr_schedulers"]
    assert (state["patience"], state["min_lrs"], state["num_bad_epochs"], state["best"]) == (2, [0.01], 1, 1.0)


def test_every_argument_of_an_optimizer_is_set_anew() -> None:
    model = network()
    checkpoint = checkpoint_of(model, Adadelta(model.parameters(), lr=0.1, rho=0.9))
    carry_over(checkpoint, state_of(model), HEAD, scheduler_of(Adadelta(model.parameters(), lr=0.1, rho=0.5)), LABELS)
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["rho"] == 0.5


def test_every_argument_of_an_optimizer_inside_lookahead_is_set_anew() -> None:
    model = network()
    earlier, changed = (
        create_optimizer_v2(model, opt="lookahead_sgd", lr=0.1, momentum=momentum) for momentum in (0.9, 0.1)
    )
    checkpoint = checkpoint_of(model, earlier)
    carry_over(checkpoint, state_of(model), HEAD, scheduler_of(changed), LABELS)
    group = checkpoint["optimizer_states"][0]["param_groups"][0]
    assert (group["momentum"], group["lookahead_step"]) == (0.1, 1)


def test_another_optimizer_starts_with_an_empty_state_and_a_message() -> None:
    model = network()
    checkpoint = checkpoint_of(model, sgd(model))
    optimizer = AdamW(model.parameters(), lr=0.01)
    [note] = carry_over(checkpoint, state_of(model), HEAD, scheduler_of(optimizer), LABELS)
    assert note == "The optimizer starts with an empty state, because it was SGD and is AdamW."
    assert checkpoint["optimizer_states"][0]["state"] == {}
    optimizer.load_state_dict(checkpoint["optimizer_states"][0])
    # The rate is where the schedule left it, at a half.
    assert optimizer.param_groups[0]["lr"] == 0.005


@pytest.mark.parametrize(
    ("labels", "num_classes"), [(["cat", "dog", "emu"], 3), (["dog", "cat"], 2)], ids=["more", "reordered"]
)
def test_other_labels_get_a_new_head_and_keep_the_rest(labels: list[str], num_classes: int) -> None:
    model, changed = network(), network(num_classes)
    checkpoint = checkpoint_of(model, sgd(model))
    notes = carry_over(checkpoint, state_of(changed), HEAD, scheduler_of(sgd(changed)), labels)
    assert notes[0] == "New weights, which the checkpoint does not have: 1.bias, 1.weight."
    assert notes[1].startswith("The optimizer starts with an empty state")
    assert torch.equal(checkpoint["state_dict"]["model.0.weight"], model.state_dict()["0.weight"])
    assert torch.equal(checkpoint["state_dict"]["model.1.weight"], changed.state_dict()["1.weight"])
    assert {name: tensor.shape for name, tensor in checkpoint["ema"].items()} == {
        name: tensor.shape for name, tensor in changed.state_dict().items()
    }


@pytest.mark.parametrize("other", [lambda: network(width=9), lambda: nn.Sequential(nn.Identity(), nn.Linear(99, 99))])
def test_a_checkpoint_of_another_network_is_refused(other: Callable[[], nn.Module]) -> None:
    model, changed = network(), other()
    with pytest.raises(InvalidConfig, match="The checkpoint is of another network"):
        carry_over(checkpoint_of(model, sgd(model)), state_of(changed), HEAD, scheduler_of(sgd(changed)), LABELS)
