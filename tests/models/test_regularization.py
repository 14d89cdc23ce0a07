"""Dropout and stochastic depth are set in any network that has them, and refused by any other."""

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from eca_hub.errors import InvalidConfig
from eca_hub.models.build import build_model, split_name
from eca_hub.models.config import ModelConfig
from eca_hub.models.regularization import set_drop_rates, use_grad_checkpointing


def config_of(name: str) -> ModelConfig:
    return ModelConfig(name, split_name(name)[1], labels=("a", "b"))


SLOW = (
    "convnext_atto",
    "vit_tiny_patch16_224",
    "densenet161",
    "eca_nfnet_l0",
    "cspresnet50",
    "hrnet_w18_small",
    "dla34",
    "efficientnet_b0",
    "vgg11",
)
NAMES = ("eca_resnet18", "eca_resnet20", "mobilenet_v2")


@pytest.mark.parametrize("name", [*NAMES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_dropout_changes_the_outputs_of_training_and_not_those_of_inference(name: str) -> None:
    torch.manual_seed(0)
    config = config_of(name)
    model = build_model(config)
    keys = model.state_dict().keys()
    x_N3HW = torch.randn(2, 3, 224 if "vit" in name else 64, 224 if "vit" in name else 64)
    with torch.no_grad():
        before_NK = model.eval()(x_N3HW)
        set_drop_rates(model, config, drop_rate=0.5)
        assert torch.equal(model.eval()(x_N3HW), before_NK)
        assert model.state_dict().keys() == keys
        for module in model.train().modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        assert not torch.equal(model(x_N3HW), model(x_N3HW))


def test_checkpointing_of_gradients_does_not_change_those_of_a_network_with_three_stages() -> None:
    config = config_of("eca_resnet20")
    torch.manual_seed(0)
    model, x_N3HW = build_model(config).train(), torch.randn(2, 3, 16, 16)
    gradients = []
    for is_checkpointing in (False, True):
        if is_checkpointing:
            use_grad_checkpointing(model, config)
        model.zero_grad()
        model(x_N3HW).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(gradients[0], gradients[1])


def test_mobilenet_drops_nothing_unless_asked() -> None:
    config = config_of("mobilenet_v2")
    model = build_model(config)
    set_drop_rates(model, config)
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [0.0]


def test_stochastic_depth_is_set_in_every_block() -> None:
    config = config_of("eca_resnet18")
    model = build_model(config).train()
    set_drop_rates(model, config, drop_path_rate=0.4)
    rates = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
    assert len(rates) >= 7
    assert max(rates) == pytest.approx(0.4)
    model(torch.randn(2, 3, 64, 64)).sum().backward()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mobilenet_v2", {"drop_path_rate": 0.2}, "drop_path_rate"),
        ("densenet161", {"drop_path_rate": 0.2}, "drop_path_rate"),
        ("eca_resnet18", {"drop_rate": 1.0}, "drop_rate is 1.0"),
        ("eca_resnet18", {"drop_path_rate": -0.1}, "drop_path_rate is -0.1"),
    ],
)
def test_a_rate_that_has_no_effect_or_is_out_of_range_is_refused(
    name: str, options: dict[str, float], message: str
) -> None:
    config = config_of(name)
    with pytest.raises(InvalidConfig, match=message):
        set_drop_rates(build_model(config), config, **options)


def gradients_and_num_kept(*, is_checkpointed: bool) -> tuple[list[torch.Tensor | None], int]:
    """The gradients of a step, and how many activations were kept for them."""
    torch.manual_seed(0)
    config = config_of("eca_resnet18")
    model = build_model(config).train()
    if is_checkpointed:
        use_grad_checkpointing(model, config)
    kept = list[int]()

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = model(torch.ones(2, 3, 64, 64)).square().sum()
    torch.autograd.backward(loss)
    return [each.grad for each in model.parameters()], sum(kept)


def test_grad_checkpointing_keeps_the_gradients_and_fewer_activations() -> None:
    expected, num_kept = gradients_and_num_kept(is_checkpointed=False)
    found, num_kept_then = gradients_and_num_kept(is_checkpointed=True)
    torch.testing.assert_close(found, expected)
    assert num_kept_then < num_kept / 2


def test_grad_checkpointing_of_a_network_without_it_is_refused() -> None:
    config = config_of("mobilenet_v2")
    with pytest.raises(InvalidConfig, match="mobilenet_v2 does not support grad_checkpointing"):
        use_grad_checkpointing(build_model(config), config)
