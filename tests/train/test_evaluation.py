"""`eca-hub test`, `validate` and `predict` of a package: with its own preprocessing, unless another is given."""

import csv
import shutil
from pathlib import Path

import pytest
import yaml

from eca_hub import Classifier
from eca_hub.__main__ import main
from eca_hub.models.config import ImageConfig
from eca_hub.train.lightning_cli import RunCLI
from tests.conftest import LABELS, TINY, make_image


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Class folders of the three classes of `tiny_package`."""
    for split in ("train", "test"):
        for number, label in enumerate(LABELS):
            (tmp_path / "images" / split / label).mkdir(parents=True)
            path = tmp_path / "images" / split / label / "1.png"
            path.write_bytes(make_image(40 + 10 * number, 30))
    return tmp_path / "images"


def preprocessing(monkeypatch: pytest.MonkeyPatch, *words: str) -> ImageConfig:
    """Return the preprocessing with which a command evaluates; nothing is run."""
    configs: list[ImageConfig] = []
    monkeypatch.setattr(RunCLI, "_run_subcommand", lambda self, command: configs.append(self.datamodule.image))
    monkeypatch.setattr(RunCLI, "after_test", lambda self: None)
    assert main(["test", *words]) == 0
    [image] = configs
    return image


def test_a_package_is_evaluated_with_its_own_preprocessing_and_with_what_is_given(
    tiny_package: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ["--data", "ImageFolderData", "--data.root", str(images)]
    run = tmp_path / "run"
    shutil.copytree(tiny_package, run / "model")
    for package in (["--model.from_pretrained", str(tiny_package)], ["--run_dir", str(run)]):
        assert preprocessing(monkeypatch, *data, *package, "--trainer.accelerator", "cpu") == TINY.image
        given = preprocessing(monkeypatch, *data, *package, "--data.image.crop=0.5", "--data.image.width_px", "24")
        assert (given.height_px, given.width_px, given.crop) == (16, 24, 0.5)
    config = tmp_path / "run.yaml"
    init_args = {"root": str(images), "image": {"height_px": 32}}
    config.write_text(yaml.safe_dump({"data": {"class_path": "ImageFolderData", "init_args": init_args}}))
    named = preprocessing(monkeypatch, "-c", str(config), "--model.from_pretrained", str(tiny_package))
    assert (named.height_px, named.width_px) == (32, 16)
    # The config.yaml of a run is that of its own package, not of another one.
    shutil.copy(config, run / "config.yaml")
    other = preprocessing(monkeypatch, "--run_dir", str(run), "--model.from_pretrained", str(tiny_package))
    assert other == TINY.image


def test_a_test_split_of_which_no_image_can_be_decoded_is_not_measured(
    tiny_package: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (images / "test").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:30])
    data = ["--data", "ImageFolderData", "--data.root", str(images), "--data.max_bad_samples", "9"]
    words = ["--model.from_pretrained", str(tiny_package), "--run_dir", str(tmp_path), "--trainer.accelerator", "cpu"]
    assert main(["test", *data, *words]) == 2
    assert "No image of the test split could be decoded" in capsys.readouterr().err


def test_predictions_of_a_package_are_those_of_the_classifier(tiny_package: Path, images: Path, tmp_path: Path) -> None:
    words = ["--data", "ImageFolderData", "--data.root", str(images), "--model.from_pretrained", str(tiny_package)]
    assert main(["predict", *words, "--run_dir", str(tmp_path), "--trainer.accelerator", "cpu"]) == 0
    classifier = Classifier.from_pretrained(tiny_package)
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(LABELS)
    for row in rows:
        [prediction] = classifier.predict(row["file"], top_k=1)
        assert row["predicted"] == prediction.label
        assert float(row["score"]) == pytest.approx(prediction.score, abs=1e-4)
