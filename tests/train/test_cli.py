"""The short help needs no Lightning and agrees with the real options."""

import subprocess
import sys

import jsonargparse
import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from eca_hub.train import cli
from eca_hub.train.callbacks.checkpointing import CheckpointConfig
from eca_hub.train.data import ImageFolderData
from eca_hub.train.module import ImageClassifier


@pytest.fixture(scope="module")
def defaults() -> jsonargparse.Namespace:
    """Of all options, asked for once: it takes a second."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(ImageClassifier, "model")
    parser.add_class_arguments(ImageFolderData, "data")
    parser.add_class_arguments(Trainer, "trainer")
    parser.add_class_arguments(CheckpointConfig, "save")
    return parser.get_defaults()


OF_THE_RUN = (
    "config",
    "optimizer",
    "run_dir",
    "resume",
    "overwrite",
    "allow_changes",
    "push_to",
    "seed_everything",
    "data",
)


@pytest.mark.parametrize("option", cli.OPTIONS, ids=lambda option: option.name)
def test_the_short_help_matches_the_real_options(option: cli.Option, defaults: jsonargparse.Namespace) -> None:
    if option.name in OF_THE_RUN:
        return
    assert option.name in defaults.keys()  # noqa: SIM118 - a namespace
    if option.name != "trainer.max_epochs":
        assert option.default == "" or str(defaults[option.name]) == option.default


def test_the_short_help_is_a_screen_and_names_the_long_one() -> None:
    for command in ("fit", "validate", "test", "predict"):
        text = cli.short_help(command)
        assert len(text.splitlines()) < 45
        assert max(map(len, text.splitlines())) <= 140
        assert f"eca-hub {command} --help_all" in text


def test_the_short_help_imports_neither_torch_nor_lightning() -> None:
    script = "import sys; from eca_hub.train.cli import fit; fit(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: eca-hub fit" in done.stdout
