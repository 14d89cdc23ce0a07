"""`eca-hub models --pretrained`: timm's weights with ECA, with their published accuracy."""

import json

import pytest
import timm

from eca_hub.commands.models import main
from eca_hub.errors import InvalidUsage
from eca_hub.models.catalog import published_results, published_weights


def test_weights_are_listed_with_size_accuracy_license_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ecaresnet*", "--pretrained", "--json"]) == 0
    rows = {row["model"]: row for row in json.loads(capsys.readouterr().out)}
    row = rows["timm/ecaresnet50d.miil_in1k"]
    assert (row["image_size_px"], row["parameters_millions"], row["license"]) == (224, 25.58, "apache-2.0")
    assert row["accuracies"] == [
        {"image_size_px": 224, "top1": 80.634, "top5": 95.31},
        {"image_size_px": 288, "top1": 81.648, "top5": 95.884},
    ]
    assert all(row["source"] for row in rows.values())


def test_every_published_result_is_of_weights_in_the_registry_of_timm() -> None:
    assert published_results()
    assert set(published_results()) <= set(timm.list_pretrained())


def test_published_results_include_the_size_of_the_package() -> None:
    # A later timm may have weights without a result here.
    for weights in filter(lambda each: each.accuracies, published_weights()):
        assert weights.image_size_px in [row.image_size_px for row in weights.accuracies], weights.model
        assert all(50 < row.top1 < row.top5 < 100 for row in weights.accuracies), weights.model


def test_the_most_accurate_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--pretrained"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["model", "params", "px", "top-1", "top-5", "license"]
    assert lines[1].split() == ["timm/ecaresnet269d.ra2_in1k", "102.09", "M", "320", "84.72", "97.18", "apache-2.0"]
    assert lines[2].split() == ["352", "84.97", "97.22", "apache-2.0"]
    assert lines[-1] == "Try: eca-hub classify image.jpg --model timm/ecaresnet269d.ra2_in1k"


def test_the_list_for_scripts_has_the_trained_models_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eca_resnet20*", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    found = [(row["name"], row["architecture"], row["attention"]) for row in rows]
    assert found[0] == ("eca_resnet20.cifar10", "resnet20", "eca")
    assert ("eca_resnet20", "resnet20", "eca") in found[1:]


@pytest.mark.parametrize(
    "options", [["--releases", "--timm"], ["--pretrained", "--timm"], ["--pretrained", "--releases"]]
)
def test_lists_that_exclude_each_other_are_refused(options: list[str]) -> None:
    with pytest.raises(InvalidUsage, match="exclude each other"):
        main(options)


def test_a_pattern_without_a_match_lists_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zzz", "--releases"]) == 0
    assert capsys.readouterr().out == "No release matches 'zzz'. All of them: eca-hub models --releases\n"
    assert main(["vgg*", "--pretrained"]) == 0
    assert capsys.readouterr().out == "No weights match 'vgg*'. All of them: eca-hub models --pretrained\n"
