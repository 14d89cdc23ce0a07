"""Networks optimized, compared with the originals."""

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

import eca_hub
from eca_service.errors import BadSetting
from eca_service.optimize import parity
from eca_service.optimize.optimize import optimize_model, release_memory

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


def images(number: int) -> Tensor:
    return torch.randint(0, 256, (number, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_the_optimized_network_gives_the_outputs_of_the_library() -> None:
    original = classifier()
    expected = original.probabilities(images(16))
    prepared = optimize_model(original, "fp32")
    assert prepared.parity.precision == "float32"
    assert prepared.parity.same_top1 == 1.0
    assert prepared.parity.max_difference < 1e-5
    assert norms_in(prepared.module) == 0
    with torch.inference_mode():
        found = prepared.new_forwards()["classify"](images(16)).softmax(1)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("precision", "expected"), [("bf16", [2, 1]), ("fp32", [1, 1])])
def test_a_single_image_uses_all_cores_where_that_is_faster(
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
            prepared.new_forwards()["classify"](images(number))
    torch.set_num_threads(before)
    assert threads == expected


def test_the_network_that_was_loaded_stays_as_it_was() -> None:
    original = classifier()
    before = {name: tensor.clone() for name, tensor in original.model.state_dict().items()}
    num_norms = norms_in(original.model)
    optimize_model(original, "bf16")
    assert norms_in(original.model) == num_norms
    for name, tensor in original.model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


def test_bf16_is_used_when_it_passes_the_parity_check_and_not_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parity.MAX_DIFFERENCE, torch.bfloat16, 0.5)
    prepared = optimize_model(classifier(), "bf16")
    assert (prepared.parity.precision, prepared.parity.rejected) == ("bfloat16", ())
    assert prepared.new_forwards()["classify"](images(2)).dtype == torch.float32
    monkeypatch.setitem(parity.MAX_DIFFERENCE, torch.bfloat16, 0.0)
    slower = optimize_model(classifier(), "bf16").parity
    assert (slower.precision, slower.rejected) == ("float32", ("bfloat16",))


def test_when_nothing_passes_the_network_runs_as_it_was_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parity.MAX_DIFFERENCE, torch.float32, -1.0)
    original = classifier()
    prepared = optimize_model(original, "fp32")
    assert prepared.module is original.model
    assert prepared.parity.max_difference == 0.0


def test_an_optimized_network_can_release_its_memory() -> None:
    prepared = optimize_model(classifier(), "fp32")
    release_memory(prepared.module)
    assert sum(tensor.numel() for tensor in (*prepared.module.parameters(), *prepared.module.buffers())) == 0


def test_auto_takes_the_fastest_format_that_the_processor_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eca_service.optimize.optimize.has_instructions", lambda *args, **options: False)
    # Weights in bf16 can only be packed on a processor that has the instructions.
    monkeypatch.setattr("eca_service.optimize.optimize.can_pack", lambda: False)
    for supported, expected in (({"bf16"}, "bfloat16"), ({"fp16"}, "float32"), (set[str](), "float32")):
        monkeypatch.setattr("eca_service.optimize.optimize._supports", supported.__contains__)
        monkeypatch.setitem(parity.MAX_DIFFERENCE, torch.bfloat16, 0.5)
        assert optimize_model(classifier(), "auto").parity.precision == expected


def test_fp16_on_a_processor_without_it_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eca_service.optimize.optimize._supports", lambda name: False)
    with pytest.raises(BadSetting, match="does not compute in fp16") as caught:
        optimize_model(classifier(), "fp16")
    assert "bf16" in caught.value.hint
