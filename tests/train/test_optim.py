"""The learning rate is a pure function of the step, and only matrices decay."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from timm.optim import list_optimizers
from torch import nn

import eca_hub
from eca_hub.errors import InvalidConfig
from eca_hub.train.optim import OptimConfig, check_optimizer_and_scheduler, clip_adaptively, lr_factor, make_optimizer


def test_cosine_rises_through_the_warmup_and_falls_to_zero() -> None:
    factor = lr_factor(OptimConfig(warmup_epochs=1), num_steps=100, steps_per_epoch=10)
    assert [factor(step) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert factor(10) == 1.0
    assert factor(55) == pytest.approx(0.5)
    assert factor(100) == pytest.approx(0.0)


def recipe(name: str) -> tuple[OptimConfig, int]:
    """Optimizer and epochs of a recipe in experiments/imagenet."""
    path = Path(__file__).parents[2] / "experiments" / "configs" / "imagenet" / name
    words = yaml.safe_load(path.read_text())
    return OptimConfig(**words["model"]["optim"]), words["trainer"]["max_epochs"]


def rates(config: OptimConfig, num_epochs: int, steps_per_epoch: int) -> list[float]:
    factor = lr_factor(config, num_steps=num_epochs * steps_per_epoch, steps_per_epoch=steps_per_epoch)
    return [config.lr * factor(step) for step in range(num_epochs * steps_per_epoch)]


def test_the_recipe_of_the_papers_resnets_divides_the_rate_by_ten_every_thirty_epochs() -> None:
    config, num_epochs = recipe("paper_resnet.yaml")
    expected = [rate for rate, epochs in ((0.1, 30), (0.01, 30), (0.001, 30), (0.0001, 10)) for _ in range(epochs * 7)]
    assert rates(config, num_epochs, 7) == pytest.approx(expected)
    assert (config.momentum, config.weight_decay, config.weight_decay_norms_and_biases) == (0.9, 1e-4, True)


def test_the_recipe_of_the_papers_mobilenet_multiplies_the_rate_by_098_every_epoch() -> None:
    config, num_epochs = recipe("paper_mobilenet.yaml")
    assert rates(config, num_epochs, 5) == pytest.approx([0.045 * 0.98 ** (step // 5) for step in range(400 * 5)])
    assert (config.momentum, config.weight_decay) == (0.9, 4e-5)


def test_the_modern_recipe_warms_up_and_follows_half_a_cosine() -> None:
    config, num_epochs = recipe("modern.yaml")
    lrs = rates(config, num_epochs, 4)
    assert lrs[:20] == pytest.approx([5e-3 * (step + 1) / 20 for step in range(20)])
    rest = num_epochs * 4 - 20
    assert lrs[20:] == pytest.approx([5e-3 * (1 + math.cos(math.pi * step / rest)) / 2 for step in range(rest)])


@pytest.mark.parametrize("name", ["eca_resnet20", "eca_mobilenet_v2"])
def test_exactly_norms_biases_and_eca_kernels_do_not_decay(name: str) -> None:
    model = eca_hub.create_model(name, num_classes=3)
    optimizer = make_optimizer(OptimConfig(weight_decay=0.1), model)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, kept = (
        {
            name_of[id(each)]
            for group in optimizer.param_groups
            for each in group["params"]
            if bool(group["weight_decay"]) is has
        }
        for has in (True, False)
    )
    spared: set[str] = set()
    for module_name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d | eca_hub.ECA):
            spared |= {f"{module_name}.{inner}" for inner, _ in module.named_parameters()}
        elif isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            spared.add(f"{module_name}.bias")
    assert kept == spared
    assert decayed == set(name_of.values()) - spared


def test_the_papers_recipe_decays_everything() -> None:
    model = eca_hub.create_model("eca_resnet20", num_classes=3)
    [group] = make_optimizer(OptimConfig(weight_decay=0.1, weight_decay_norms_and_biases=True), model).param_groups
    assert group["weight_decay"] == 0.1
    assert len(group["params"]) == len(list(model.parameters()))


@pytest.mark.filterwarnings("ignore:.*opt_einsum.*")
@pytest.mark.slow
def test_every_optimizer_of_timm_makes_a_step_or_is_refused_in_one_sentence() -> None:
    refused = {}
    for name in map(str, list_optimizers()):
        model = nn.Linear(2, 2)
        before = model.weight.detach().clone()
        try:
            optimizer = make_optimizer(OptimConfig(name=name, lr=0.1), model)
        except InvalidConfig as error:
            refused[name] = str(error)
            continue
        for _ in range(3):
            # Some only initialize their state in the first step.
            optimizer.zero_grad()
            model(torch.tensor([[1.0, -2.0]])).square().sum().backward()
            optimizer.step()
        assert not torch.equal(model.weight, before), name
    # Second derivatives, and optimizers of packages that are not installed.
    assert {"sgd", "adamw", "lamb", "lion", "adopt", "muon"}.isdisjoint(refused)
    assert set(refused) <= {"adahessian", *(name for name in refused if name.startswith(("fused", "bnb")))}
    assert all(sentence.endswith(".") and "\n" not in sentence for sentence in refused.values())


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("adamw", {"betas": [0.8, 0.9], "eps": 1e-4}, {"betas": (0.8, 0.9), "eps": 1e-4}),
        ("lion", {"args": {"caution": True}}, {"caution": True}),
        ("sgd", {"momentum": 0.5, "nesterov": False}, {"momentum": 0.5, "nesterov": False}),
        ("adopt", {"args": {"decoupled": True}}, {"decoupled": True}),
        ("SGD", {"nesterov": False}, {"nesterov": False}),
        ("lookahead_sgd", {"nesterov": False}, {"nesterov": False}),
        ("lookahead_sgd", {}, {"nesterov": True}),
    ],
)
def test_arguments_of_an_optimizer_arrive(name: str, options: dict[str, Any], expected: dict[str, Any]) -> None:
    optimizer = make_optimizer(OptimConfig(name=name, **options), nn.Linear(2, 2))
    for group in optimizer.param_groups:
        assert {option: group[option] for option in expected} == expected


def test_an_argument_that_an_optimizer_does_not_have_is_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"The optimizer lion cannot be made with amsgrad=True: "):
        make_optimizer(OptimConfig(name="lion", args={"amsgrad": True}), nn.Linear(2, 2))


@pytest.mark.parametrize("num_epochs", [6, math.inf])
def test_a_schedule_that_ends_before_the_run_is_refused(num_epochs: float) -> None:
    config = OptimConfig(schedule="torch.optim.lr_scheduler.OneCycleLR", schedule_args={"max_lr": 1, "total_steps": 5})
    check_optimizer_and_scheduler(config, nn.Linear(2, 2), 5)
    with pytest.raises(InvalidConfig, match="OneCycleLR cannot make a step: Tried to step 6 times"):
        check_optimizer_and_scheduler(config, nn.Linear(2, 2), num_epochs)


def test_layer_decay_lowers_the_rate_from_the_head_to_the_stem() -> None:
    model = eca_hub.create_model("eca_resnet20", num_classes=3)
    optimizer = make_optimizer(OptimConfig(lr=0.1, layer_decay=0.5), model)
    rate_of = {id(each): group["lr"] for group in optimizer.param_groups for each in group["params"]}
    first, *_, last = model.parameters()
    assert rate_of[id(last)] == 0.1
    assert rate_of[id(first)] == min(rate_of.values()) < 0.1


def test_agc_clips_a_gradient_by_the_norm_of_its_weights_and_leaves_the_head() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    for each in model.parameters():
        each.grad = torch.full_like(each, 100.0)
    clip_adaptively(OptimConfig(agc=0.01), model, {"1.weight"})
    norms = [(each.grad.norm(dim=1) / each.detach().norm(dim=1)).tolist() for each in model.parameters()]  # type: ignore[union-attr]
    assert norms[0] == pytest.approx([0.01, 0.01])
    assert min(norms[1]) > 1


def test_a_rate_that_cannot_work_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="lr -1"):
        OptimConfig(lr=-1)
