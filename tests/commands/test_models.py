"""`eca-hub models --pretrained`: what timm's registry records of weights."""

import json

import pytest

from eca_hub.commands.models import main


def test_pretrained_weights_are_listed_with_license_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ecaresnet*", "--pretrained", "--json"]) == 0
    rows = {row["model"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["timm/ecaresnet50d.miil_in1k"]["image_size_px"] == 224
    assert all(row["license"] and row["source"] for row in rows.values())


def test_a_pattern_without_a_match_lists_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vgg*", "--pretrained"]) == 0
    assert capsys.readouterr().out == ""
