"""The paper's rows as configurations: current, complete and buildable."""

import re

import pytest
import torch
import yaml

from eca_hub import create_model
from eca_hub.models.build import resolve_config
from eca_hub.models.config import ModelConfig
from eca_hub.models.paper import published_rows
from experiments import tables

ROWS = [row for row in tables.rows() if row.file]


def test_the_files_match_the_tables() -> None:
    for path, text in tables.files().items():
        assert path.read_text() == text, f"{path.name} is outdated; run: python -m experiments.tables"
    assert set(tables.ROWS.glob("*.yaml")) == {row.file for row in ROWS}


def test_every_row_of_the_classification_tables_has_a_configuration_or_is_a_counted_peer() -> None:
    assert len(tables.rows()) == sum(len(published_rows(table)) for table in ("2", "3", "4")) + 10
    assert {row.architecture for row in tables.rows() if not row.file} == {
        *("resnet200", "inception_v3", "resnext101_32x4d", "densenet264", "densenet161")
    }


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.file.stem)
def test_every_configuration_names_a_network_that_can_be_built(row: tables.ConfigRow) -> None:
    assert row.file is not None
    model = yaml.safe_load(row.file.read_text())["model"]
    resolve_config(ModelConfig(model["architecture"], model["attention"], model.get("attention_args", {})))


@pytest.mark.parametrize("recipe", sorted({row.recipe for row in ROWS}))
def test_four_gpus_have_the_batch_that_the_recipe_claims(recipe: str) -> None:
    text = (tables.ROOT / "configs" / "imagenet" / recipe).read_text()
    claimed = re.search(r"^# Claim: .* batch (\d+),", text)
    assert claimed is not None
    assert 4 * yaml.safe_load(text)["data"]["init_args"]["batch_size"] == int(claimed[1])


@pytest.mark.slow
def test_every_network_of_the_rows_is_built() -> None:
    with torch.device("meta"):
        for row in ROWS:
            create_model(row.architecture, attention=row.attention, **row.attention_args)
