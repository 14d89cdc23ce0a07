"""What networks cost: the closed form by hand, the counts that were derived from the paper, and its printed tables."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from eca_hub.commands.complexity import main
from eca_hub.errors import InvalidConfig, InvalidUsage, UnknownName
from eca_hub.models.build import build_model, create_model
from eca_hub.models.complexity import count_complexity
from eca_hub.models.config import ImageConfig, ModelConfig
from eca_hub.models.detectors import create_detector
from eca_hub.models.paper import compare, prints_as, published_rows, sources, tables

RELEASED = {"kernel_sizes": "released"}
# Exact totals of the paper's rule, derived with the tool of its time.
DERIVED = [
    ("resnet18", "none", {}, 11689512, 1826100248),
    ("resnet18", "se", {}, 11776552, 1827026968),
    ("resnet18", "eca", RELEASED, 11689556, 1826867224),
    ("resnet34", "none", {}, 21797672, 3681433112),
    ("resnet34", "se", {}, 21954856, 3683127320),
    ("resnet34", "eca", RELEASED, 21797744, 3682837272),
    ("resnet50", "none", {}, 25557032, 4142111768),
    ("resnet50", "se", {}, 28071976, 4152661016),
    ("resnet50", "eca", RELEASED, 25557112, 4147732504),
    ("resnet101", "none", {}, 44549160, 7878216728),
    ("resnet101", "se", {}, 49292328, 7896634392),
    ("resnet101", "eca", RELEASED, 44549317, 7887349784),
    ("resnet152", "none", {}, 60192808, 11619941400),
    ("resnet152", "se", {}, 66770984, 11646243864),
    ("resnet152", "eca", RELEASED, 60193042, 11633377304),
    ("mobilenet_v2", "none", {}, 3504872, 334871512),
    ("mobilenet_v2", "se", {"reduction": 8}, 3561800, 335557688),
    ("mobilenet_v2", "eca", RELEASED, 3504903, 335449016),
]


@pytest.mark.parametrize(
    ("architecture", "attention", "options", "parameters", "operations"),
    [
        pytest.param(*row, marks=[pytest.mark.slow] if row[0] in ("resnet34", "resnet101", "resnet152") else [])
        for row in DERIVED
    ],
)
def test_the_closed_form_gives_the_derived_totals(
    architecture: str, attention: str, options: dict[str, object], parameters: int, operations: int
) -> None:
    complexity = count_complexity(ModelConfig(architecture, attention, options))
    assert (complexity.num_parameters, complexity.paper_multiply_adds) == (parameters, operations)


@pytest.mark.parametrize(
    ("architecture", "multiply_adds"),
    [("resnet18", 1814073344), ("resnet50", 4089184256), ("mobilenet_v2", 300774272)],
)
def test_the_plain_count_is_what_was_derived(architecture: str, multiply_adds: int) -> None:
    assert count_complexity(ModelConfig(architecture, "none")).multiply_adds == multiply_adds


@pytest.mark.parametrize(
    "name",
    [
        "eca_resnet50",
        "aa_resnet18",
        *(pytest.param(f"{name}_resnet18", marks=pytest.mark.slow) for name in ("a2", "nl", "gsop")),
    ],
)
def test_the_plain_count_is_half_of_what_torch_counts(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 224, 224, device="meta"))
    assert count_complexity(model).multiply_adds == counter.get_total_flops() // 2


class ByLayers(nn.Module):
    """Two calls of one ReLU, and a gate that averages by a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU()
        self.grouped = nn.Conv2d(8, 4, 1, groups=2, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 5)

    def average(self, x_NCHW: Tensor) -> Tensor:
        average_NC: Tensor = self.pool(x_NCHW).flatten(1)
        return average_NC

    def forward(self, x_NCHW: Tensor) -> Tensor:
        map_NCHW = self.act(self.grouped(self.act(self.norm(self.conv(x_NCHW)))))
        logits_NK: Tensor = self.head(self.average(map_NCHW))
        return logits_NK


