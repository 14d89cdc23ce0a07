"""What a checkpoint keeps for a run with another configuration."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import SGD, Adadelta, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
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


def checkpoint_of(model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler | None = None) -> dict[str, Any]:
    """A checkpoint after one step."""
    scheduler = scheduler or scheduler_of(optimizer)
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


NUM_STEPS = 5
CHANGED_SCHEDULES: list[tuple[type[LRScheduler], dict[str, Any], dict[str, Any]]] = [
    (CosineAnnealingLR, {"T_max": 5}, {"T_max": 10}),
    (CosineAnnealingWarmRestarts, {"T_0": 3}, {"T_0": 4, "T_mult": 2}),
    (PolynomialLR, {"total_iters": 5}, {"total_iters": 10}),
    (LinearLR, {"total_iters": 3}, {"total_iters": 9, "start_factor": 0.1}),
    (ConstantLR, {"total_iters": 3}, {"total_iters": 9}),
    (ExponentialLR, {"gamma": 0.9}, {"gamma": 0.5}),
    (StepLR, {"step_size": 100}, {"step_size": 3, "gamma": 0.5}),
    (StepLR, {"step_size": 2}, {"step_size": 100}),
    (MultiStepLR, {"milestones": [100]}, {"milestones": [3]}),
    (MultiStepLR, {"milestones": [2, 3]}, {"milestones": [100]}),
    (
        OneCycleLR,
        {"max_lr": 0.1, "total_steps": 9},
        {"max_lr": 0.4, "total_steps": 12, "max_momentum": 0.99, "anneal_strategy": "linear"},
    ),
    (
        CyclicLR,
        {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 4},
        {"base_lr": 0.02, "max_lr": 0.3, "step_size_up": 6, "base_momentum": 0.7},
    ),
]


def adamw(model: nn.Module) -> Optimizer:
    return AdamW(model.parameters(), lr=0.1)


def stepped(scheduler: LRScheduler) -> LRScheduler:
    """Return the scheduler after `NUM_STEPS` steps."""
    for _ in range(NUM_STEPS):
        scheduler.step()
    return scheduler


def resumed(checkpoint: dict[str, Any], model: nn.Module, make: Callable[[], LRScheduler]) -> LRScheduler:
    """Return a new scheduler, and its optimizer, in the state that is carried over to them."""
    carry_over(checkpoint, state_of(model), HEAD, make(), LABELS)
    scheduler = make()
    scheduler.optimizer.load_state_dict(checkpoint["optimizer_states"][0])
    scheduler.load_state_dict(checkpoint["lr_schedulers"][0])
    return scheduler


def options_of(scheduler: LRScheduler) -> list[Any]:
    """What a scheduler has set."""
    group = scheduler.optimizer.param_groups[0]
    return [*scheduler.get_last_lr(), group["lr"], group.get("momentum"), *group.get("betas", ())]


@pytest.mark.filterwarnings("ignore:.*before `optimizer.step")
@pytest.mark.parametrize(("kind", "arguments", "changed"), CHANGED_SCHEDULES)
@pytest.mark.parametrize("make", [sgd, adamw])
def test_a_scheduler_with_the_same_arguments_is_resumed_exactly(
    make: Callable[[nn.Module], Optimizer], kind: Any, arguments: dict[str, Any], changed: dict[str, Any]
) -> None:
    model = network()
    old = stepped(kind(make(model), **arguments))
    checkpoint = checkpoint_of(model, old.optimizer, old)
    before = copy.deepcopy(checkpoint)
    assert carry_over(checkpoint, state_of(model), HEAD, kind(make(model), **arguments), LABELS) == []
    assert checkpoint["optimizer_states"][0]["param_groups"] == before["optimizer_states"][0]["param_groups"]
    assert checkpoint["lr_schedulers"] == before["lr_schedulers"]


@pytest.mark.filterwarnings("ignore:.*before `optimizer.step")
def test_a_learning_rate_that_a_callback_has_changed_is_kept_by_the_same_schedule() -> None:
    model = network()
    old = stepped(CosineAnnealingLR(sgd(model), T_max=9))
    old.optimizer.param_groups[0]["lr"] = 0.0123
    checkpoint = checkpoint_of(model, old.optimizer, old)
    before = copy.deepcopy(checkpoint)
    scheduler = resumed(checkpoint, model, lambda: CosineAnnealingLR(sgd(model), T_max=9))
    assert scheduler.optimizer.param_groups[0]["lr"] == 0.0123
    assert checkpoint["lr_schedulers"] == before["lr_schedulers"]


@pytest.mark.filterwarnings("ignore:.*before `optimizer.step")
@pytest.mark.parametrize(("kind", "arguments", "changed"), CHANGED_SCHEDULES)
def test_a_scheduler_with_changed_arguments_has_the_learning_rates_of_a_run_that_always_had_them(
    kind: Any, arguments: dict[str, Any], changed: dict[str, Any]
) -> None:
    model = network()
    old, uninterrupted = (stepped(kind(adamw(model), **each)) for each in (arguments, changed))
    new = resumed(checkpoint_of(model, old.optimizer, old), model, lambda: kind(adamw(model), **changed))
    assert options_of(new) == options_of(uninterrupted)
    for each in (new, uninterrupted):
        each.step()
    assert options_of(new) == options_of(uninterrupted)


@pytest.mark.filterwarnings("ignore:.*before `optimizer.step")
@pytest.mark.parametrize(("kind", "arguments", "changed"), CHANGED_SCHEDULES[-2:])
@pytest.mark.parametrize(("earlier", "later"), [(adamw, sgd), (sgd, adamw)])
def test_another_optimizer_has_its_momentum_cycled_by_the_same_scheduler(
    earlier: Any, later: Any, kind: Any, arguments: dict[str, Any], changed: dict[str, Any]
) -> None:
    model = network()
    old, uninterrupted = (stepped(kind(make(model), **arguments)) for make in (earlier, later))
    new = resumed(checkpoint_of(model, old.optimizer, old), model, lambda: kind(later(model), **arguments))
    for each in (new, uninterrupted):
        each.step()
    assert options_of(new) == options_of(uninterrupted)


class Chained(ChainedScheduler):
    """A scheduler of a user, which has no count of its steps."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__([ConstantLR(optimizer, total_iters=2), ExponentialLR(optimizer, gamma=0.5)])


