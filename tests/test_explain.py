"""Gates against the layer's own formula, and heatmaps against images whose evidence is known."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import eca_hub
from eca_hub.attention.eca import ECA
from eca_hub.errors import InvalidConfig, NonFiniteScores
from eca_hub.explain import explain_image
from tests.conftest import make_image

LABELS = ("left", "right")


def classifier_of(model: nn.Module, side_px: int = 32) -> eca_hub.Classifier:
    image = eca_hub.ImageConfig(side_px, side_px, crop=1.0)
    config = eca_hub.ModelConfig("resnet20", "eca", labels=LABELS, image=image)
    return eca_hub.Classifier(model, config, model_id="acme/a", revision="0" * 40)


def network(attention: str) -> nn.Module:
    torch.manual_seed(0)
    return eca_hub.create_model("resnet20", attention=attention, num_classes=2)


def gates_by_hand(model: nn.Module, run: Callable[[], object]) -> list[Tensor]:
    """sigmoid(conv(mean)) of the input of every ECA."""
    means: list[Tensor] = []
    layers = [module for module in model.modules() if isinstance(module, ECA)]
    hooks = [layer.register_forward_pre_hook(lambda _, x: means.append(x[0].mean((2, 3)))) for layer in layers]
    run()
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        return [layer.conv(mean[:, None]).sigmoid()[0, 0] for layer, mean in zip(layers, means, strict=True)]


def test_the_gates_are_those_of_the_layers() -> None:
    classifier = classifier_of(network("eca"))
    expected = gates_by_hand(classifier.model, lambda: classifier.predict(make_image()))
    explained = explain_image(classifier, make_image())
    assert [gates.stage for gates in explained.gates] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert explained.gates[0].name == "layer1.0.se"
    for gates, gate_C in zip(explained.gates, expected, strict=True):
        assert gates.values == pytest.approx(gate_C.tolist(), abs=1e-4)
        assert gates.mean == pytest.approx(gate_C.mean().item(), abs=1e-4)
        assert gates.std == pytest.approx(gate_C.std(correction=0).item(), abs=1e-4)


@pytest.mark.parametrize("attention", ["se", "cbam", "srm", "simam", "eca_ns"])
def test_every_attention_that_rescales_channels_has_gates(attention: str) -> None:
    explained = explain_image(classifier_of(network(attention)), make_image())
    assert len(explained.gates) == 9
    assert all(math.isfinite(value) for gates in explained.gates for value in gates.values)


@pytest.mark.parametrize("attention", ["aa", "nl", "a2", "gc"])
def test_a_method_that_does_not_rescale_has_no_gates(attention: str) -> None:
    explained = explain_image(classifier_of(network(attention)), make_image())
    assert explained.gates == ()
    assert explained.heatmap


def test_attention_of_timm_has_gates_and_a_network_without_has_none() -> None:
    timms = eca_hub.create_model("ecaresnet26t", num_classes=2)
    explained = explain_image(classifier_of(timms, side_px=64), make_image())
    assert len(explained.gates) == 8
    assert [len(gates.values) for gates in explained.gates] == [256, 256, 512, 512, 1024, 1024, 2048, 2048]
    assert explain_image(classifier_of(network("none")), make_image()).gates == ()


def test_an_explanation_agrees_with_the_classifier_and_leaves_it_unchanged() -> None:
    classifier = classifier_of(network("eca"))
    before = classifier.predict(make_image(), top_k=2)
    explained = explain_image(classifier, make_image())
    assert explained.prediction.label == before[0].label
    assert explained.prediction.score == pytest.approx(before[0].score, abs=1e-5)
    other = explain_image(classifier, make_image(), class_index=1 - before[0].index)
    assert other.prediction.label == before[1].label
    assert classifier.predict(make_image(), top_k=2) == before
    assert all(parameter.grad is None for parameter in classifier.model.parameters())
    assert not any(module._forward_hooks for module in classifier.model.modules())


class Sides(nn.Module):
    """Sums the brightness of the left half for one class, of the right half for the other."""

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


def test_the_heatmap_is_highest_where_the_evidence_is() -> None:
    classifier = classifier_of(Sides())
    pixels = torch.zeros(3, 32, 32, dtype=torch.uint8)
    pixels[:, 8:16, 24:32] = 255
    explained = explain_image(classifier, pixels, class_index=1)
    heatmap = torch.tensor(explained.heatmap)
    assert heatmap.shape == (4, 4)
    assert heatmap.max() == 1.0
    assert (heatmap == 1).nonzero().tolist() == [[1, 3]]


class Steep(Sides):
    """Finite scores, with a gradient whose product with the map is beyond float32."""

    def forward(self, x: Tensor) -> Tensor:
        map_N2HW = self.bright(1e20 * x)
        result: Tensor = self.weight * 1e25 * (map_N2HW - map_N2HW.detach()).sum((2, 3))
        return result


def test_an_explanation_that_is_not_finite_is_refused() -> None:
    pixels = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    with pytest.raises(NonFiniteScores, match="gives no finite scores for this image"):
        explain_image(classifier_of(Steep()), pixels, class_index=1)


def test_a_network_without_a_map_and_an_unknown_class_are_refused() -> None:
    pixels = torch.zeros(3, 4, 4, dtype=torch.uint8)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    with pytest.raises(InvalidConfig, match="no map"):
        explain_image(classifier_of(flat, 4), pixels)
    for index in (-1, 2, 1.5, "1", True):
        with pytest.raises(InvalidConfig, match=f"class_index is {index!r}; it must be 0 to 1"):
            explain_image(classifier_of(network("eca")), pixels, class_index=index)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "pixels",
    [torch.zeros(32, 32, dtype=torch.uint8), torch.rand(3, 32, 32), torch.zeros(1, 32, 32, dtype=torch.uint8)],
    ids=["two axes", "float", "gray"],
)
def test_pixels_that_are_no_input_of_the_network_are_refused(pixels: Tensor) -> None:
    with pytest.raises(InvalidConfig, match=r"The pixels are .*; the network needs torch\.uint8, \(3, 32, 32\)"):
        explain_image(classifier_of(network("eca")), pixels)


class Halve(nn.Module):
    """A user's attention, which is not in this library."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels, 1, 1), 0.5))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW * self.weight


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "resnext26ts"])
def test_a_users_attention_has_gates(name: str) -> None:
    model = eca_hub.create_model(name, attention=Halve, num_classes=2)
    explained = explain_image(classifier_of(model, 64), torch.zeros(3, 64, 64, dtype=torch.uint8).random_(255))
    assert len(explained.gates) == sum(isinstance(module, Halve) for module in model.modules())
    assert all(
        value == pytest.approx(0.5, abs=1e-3) for gates in explained.gates for value in gates.values if value != 1
    )


@pytest.mark.parametrize(
    ("name", "side_px", "positions"),
    [
        ("convnext_atto", 64, 2),
        ("mobilenet_v2", 64, 2),
        pytest.param("swin_tiny_patch4_window7_224", 224, 7, marks=pytest.mark.slow),
        pytest.param("resnet18", 96, 3, marks=pytest.mark.slow),
    ],
)
def test_a_heatmap_has_one_number_a_position_in_any_layout(name: str, side_px: int, positions: int) -> None:
    torch.manual_seed(0)
    classifier = classifier_of(eca_hub.create_model(name, num_classes=2), side_px)
    pixels = torch.zeros(3, side_px, side_px, dtype=torch.uint8).random_(255)
    explained = explain_image(classifier, pixels)
    assert torch.tensor(explained.heatmap).shape == (positions, positions)
    expected_K = classifier.probabilities(pixels[None])[0]
    assert explained.prediction.score == pytest.approx(expected_K.max().item(), abs=1e-5)
