"""Gates held against the layer's own formula, and heat against pictures whose evidence is known."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import eca_hub
from eca_hub.attention.eca import ECA
from eca_hub.errors import InvalidConfig
from eca_hub.explain import explain_picture

LABELS = ("left", "right")


def classifier_of(model: nn.Module, side_px: int = 32) -> eca_hub.Classifier:
    image = eca_hub.ImageConfig(side_px, side_px, crop=1.0)
    config = eca_hub.ModelConfig("resnet20", "eca", labels=LABELS, image=image)
    return eca_hub.Classifier(model, config, model_id="acme/a", revision="0" * 40)


def network(attention: str) -> nn.Module:
    torch.manual_seed(0)
    return eca_hub.create_model("resnet20", attention=attention, num_classes=2)


def gates_by_hand(model: nn.Module, run: Callable[[], object]) -> list[Tensor]:
    """sigmoid(conv(mean)) of what every ECA is given."""
    means: list[Tensor] = []
    layers = [module for module in model.modules() if isinstance(module, ECA)]
    hooks = [layer.register_forward_pre_hook(lambda _, x: means.append(x[0].mean((2, 3)))) for layer in layers]
    run()
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        return [layer.conv(mean[:, None]).sigmoid()[0, 0] for layer, mean in zip(layers, means, strict=True)]


def test_the_gates_are_those_of_the_layers(picture: Callable[..., bytes]) -> None:
    classifier = classifier_of(network("eca"))
    expected = gates_by_hand(classifier.model, lambda: classifier.predict(picture()))
    explained = explain_picture(classifier, picture())
    assert [gates.stage for gates in explained.gates] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert explained.gates[0].name == "layer1.0.se"
    for gates, gate_C in zip(explained.gates, expected, strict=True):
        assert gates.values == pytest.approx(gate_C.tolist(), abs=1e-4)
        assert gates.mean == pytest.approx(gate_C.mean().item(), abs=1e-4)
        assert gates.std == pytest.approx(gate_C.std(correction=0).item(), abs=1e-4)


@pytest.mark.parametrize("attention", ["se", "cbam", "srm", "simam", "eca_ns"])
def test_every_attention_that_rescales_channels_is_seen(attention: str, picture: Callable[..., bytes]) -> None:
    explained = explain_picture(classifier_of(network(attention)), picture())
    assert len(explained.gates) == 9
    assert all(math.isfinite(value) for gates in explained.gates for value in gates.values)


def test_timms_own_attention_is_seen_and_none_is_none(picture: Callable[..., bytes]) -> None:
    timms = eca_hub.create_model("ecaresnet26t", num_classes=2)
    explained = explain_picture(classifier_of(timms, side_px=64), picture())
    assert len(explained.gates) == 8
    assert [len(gates.values) for gates in explained.gates] == [256, 256, 512, 512, 1024, 1024, 2048, 2048]
    assert explain_picture(classifier_of(network("none")), picture()).gates == ()


def test_an_explanation_names_the_class_as_the_classifier_does_and_changes_nothing(
    picture: Callable[..., bytes],
) -> None:
    classifier = classifier_of(network("eca"))
    before = classifier.predict(picture(), top_k=2)
    explained = explain_picture(classifier, picture())
    assert explained.prediction.label == before[0].label
    assert explained.prediction.score == pytest.approx(before[0].score, abs=1e-5)
    other = explain_picture(classifier, picture(), class_index=1 - before[0].index)
    assert other.prediction.label == before[1].label
    assert classifier.predict(picture(), top_k=2) == before
    assert all(parameter.grad is None for parameter in classifier.model.parameters())
    assert not any(module._forward_hooks for module in classifier.model.modules())


class Sides(nn.Module):
    """Says left where it is bright at the left, right where it is bright at the right."""

    def __init__(self) -> None:
        super().__init__()
        self.bright = nn.Conv2d(3, 2, 8, stride=8, bias=False)
        nn.init.constant_(self.bright.weight, 1 / 192)
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        map_N2HW = self.bright(x)
        side_2HW = torch.zeros_like(map_N2HW[0])
        side_2HW[0, :, :2], side_2HW[1, :, 2:] = 1, 1
        result: Tensor = self.weight * (map_N2HW * side_2HW).sum((2, 3))
        return result


def test_the_heat_lies_where_the_evidence_is() -> None:
    classifier = classifier_of(Sides())
    pixels = torch.zeros(3, 32, 32, dtype=torch.uint8)
    pixels[:, 8:16, 24:32] = 255
    explained = explain_picture(classifier, pixels, class_index=1)
    heat = torch.tensor(explained.heat)
    assert heat.shape == (4, 4)
    assert heat.max() == 1.0
    assert (heat == 1).nonzero().tolist() == [[1, 3]]


def test_a_network_without_a_map_and_a_class_that_is_not_there_are_refused() -> None:
    pixels = torch.zeros(3, 4, 4, dtype=torch.uint8)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    with pytest.raises(InvalidConfig, match="no map"):
        explain_picture(classifier_of(flat, 4), pixels)
    for index in (-1, 2):
        with pytest.raises(InvalidConfig, match="0 to 1"):
            explain_picture(classifier_of(network("eca")), pixels, class_index=index)
