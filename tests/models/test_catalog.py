"""The list of networks: complete, and right without building each."""

import json

import pytest

from eca_hub.attention import ATTENTIONS
from eca_hub.commands.models import main
from eca_hub.models.build import list_models
from eca_hub.models.catalog import networks, timm_networks
from tests.models.test_backbones import parameters_of


def test_every_method_is_listed_with_a_backbone() -> None:
    assert {network.attention for network in networks("*resnet20")} == {"none", *ATTENTIONS}


@pytest.mark.parametrize("pattern", ["*mobilenet_v2", pytest.param("*", marks=pytest.mark.slow)])
def test_what_cannot_be_built_is_not_listed(pattern: str) -> None:
    names = {network.name for network in networks(pattern)}
    assert "se_mobilenet_v2" in names
    assert not names & {"aa_mobilenet_v2", "se_gc1_mobilenet_v2", "eca_densenet161"}
    assert names == set(list_models(pattern))


@pytest.mark.parametrize("pattern", ["eca_*resnet18", "aa_resnet18", "gsop_resnet50", "se*_mobilenet_v2"])
def test_the_listed_parameters_are_those_of_the_built_network(pattern: str) -> None:
    found = list(networks(pattern))
    assert found
    assert {network.name: network.parameters for network in found} == {
        network.name: parameters_of(network.name) for network in found
    }


@pytest.mark.soak
def test_all_listed_parameters_are_those_of_the_built_networks() -> None:
    for network in networks("*"):
        assert network.parameters == parameters_of(network.name), network.name


@pytest.mark.slow
def test_networks_of_timm_are_listed_from_its_registry() -> None:
    found = {network.name: network.parameters for network in timm_networks("ecaresnet50*")}
    assert found["ecaresnet50d"] == 25576350
    assert found["ecaresnet50t"] == 25573814


def test_the_list_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eca_resnet50"]) == 0
    assert "25,557,118   +86 for attention" in capsys.readouterr().out
    assert main(["*resnet20", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"name", "architecture", "attention", "parameters", "attention_parameters"} == set(rows[0])
    assert main(["nothing*"]) == 0
    assert "No network matches 'nothing*'" in capsys.readouterr().out
