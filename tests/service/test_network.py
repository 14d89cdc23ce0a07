"""Networks made faster, held against what they were."""

import threading

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


def pictures(number: int) -> Tensor:
    return torch.randint(0, 256, (number, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_the_prepared_network_answers_as_the_library_does() -> None:
    original = classifier()
    expected = original.probabilities(pictures(16))
    prepared = prepare_network(original, "fp32")
    assert prepared.self_test.precision == "float32"
    assert prepared.self_test.same_top1 == 1.0
    assert prepared.self_test.max_difference < 1e-5
    assert norms_in(prepared.module) == 0
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
    folded = fold_norms(model, x)
    assert norms_in(folded) == 2
    assert torch.allclose(folded(x), model(x), atol=1e-6)


class Branching(nn.Module):
    """A network whose way depends on what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(x) if x.sum() > 0 else x
        return result


def test_a_norm_without_a_convolution_stays() -> None:
    model = Branching().eval()
    folded = fold_norms(model, torch.ones(1, 3, 2, 2))
    assert folded is not model
    assert norms_in(folded) == 1


class ChangedOnTheWay(nn.Module):
    """A convolution whose output is not what the norm gets, though it is the same tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.conv(x).relu_())
        return result


def test_a_norm_stays_where_something_happens_in_between() -> None:
    model = ChangedOnTheWay().eval()
    x = torch.randn(2, 3, 4, 4)
    folded = fold_norms(model, x)
    assert norms_in(folded) == 1
    assert torch.allclose(folded(x), model(x), atol=1e-6)


def test_while_norms_are_folded_other_networks_go_on_in_other_threads() -> None:
    other = nn.Sequential(nn.Linear(2, 2)).eval()
    errors: list[BaseException] = []

    class Calling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            def ask() -> None:
                try:
                    other(torch.zeros(1, 2))
                except BaseException as error:
                    errors.append(error)

            thread = threading.Thread(target=ask)
            thread.start()
            thread.join()
            return x

    fold_norms(Calling(), torch.zeros(1, 3, 2, 2))
    assert not errors
