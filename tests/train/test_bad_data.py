"""Data that cannot be trained on: one sentence, exit code 2, and no traceback."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from eca_hub.__main__ import main
from tests.train.datasets import (
    add_class_to_test,
    png,
    take_every_file,
    take_measured_splits,
    take_one_class,
    write_folder,
    write_parquet,
)


def _take_everything(root: Path) -> None:
    root.rename(root.with_name("elsewhere"))
    root.mkdir()


def _take_train(root: Path) -> None:
    (root / "train").rename(root / "elsewhere")


def _break_every_file(root: Path) -> None:
    for path in root.rglob("*.png"):
        path.write_bytes(b"not an image")


def _cut_every_file(root: Path) -> None:
    for path in root.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:30])


def _spoil_one_file(root: Path) -> None:
    (root / "val" / "light" / "2.png").write_bytes(b"no image at all")


def _break_one_file(root: Path) -> None:
    (root / "train" / "dark" / "3.png").write_bytes(png(40)[:30])


def _write_parquet_without_train(root: Path) -> None:
    _take_everything(root)
    write_parquet(root / "test.parquet", [0, 1])


def _write_parquet_with_a_new_class(root: Path) -> None:
    _take_everything(root)
    write_parquet(root / "train.parquet", ["dark", "light"])
    write_parquet(root / "test.parquet", ["dark", "dusk"])


CASES: list[tuple[Callable[[Path], None], str]] = [
    (take_one_class, "has one class, 'dark'; a classifier needs two or more."),
    (take_every_file, "hold no images"),
    (_take_everything, "has no folder train"),
    (_take_train, "has no folder train; it needs train/CLASS/*.jpg"),
    (take_measured_splits, "has no validation or test split to measure on."),
    (add_class_to_test, "The test split of set has the class 'dusk', which the train split does not have."),
    (_break_every_file, "Broken images: 24, and --data.max_bad_samples allows 0. They are among 24 files"),
    (_cut_every_file, "Every image of a batch is broken"),
    (_spoil_one_file, "Broken images: 1, and --data.max_bad_samples allows 0. They are among 24 files"),
    (_break_one_file, "Broken images: 1, and --data.max_bad_samples allows 0."),
    (_write_parquet_without_train, "has no train*.parquet; it holds test.parquet."),
    (
        _write_parquet_with_a_new_class,
        "The test split of set has the class 'dusk', which the train split does not have.",
    ),
]
FEW = (take_one_class, _take_train, _cut_every_file, _break_one_file, _write_parquet_with_a_new_class)
"""Each is found at another place; the others are slow tests."""


def words_for(root: Path, spoil: Callable[[Path], None]) -> list[str]:
    write_folder(root)
    spoil(root)
    data = "ParquetData" if "parquet" in spoil.__name__ else "ImageFolderData"
    # Three images in a batch, so that beside a broken one there are others.
    small = "--data.batch_size 3 --data.image.height_px 8 --data.image.width_px 8 --model.architecture resnet20"
    run = ["--run_dir", str(root.with_name("run")), "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    return ["fit", "--data", data, "--data.root", str(root), *small.split(), *run]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [pytest.param(*case, marks=[] if case[0] in FEW else pytest.mark.slow) for case in CASES],
)
def test_data_that_cannot_be_trained_on_are_one_sentence(
    spoil: Callable[[Path], None], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words_for(tmp_path / "set", spoil)) == 2
    output = capsys.readouterr().err
    assert sentence in output
    assert len(output.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_of_which_no_image_can_be_decoded_is_one_sentence_that_names_it(
    split: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_for(tmp_path / "set", lambda root: _cut_every_file(root / split))
    assert main([*words, "--data.max_bad_samples", "8", "--trainer.max_epochs", "1"]) == 2
    [sentence] = capsys.readouterr().err.splitlines()
    assert f"No image of the {split} split could be decoded, so nothing was measured on it." in sentence


@pytest.mark.slow
def test_when_the_data_are_repaired_the_same_command_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*words_for(tmp_path / "set", _break_every_file), "--trainer.max_epochs", "1"]
    assert main(words) == 2
    shutil.rmtree(tmp_path / "set")
    write_folder(tmp_path / "set")
    assert main(words) == 0, capsys.readouterr().err


@pytest.mark.soak
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(("spoil", "sentence"), CASES)
def test_a_process_prints_one_sentence_and_nothing_else(
    spoil: Callable[[Path], None], sentence: str, num_workers: int, tmp_path: Path
) -> None:
    words = [*words_for(tmp_path / "set", spoil), "--data.num_workers", str(num_workers)]
    done = subprocess.run([sys.executable, "-m", "eca_hub", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stdout
