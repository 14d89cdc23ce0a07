"""Networks made faster, held against what they were."""

import pytest
import torch
from torch import Tensor, nn

import eca_hub
from service import network
from service.network import fold_norms, prepare_network

LABELS = tuple(f"class {index}" for index in range(10))
CONFIG = eca_hub.ModelConfig("resnet20", "eca", labels=LABELS, image=eca_hub.ImageConfig(32, 32, crop=1.0))


def classifier() -> eca_hub.Classifier:
    """A network whose norms have something to fold."""
    torch.manual_seed(0)
    model = eca_hub.create_model("eca_resnet20", num_classes=len(LABELS))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.running_mean = torch.randn_like(module.running_mean) * 0.1  # type: ignore[arg-type]
            module.running_var = torch.rand_like(module.running_var) + 0.5  # type: ignore[arg-type]
    return eca_hub.Classifier(model, CONFIG, model_id="acme/a", revision="0" * 40)


def norms_in(module: nn.Module) -> int:
    return sum(isinstance(child, nn.BatchNorm2d) for child in module.modules())


def called_norms(module: nn.Module) -> int:
    assert isinstance(module, torch.fx.GraphModule)
    modules = dict(module.named_modules())
    return sum(
        node.op == "call_module" and isinstance(modules[node.target], nn.BatchNorm2d) for node in module.graph.nodes
    )


def pictures(number: int) -> Tensor:
    return torch.randint(0, 256, (number, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_the_prepared_network_answers_as_the_library_does() -> None:
    original = classifier()
    expected = original.probabilities(pictures(16))
    prepared = prepare_network(original, "fp32")
    assert prepared.self_test.precision == "float32"
    assert prepared.self_test.same_top1 == 1.0
    assert prepared.self_test.max_difference < 1e-5
    assert called_norms(prepared.module) == 0
    with torch.inference_mode():
        found = prepared.forward(pictures(16)).softmax(1)
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_network_that_was_loaded_stays_as_it_was() -> None:
    original = classifier()
    before = {name: tensor.clone() for name, tensor in original.model.state_dict().items()}
    num_norms = norms_in(original.model)
    prepare_network(original, "bf16")
    assert norms_in(original.model) == num_norms
    for name, tensor in original.model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


def test_bf16_is_used_when_it_passes_the_self_test_and_not_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(network.MAX_DIFFERENCE, torch.bfloat16, 0.5)
    prepared = prepare_network(classifier(), "bf16")
    assert prepared.self_test.precision == "bfloat16"
    assert prepared.forward(pictures(2)).dtype == torch.float32
    monkeypatch.setitem(network.MAX_DIFFERENCE, torch.bfloat16, 0.0)
    assert prepare_network(classifier(), "bf16").self_test.precision == "float32"


def test_when_nothing_passes_the_network_runs_as_it_was_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(network.MAX_DIFFERENCE, torch.float32, -1.0)
    original = classifier()
    prepared = prepare_network(original, "fp32")
    assert prepared.module is original.model
    assert prepared.self_test.max_difference == 0.0


class Shared(nn.Module):
    """One convolution that is used twice, and one whose output is wanted without its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.other = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.last = nn.BatchNorm2d(3)
        nn.init.constant_(self.norm.weight, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        once = self.norm(self.conv(x))
        twice = self.conv(once)
        open_end = self.other(twice)
        result: Tensor = self.last(open_end) + open_end
        return result


def test_a_norm_is_only_folded_where_nothing_else_sees_the_convolution() -> None:
    model = Shared().eval()
    x = torch.randn(2, 3, 4, 4)
    folded = fold_norms(model)
    assert called_norms(folded) == 2
    assert torch.allclose(folded(x), model(x), atol=1e-6)


class Branching(nn.Module):
    """A network that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(x) if x.sum() > 0 else x
        return result


def test_a_network_that_cannot_be_traced_is_served_with_its_norms() -> None:
    model = Branching().eval()
    folded = fold_norms(model)
    assert folded is not model
    assert norms_in(folded) == 1
