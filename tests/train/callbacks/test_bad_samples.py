"""Images that cannot be decoded are named, counted once, and limited."""

import csv
from pathlib import Path

import pytest

from tests.train.datasets import png
from tests.train.runs import fit


def test_broken_images_are_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """That one too many stops the run is in test_bad_data.py."""
    for split in ("train", "val"):
        for number, label in enumerate(("cat", "dog")):
            (tmp_path / "set" / split / label).mkdir(parents=True)
            for index in range(8):
                (tmp_path / "set" / split / label / f"{index}.png").write_bytes(png(number * 90 + index))
    (tmp_path / "set" / "train" / "cat" / "3.png").write_bytes(b"not an image")
    config = "\n".join(
        [
            "model: {architecture: resnet20}",
            "data:",
            "  class_path: ImageFolderData",
            f"  init_args: {{root: {tmp_path / 'set'}, batch_size: 8, image: {{height_px: 8, width_px: 8}}}}",
            "trainer: {max_epochs: 2, accelerator: cpu, devices: 1}",
        ]
    )
    assert fit(tmp_path / "run", "--data.max_bad_samples", "1", config=config) == 0
    assert capsys.readouterr().out.count("Skipped ") == 1
    with (tmp_path / "run" / "bad_samples.csv").open() as file:
        [row] = csv.DictReader(file)
    assert row["file"].endswith("train/cat/3.png")
