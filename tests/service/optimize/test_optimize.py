"""Networks made faster, held against what they were."""

import subprocess
import sys
import threading
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

import eca_hub
from eca_service.errors import BadSetting
from eca_service.optimize import parity
from eca_service.optimize.fuse import fold_norms
from eca_service.optimize.optimize import empty, optimize_model
from eca_service.optimize.packing import PackedConvolution, can_pack, pack_convolutions

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
    prepared = optimize_model(original, "fp32")
    assert prepared.parity.precision == "float32"
    assert prepared.parity.same_top1 == 1.0
    assert prepared.parity.max_difference < 1e-5
    assert norms_in(prepared.module) == 0
    with torch.inference_mode():
        found = prepared.new_forward()(pictures(16)).softmax(1)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("precision", "expected"), [("bf16", [2, 1]), ("fp32", [1, 1])])
def test_one_picture_alone_has_all_cores_where_that_is_faster(
    precision: Literal["bf16", "fp32"], expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(parity.MAX_DIFFERENCE, torch.bfloat16, 1.0)
    threads: list[int] = []
    prepared = optimize_model(classifier(), precision, num_cores=2)
    prepared.module.register_forward_pre_hook(lambda module, inputs: threads.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        for number in (1, 4):
            prepared.new_forward()(pictures(number))
    torch.set_num_threads(before)
    assert threads == expected


def test_preparing_a_network_imports_no_compiler() -> None:
    program = (
        "import sys; from eca_service.optimize.optimize import optimize_model\n"
        "from tests.service.optimize.test_optimize import classifier\n"
        "optimize_model(classifier(), 'fp32')\n"
        "assert not {'torch._dynamo', 'torch._inductor', 'sympy', 'triton'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_network_that_was_loaded_stays_as_it_was() -> None:
    original = classifier()
    before = {name: tensor.clone() for name, tensor in original.model.state_dict().items()}
    num_norms = norms_in(original.model)
    optimize_model(original, "bf16")
    assert norms_in(original.model) == num_norms
    for name, tensor in original.model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


def test_bf16_is_used_when_it_passes_the_self_test_and_not_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parity.MAX_DIFFERENCE, torch.bfloat16, 0.5)
    prepared = optimize_model(classifier(), "bf16")
    assert prepared.parity.precision == "bfloat16"
    assert prepared.new_forward()(pictures(2)).dtype == torch.float32
    monkeypatch.setitem(parity.MAX_DIFFERENCE, torch.bfloat16, 0.0)
    assert optimize_model(classifier(), "bf16").parity.precision == "float32"


def test_when_nothing_passes_the_network_runs_as_it_was_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parity.MAX_DIFFERENCE, torch.float32, -1.0)
    original = classifier()
    prepared = optimize_model(original, "fp32")
    assert prepared.module is original.model
    assert prepared.parity.max_difference == 0.0


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


def packed_in(module: nn.Module) -> int:
    return sum(isinstance(child, PackedConvolution) for child in module.modules())


needs_packing = pytest.mark.skipif(not can_pack(), reason="this torch has no oneDNN")


@needs_packing
def test_every_convolution_is_packed_and_takes_the_relu_that_only_it_feeds() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1, groups=2)).eval()
    x = torch.randn(2, 3, 8, 8)
    expected = model(x).detach()
    pack_convolutions(model, x[:1], len(x))
    assert packed_in(model) == 2
    assert not any(isinstance(module, nn.ReLU) for module in model.modules())
    assert torch.allclose(model(x), expected, atol=1e-6)
    assert torch.allclose(model(x[:1]), expected[:1], atol=1e-6), "another batch size than it was packed for"


class SharedRelu(nn.Module):
    """One ReLU for two convolutions, as torchvision's blocks have it, and a convolution whose output two read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.shared, self.own = nn.ReLU(inplace=True), nn.ReLU()
        self.last = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.shared(self.second(self.shared(self.first(x)))))
        result: Tensor = self.own(y) - y
        return result


@needs_packing
def test_a_relu_stays_where_it_serves_others_or_others_read_what_it_reads() -> None:
    model = SharedRelu().eval()
    x = torch.randn(2, 3, 4, 4)
    expected = model(x).detach()
    pack_convolutions(model, x[:1], len(x))
    assert packed_in(model) == 3
    assert sum(isinstance(module, nn.ReLU) for module in model.modules()) == 2
    assert torch.allclose(model(x), expected, atol=1e-6)


@needs_packing
def test_a_convolution_that_pads_with_the_picture_itself_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), nn.Conv2d(3, 3, 3, padding="same"))
    x = torch.randn(1, 3, 8, 8)
    expected = model(x).detach()
    pack_convolutions(model, x[:1], len(x))
    assert packed_in(model) == 0
    assert torch.allclose(model(x), expected, atol=1e-6)


def test_a_prepared_network_can_be_emptied() -> None:
    prepared = optimize_model(classifier(), "fp32")
    empty(prepared.module)
    assert sum(tensor.numel() for tensor in (*prepared.module.parameters(), *prepared.module.buffers())) == 0


def test_auto_takes_the_fastest_format_that_the_processor_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for supported, expected in (({"bf16"}, "bfloat16"), (set[str](), "float32")):
        monkeypatch.setattr("eca_service.optimize.optimize._supports", supported.__contains__)
        monkeypatch.setitem(parity.MAX_DIFFERENCE, torch.bfloat16, 0.5)
        assert optimize_model(classifier(), "auto").parity.precision == expected


def test_fp16_on_a_processor_without_it_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eca_service.optimize.optimize._supports", lambda name: False)
    with pytest.raises(BadSetting, match="does not compute in fp16") as caught:
        optimize_model(classifier(), "fp16")
    assert "bf16" in caught.value.hint


def test_the_pictures_of_the_self_test_are_many_different_and_lie_in_the_package() -> None:
    found = parity.parity_images(classifier().transform)
    assert found.shape == (8, 3, 32, 32)
    assert found.dtype == torch.uint8
    assert len({picture.float().mean().item() for picture in found}) == 8
    assert all(picture.float().std() > 20 for picture in found)
