"""Images that cannot be decoded are named, counted once, and limited."""

import csv
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from eca_hub.train.callbacks.bad_samples import BadSampleLog
from eca_hub.train.data.dataset import BadSample, Batch
from eca_hub.train.errors import TrainingStopped
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


def test_an_evaluation_counts_what_it_finds_and_not_what_others_found(tmp_path: Path) -> None:
    (tmp_path / "bad_samples.csv").write_text("file,reason\nold.png,broken\n")
    trainer, module = Trainer(accelerator="cpu", devices=1, logger=False), LightningModule()
    log = BadSampleLog(tmp_path, limit=1)
    log.setup(trainer, module, "test")
    for name in ("old.png", "old.png"):
        log.on_test_batch_end(trainer, module, None, batch_with(name), 0)
    with pytest.raises(TrainingStopped, match=r"Broken images: 2, and --data\.max_bad_samples allows 1"):
        log.on_test_batch_end(trainer, module, None, batch_with("new.png"), 0)
    assert (tmp_path / "bad_samples.csv").read_text().split() == ["file,reason", "old.png,broken", "new.png,broken"]
    resumed = BadSampleLog(tmp_path, limit=1)
    resumed.setup(trainer, module, "fit")
    with pytest.raises(TrainingStopped, match=r"Broken images: 3, and --data\.max_bad_samples allows 1"):
        resumed.on_train_batch_end(trainer, module, None, batch_with("newer.png"), 0)


def batch_with(name: str) -> Batch:
    return Batch(torch.zeros(0, 3, 8, 8), torch.zeros(0), torch.zeros(0), (BadSample(0, name, "broken"),))