@pytest.mark.filterwarnings("ignore:.*before `optimizer.step")
def test_a_scheduler_that_does_not_count_its_steps_keeps_its_learning_rates() -> None:
    model = network()
    old = stepped(Chained(sgd(model)))
    new = resumed(checkpoint_of(model, old.optimizer, old), model, lambda: Chained(sgd(model)))
    assert options_of(new) == options_of(old)


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        (RMSprop, {"centered": True}),
        (RMSprop, {"momentum": 0.9}),
        (Adam, {"amsgrad": True}),
        (AdamW, {"amsgrad": True}),
    ],
)
def test_an_optimizer_that_needs_more_state_than_was_saved_starts_with_an_empty_one_and_a_message(
    kind: Any, changed: dict[str, Any]
) -> None:
    model = network()
    checkpoint = checkpoint_of(model, kind(model.parameters(), lr=0.1))
    optimizer = kind(model.parameters(), lr=0.1, **changed)
    [note] = carry_over(checkpoint, state_of(model), HEAD, scheduler_of(optimizer), LABELS)
    [(name, value)] = changed.items()
    earlier = kind(model.parameters()).defaults[name]
    assert note == f"The optimizer starts with an empty state, because {name} was {earlier} and is {value}."
    optimizer.load_state_dict(checkpoint["optimizer_states"][0])
    optimizer.step()


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


def test_a_plateau_of_another_mode_forgets_the_best_value_and_keeps_the_learning_rate() -> None:
    def plateau(**options: Any) -> ReduceLROnPlateau:
        optimizer = sgd(model)
        optimizer.param_groups[0]["initial_lr"] = 0.1  # As `make_scheduler` does.
        return ReduceLROnPlateau(optimizer, patience=0, **options)

    model = network()
    old = plateau()
    for loss in (1.0, 2.0):
        old.step(loss)
    checkpoint = checkpoint_of(model, old.optimizer, old)
    new = resumed(checkpoint, model, lambda: plateau(mode="max"))
    assert checkpoint["lr_schedulers"][0]["best"] == float("-inf")
    assert new.optimizer.param_groups[0]["lr"] == old.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


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
