"""Blocks whose addition takes the gate along give what timm's blocks give, and step aside where they must."""

import copy

import pytest
import torch
from torch import Tensor, nn

from eca_hub.models.build import create_model
from eca_hub.models.gated_blocks import GatedBasicBlock, GatedBottleneck


def as_timm_wrote_it(model: nn.Module) -> nn.Module:
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, GatedBasicBlock | GatedBottleneck):
            module.__class__ = type(module).__base__  # type: ignore[assignment]
    return copied


@pytest.mark.parametrize(("name", "block"), [("eca_resnet20", GatedBasicBlock), ("eca_resnet26", GatedBottleneck)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_network_of_gated_blocks_is_the_network_of_timms(
    name: str, block: type[nn.Module], memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    # In double precision, because norms over few numbers amplify what rounding does.
    ours = create_model(name, num_classes=3).double().to(memory_format=memory_format)
    theirs = as_timm_wrote_it(ours)
    assert any(isinstance(module, block) for module in ours.modules())
    assert not any(isinstance(module, block) for module in theirs.modules())
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x_N3HW = torch.randn(3, 3, 40, 48, dtype=torch.float64).contiguous(memory_format=memory_format)
    slopes = []
    for network in (ours, theirs):
        logits_NK = network.train()(x_N3HW)
        slopes.append((logits_NK, *torch.autograd.grad(logits_NK.square().sum(), list(network.parameters()))))
    torch.testing.assert_close(slopes[0], slopes[1])
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(x_N3HW), theirs.eval()(x_N3HW))


def test_who_watches_the_attention_sees_it_called_with_its_input_unchanged() -> None:
    model, seen = create_model("eca_resnet20").eval(), list[Tensor]()
    model.get_submodule("layer1.0.se").register_forward_hook(lambda _, given, y: seen.extend([given[0], y]))
    with torch.inference_mode():
        model(torch.randn(1, 3, 16, 16))
    assert len(seen) == 2
    assert not torch.equal(seen[0], seen[1])


def test_a_block_without_eca_or_with_dropped_paths_is_timms() -> None:
    torch.manual_seed(0)
    block, x_NCHW = create_model("eca_resnet20").eval().get_submodule("layer1.0"), torch.randn(2, 16, 8, 8)
    assert isinstance(block, GatedBasicBlock)
    with torch.inference_mode():
        expected_NCHW = block(x_NCHW)
        block.drop_path = nn.Identity()
        torch.testing.assert_close(block(x_NCHW), expected_NCHW)
        block.se = nn.Identity()  # type: ignore[assignment]
        assert not torch.allclose(block(x_NCHW), expected_NCHW)


def test_blocks_of_other_kinds_stay_as_they_are() -> None:
    with torch.device("meta"):
        model = create_model("eca_skresnet18")
    assert not any(isinstance(module, GatedBasicBlock | GatedBottleneck) for module in model.modules())