class Mean(nn.Module):
    def forward(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW.mean((2, 3))


class ByFunctions(ByLayers):
    """The same numbers from a gate that calls functions."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Mean()

    def average(self, x_NCHW: Tensor) -> Tensor:
        average_NC: Tensor = self.gate(x_NCHW)
        return average_NC


@pytest.mark.parametrize("make", [ByLayers, ByFunctions])
def test_each_kind_of_layer_costs_what_the_rule_says(make: type[nn.Module]) -> None:
    complexity = count_complexity(make(), height_px=16, width_px=12)
    positions = 8 * 6
    assert complexity.paper_terms == {
        "convolution": positions * 8 * (3 * 9 + 1) + positions * 4 * 4,
        "normalization": 4 * positions * 8,
        "activation": positions * 4,
        "pooling": positions * 4 + 4,
        "linear": (2 * 4 - 1) * 5,
    }
    assert complexity.tally.activated == positions * (8 + 4)
    assert complexity.poster_multiply_adds == complexity.paper_multiply_adds - positions * 4
    assert complexity.multiply_adds == positions * (8 * 27 + 4 * 4) + 4 * 5


def test_attention_behind_the_last_relu_of_a_block_leaves_one_relu_a_block() -> None:
    with_attention, without = (count_complexity(ModelConfig("resnet20", attention)) for attention in ("nl", "none"))
    assert with_attention.tally.activated_once == without.tally.activated_once


def test_counting_leaves_the_network_as_it_is() -> None:
    network = ByLayers().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    count_complexity(network)
    assert network.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_the_last_average_of_mobilenet_is_no_layer() -> None:
    assert count_complexity(torchvision.models.mobilenet_v2()).tally.averaged == 0
    assert count_complexity(ModelConfig("resnet18", "none")).tally.averaged == 512 * 7 * 7


@pytest.mark.parametrize(
    ("value", "printed", "unit", "verdict"),
    [
        (25557032, "24.37M", 2**20, True),
        (60193042, "57.41M", 2**20, False),
        (60193042, "57.40M", 2**20, True),
        (1825471392, "1.700G", 2**30, True),
        (2_500_000, "2.5M", 10**6, True),
        (2_450_000, "2.5M", 10**6, True),
        (2_449_999, "2.5M", 10**6, False),
        (1, "", 1, None),
    ],
)
def test_a_figure_is_met_at_its_own_digits(value: int, printed: str, unit: int, verdict: bool | None) -> None:
    assert prints_as(value, printed, unit) is verdict


@pytest.mark.slow
def test_table_2_has_ten_variants_with_exact_parameters() -> None:
    rows = [compare(row) for row in published_rows("2")]
    assert [row.attention_parameters for row in rows] == [
        *(0, 2514944, 0, 15104, 20119552, 1257472, 241664, 120832, 45312, 48)
    ]
    assert all(row.parameters_match for row in rows)


# The rows that cannot be met, and which figure of them; the note of each has the reason.
UNMET = {
    ("3", "ResNet-50", "A2-Nets"): (False, False),
    ("3", "ResNet-50", "GCNet"): (True, False),
    ("3", "ResNet-50", "GSoP-Net1"): (True, False),
    ("3", "ResNet-50", "AA-Net"): (False, False),
    ("3", "ResNet-101", "CBAM"): (True, False),
    ("3", "ResNet-101", "AA-Net"): (False, False),
    ("3", "MobileNetV2", "SENet"): (True, False),
    ("4", "ResNet-200", "ResNet-200"): (False, False),
    ("4", "ResNeXt-101", "ResNeXt-101"): (False, False),
    ("5", "ResNet-50", "+ 1 NL"): (True, False),
    ("5", "ResNet-50", "+ GC"): (False, False),
}


def check_rows(table: str, *backbones: str) -> int:
    """Compare the rows of these backbones, or all of them; return how many."""
    published = published_rows(table)  # type: ignore[arg-type]
    rows = [compare(row) for row in published if not backbones or row.backbone in backbones]
    unmet = {
        (table, row.published.backbone, row.published.method): (row.parameters_match, row.multiply_adds_match)
        for row in rows
        if not row.matches
    }
    known = {key: verdicts for key, verdicts in UNMET.items() if key[0] == table}
    assert unmet == {key: verdicts for key, verdicts in known.items() if not backbones or key[1] in backbones}
    assert all(len(row.published.note) > 40 for row in rows if not row.matches)
    return len(rows)


def test_figures_of_table_3_are_met_or_have_a_reason_why_not() -> None:
    assert check_rows("3", "ResNet-18", "MobileNetV2") == 6


@pytest.mark.slow
@pytest.mark.parametrize(("table", "num_rows"), [("3", 26), ("4", 7), ("5", 20)])
def test_every_figure_is_met_or_has_a_reason_why_not(table: str, num_rows: int) -> None:
    assert check_rows(table) == num_rows


def test_every_row_names_where_it_was_printed() -> None:
    rows = [row for table in tables() for row in published_rows(table)]
    assert len(rows) == 63
    assert all(row.sources and set(row.sources) <= set(sources()) for row in rows)


@pytest.mark.slow
def test_the_table_is_printed_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--table", "4"]) == 0
    printed = capsys.readouterr().out
    assert "24.37M  matches" in printed
    assert "74.45M  differs" in printed
    assert "[1] No unit and no known ResNet-200" in printed
    assert max(map(len, printed.split("\n\n")[1].splitlines())) < 160


@pytest.mark.slow
def test_the_table_is_printed_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--table", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["table"], len(document["rows"])) == (2, 10)
    assert all(row["matches"] for row in document["rows"])
    assert document["rows"][1]["attention_parameters"] == 2514944
    assert set(document["sources"]) == {"paper", "poster"}


def test_one_network_is_counted_by_both_rules(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "eca_resnet50", "--attention_args.kernel_sizes", "released", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["parameters"], document["parameters_m_2e20"]) == (25557112, 24.3732)
    assert (document["multiply_adds_plain"], document["multiply_adds_paper"]) == (4089270528, 4147732504)
    assert main(["--model", "resnet18", "--attention", "se", "--num_classes", "10", "--image_size_px", "64"]) == 0
    assert "se_resnet18 (" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["--table", "7"], InvalidUsage),
        (["--table", "3", "--model", "resnet18"], InvalidUsage),
        (["--attention", "se"], InvalidUsage),
        (["--model", "resnet5"], UnknownName),
        (["--model", "resnet18", "--attention", "sea"], UnknownName),
        (["--model", "resnet18", "--num_classes", "0"], InvalidUsage),
        (["--model", "inception_v3", "--image_size_px", "8"], InvalidConfig),
        (["--model", "resnet18", "--image_size_px", "0"], InvalidUsage),
        (["--model", "resnet18", "--image_size_px", "100000000000"], InvalidUsage),
        (["--model", "resnet18", "--num_classes", "100000000000000000"], InvalidUsage),
        (["--model", ""], UnknownName),
    ],
)
def test_mistakes_are_reported(argv: list[str], error: type[Exception]) -> None:
    with pytest.raises(error):
        main(argv)


@pytest.mark.parametrize("attention", ["se", "none"])
def test_an_attention_that_differs_from_that_of_the_name_is_refused(attention: str) -> None:
    with pytest.raises(InvalidConfig, match=f"names attention 'eca', but attention is '{attention}'"):
        main(["--model", "eca_resnet18", "--attention", attention])


@pytest.mark.parametrize(
    "argv", [["--num_classes", "10"], ["--image_size_px", "64"], ["--attention_args.reduction", "8"]]
)
def test_an_option_of_one_network_is_refused_beside_a_table(argv: list[str]) -> None:
    with pytest.raises(InvalidUsage, match=r"needs a network\. Add --model"):
        main([*argv, "--table", "2"])


@pytest.mark.parametrize("side_px", [0, 10**11, "32", 32.5])
def test_a_size_that_no_image_can_have_is_refused(side_px: Any) -> None:
    with pytest.raises(InvalidConfig, match=f"height_px is {side_px!r}; it must be a whole number, 1 to 16384"):
        count_complexity(create_model("resnet20"), height_px=side_px, width_px=32)


@pytest.mark.parametrize("num_classes", [0, 10**17])
def test_a_number_of_classes_that_no_network_can_have_is_refused(num_classes: int) -> None:
    with pytest.raises(InvalidConfig, match=f"num_classes is {num_classes}; it must be a whole number, 1 to 100000"):
        create_model("resnet20", num_classes=num_classes)


def test_a_network_is_counted_for_the_images_of_its_configuration() -> None:
    config = ModelConfig("resnet20", "eca", image=ImageConfig(24, 32, in_chans=1), labels=("a", "b"))
    complexity = count_complexity(build_model(config))
    assert (complexity.height_px, complexity.width_px) == (24, 32)
    assert complexity == count_complexity(config)


@pytest.mark.parametrize(
    "make", [lambda: "resnet18", lambda: None, lambda: create_detector(backbone="resnet18", num_classes=2)]
)
def test_what_is_no_classifier_is_not_counted(make: Callable[[], Any]) -> None:
    with pytest.raises(InvalidConfig, match=r"cannot be counted\. Give a classifier's network"):
        count_complexity(make())


def test_activations_are_those_of_timms_tables() -> None:
    """timm's results/model_metadata-in1k.csv: 11.11 million for resnet50 at 224 px, 2.48 for resnet18."""
    for architecture, expected in (("resnet50", 11.11), ("resnet18", 2.48)):
        found = count_complexity(ModelConfig(architecture, "none")).num_activations
        assert round(found / 1e6, 2) == expected
