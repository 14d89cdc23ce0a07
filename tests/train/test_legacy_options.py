"""Configurations with the option names of earlier versions still load, with one warning."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from eca_hub.__main__ import main
from eca_hub.train.legacy_options import RENAMED, upgrade_argv, upgrade_config

FIXTURES = Path(__file__).parent / "fixtures"
SAVED = sorted(FIXTURES.glob("config_*.yaml"))


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flattened: dict[str, Any] = {}
    for name, value in config.items():
        flattened |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flattened


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.stem)
def test_a_saved_config_of_an_earlier_version_is_parsed_with_every_value(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(FutureWarning, match="Old spellings of options") as warned, pytest.raises(SystemExit) as exit_:
        main(["fit", "--config", str(path), "--print_config"])
    assert exit_.value.code in (0, None)
    assert len(warned) == 1
    parsed, before = flat(yaml.safe_load(capsys.readouterr().out)), yaml.safe_load(path.read_text())
    expected = flat(upgrade_config(before))
    of_the_package = {"model.architecture", "model.attention", "model.attention_args", "model.stem"}
    dropped = of_the_package if before["model"]["from_pretrained"] else set()
    assert len(expected) >= len(flat(before).keys() - dropped)
    for option in expected.keys() - {"run_dir"}:
        assert parsed[option] == expected[option], option


def test_every_old_option_takes_its_value_along() -> None:
    config = yaml.safe_load((FIXTURES / "config_mixup.yaml").read_text())
    renamed: dict[str, str] = {}
    upgraded = upgrade_config(config, renamed)
    assert set(RENAMED) <= set(renamed)
    assert upgraded["model"]["mix"] == {"mixup_alpha": 0.2, "cutmix_alpha": 1.0, "mix_prob": 0.5}
    assert upgraded["model"]["freeze"] == "none"
    assert upgraded["data"]["init_args"]["augment"]["crop"] == "random_resized_crop"
    assert "average_decay" in config["model"]


def test_the_momentum_of_earlier_versions_is_sgd_without_nesterov() -> None:
    config = yaml.safe_load((FIXTURES / "config_frozen_norms.yaml").read_text())
    optim = upgrade_config(config)["model"]["optim"]
    assert (optim["name"], optim["nesterov"], optim["step_size_epochs"]) == ("sgd", False, 7)


def test_old_options_on_the_command_line_become_new_ones() -> None:
    words = ["--model.average_decay", "0.9", "--model.train=head", "--data.augment.crop", "resized", "--run_dir", "all"]
    with pytest.warns(FutureWarning, match="model.average_decay is now model.ema_decay"):
        upgraded = upgrade_argv(words)
    assert upgraded == [
        "--model.ema_decay", "0.9", "--model.freeze=backbone", "--data.augment.crop", "random_resized_crop",
        "--run_dir", "all",
    ]  # fmt: skip


def test_new_options_and_files_that_cannot_be_read_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "new.yaml").write_text("model: {ema_decay: 0.5}")
    (tmp_path / "broken.yaml").write_text("model: {")
    words = ["-c", str(tmp_path / "new.yaml"), f"--config={tmp_path / 'broken.yaml'}", "-c", "absent.yaml", "--resume"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert upgrade_argv(words) == words
