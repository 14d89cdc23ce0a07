"""`eca-hub fit`: every configuration in experiments/ runs, and a run leaves a package that classifies."""

import csv
import json
from pathlib import Path

import pytest

from eca_hub import Classifier
from eca_hub.__main__ import main
from eca_hub.train.data import DigitsData

CONFIGS = sorted((Path(__file__).parents[2] / "experiments").rglob("*.yaml"))
SHORT = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch of two batches."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = next(path for path in CONFIGS if path.match("digits/eca.yaml"))
    assert main(["fit", "--config", str(config), "--run_dir", str(folder), *SHORT]) == 0
    return folder


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_configuration_trains(config: Path, tmp_path: Path) -> None:
    assert main(["fit", "--config", str(config), "--run_dir", str(tmp_path / "run"), *SHORT]) == 0
    assert (tmp_path / "run" / "model" / "config.json").is_file()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_configuration_says_its_claim_command_and_expected_result(config: Path) -> None:
    first, second, third, *_ = config.read_text().splitlines()
    assert first.startswith("# Claim: ")
    assert second.startswith(f"# Command: eca-hub fit --config experiments/{config.parent.name}/{config.name}")
    assert third.startswith("# Expected: ")


def test_everything_of_a_run_lies_in_its_folder(run_dir: Path) -> None:
    assert {path.name for path in run_dir.iterdir()} == {
        "checkpoints", "config.yaml", "curves.png", "metrics.csv", "model", "result.json",
    }  # fmt: skip
    assert {path.name for path in (run_dir / "model").iterdir()} == {"config.json", "model.safetensors", "README.md"}


def test_the_log_has_a_line_an_epoch_with_loss_and_accuracy(run_dir: Path) -> None:
    with (run_dir / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"epoch", "train_loss", "train_top1", "val_loss", "val_top1", "lr"} <= set(rows[0])


def test_the_published_number_is_that_of_the_package(run_dir: Path) -> None:
    result = json.loads((run_dir / "result.json").read_text())
    classifier = Classifier.from_pretrained(run_dir)
    files = list(DigitsData().png_files("test"))
    answers = classifier.predict([content for content, _ in files], top_k=1)
    right = sum(answer.label == str(digit) for [answer], (_, digit) in zip(answers, files, strict=True))
    assert right / len(files) == pytest.approx(result["test_top1"])
    assert f"| {result['test_top1']:.4f} |" in (run_dir / "model" / "README.md").read_text()


def test_a_finished_run_is_not_replaced_by_mistake(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run_dir / "result.json").read_bytes()
    assert main(["fit", "--run_dir", str(run_dir), "--data", "DigitsData"]) == 2
    assert f"{run_dir} holds a finished run. Give another --run_dir" in capsys.readouterr().err
    assert (run_dir / "result.json").read_bytes() == before


def test_a_run_folder_that_is_a_file_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").touch()
    assert main(["fit", "--run_dir", str(tmp_path / "run"), "--data", "DigitsData"]) == 2
    assert "cannot be used: File exists" in capsys.readouterr().err


def test_an_unknown_architecture_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["fit", "--run_dir", str(tmp_path / "run"), "--data", "DigitsData", "--model.architecture", "resnet5"]
    assert main(args) == 2
    assert "There is no architecture 'resnet5'. Did you mean" in capsys.readouterr().err
