"""Gates averaged over the images of a class, and their figure."""

from pathlib import Path

import pytest

from eca_hub import Classifier, create_model, explain_image
from eca_hub.__main__ import main
from eca_hub.errors import InvalidUsage
from eca_hub.models.config import ImageConfig, ModelConfig
from eca_hub.report.gates import mean_gates
from eca_hub.sweep.results import table_beside, write_table
from tests.conftest import make_image


def classifier_with(attention: str) -> Classifier:
    config = ModelConfig("resnet20", attention, {}, ("a", "b"), ImageConfig(32, 32))
    return Classifier(create_model("resnet20", attention=attention, num_classes=2), config, model_id="x", revision="")


def test_a_row_is_the_mean_over_the_images_of_the_last_block_of_a_stage() -> None:
    classifier = classifier_with("eca")
    images = [make_image(width) for width in (40, 80)]
    rows = mean_gates(classifier, {"cat": images})
    assert [row["stage"] for row in rows] == [1] * 16 + [2] * 32 + [3] * 64
    assert {row["module"] for row in rows} == {"layer1.2.se", "layer2.2.se", "layer3.2.se"}
    last = [explain_image(classifier, image).gates[-1].values[5] for image in images]
    assert rows[16 + 32 + 5]["gate"] == pytest.approx(sum(last) / 2, abs=1e-5)


def test_a_network_without_attention_has_no_gates() -> None:
    with pytest.raises(InvalidUsage, match="x has no attention"):
        mean_gates(classifier_with("none"), {"cat": [make_image()]})


def test_a_table_of_gates_beside_the_results_is_drawn(tmp_path: Path) -> None:
    rows = [
        {"run": f"{method}{seed}", "attention": method, "seed": seed, "config_hash": "x", "test_top1": 0.5}
        for method in ("none", "eca")
        for seed in range(2)
    ]
    write_table(rows, tmp_path / "results.csv")
    gates = [
        {"stage": stage, "module": "m", "label": label, "channel": channel, "gate": 0.5}
        for stage in (1, 2)
        for label in ("cat", "dog")
        for channel in range(4)
    ]
    write_table(gates, table_beside(tmp_path / "results.csv", "gates"))
    assert main(["report", str(tmp_path / "results.csv"), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "figures" / "gates.png").is_file()
