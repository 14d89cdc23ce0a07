"""Folders of class folders: what is read, what is left out, and mistakes refused in one sentence."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from eca_hub.errors import EcaHubError, InvalidConfig
from eca_hub.train.data import ImageFolderData
from eca_hub.train.data.sampler import BatchIndex
from eca_hub.train.errors import TrainingStopped
from tests.train.datasets import (
    SMALL,
    add_class_to_test,
    png,
    take_every_file,
    take_measured_splits,
    take_one_class,
    write_folder,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, in three splits, four images each."""
    return write_folder(tmp_path / "set")


def test_a_folder_of_class_folders_is_read_in_the_order_of_names(folder: Path) -> None:
    data = ImageFolderData(str(folder), image=SMALL, batch_size=3)
    assert data.labels == ["dark", "light"]
    assert data.source("train").targets.tolist() == [0] * 4 + [1] * 4
    assert data.source("val").name(0).endswith("set/val/dark/0.png")
    assert sum(len(batch.targets) for batch in data.val_dataloader()) == 8


def test_a_changed_file_changes_the_fingerprint(folder: Path) -> None:
    before = ImageFolderData(str(folder)).fingerprint()
    assert ImageFolderData(str(folder)).fingerprint() == before
    (folder / "train" / "dark" / "0.png").write_bytes(png(40, side_px=13))
    assert ImageFolderData(str(folder)).fingerprint() != before


def _remove_train(root: Path) -> None:
    (root / "train").rename(root / "elsewhere")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_remove_train, "has no folder train"),
        (take_measured_splits, "has no validation or test split to measure on"),
        (take_one_class, "has one class, 'dark'; a classifier needs two or more."),
        (take_every_file, "hold no images"),
        (add_class_to_test, "The test split of set has the class 'dusk', which the train split does not have."),
    ],
)
def test_a_folder_that_cannot_be_trained_on_is_one_sentence(
    spoil: Callable[[Path], None], sentence: str, folder: Path
) -> None:
    spoil(folder)
    with pytest.raises(EcaHubError, match=sentence):
        ImageFolderData(str(folder)).check()


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="There is no folder"):
        ImageFolderData(str(tmp_path / "nowhere"))


def test_without_a_test_folder_the_validation_images_serve_as_both(folder: Path) -> None:
    (folder / "test").rename(folder / ".test")
    data = ImageFolderData(str(folder))
    assert data.source("test").name(0) == data.source("val").name(0)


def test_a_broken_image_is_left_out_and_named(folder: Path) -> None:
    broken = folder / "train" / "dark" / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    batch = ImageFolderData(str(folder), image=SMALL).dataset("train")[BatchIndex(0, [0, 1, 2])]
    assert batch.indices.tolist() == [0, 2]
    [bad] = batch.bad_samples
    assert bad.name == str(broken)
    assert "PNG cannot be decoded" in bad.reason


def test_a_training_split_of_broken_images_stops_the_run(folder: Path) -> None:
    for path in (folder / "train").rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(TrainingStopped, match="Every image of a batch is broken"):
        ImageFolderData(str(folder), image=SMALL).dataset("train")[BatchIndex(0, [0, 1, 2])]


def test_a_device_in_a_test_folder_without_classes_is_not_read(folder: Path) -> None:
    for path in (folder / "test").iterdir():
        path.rename(folder / "test" / f".{path.name}")
    (folder / "test" / "0.png").symlink_to(os.devnull)
    with pytest.raises(OSError, match="a device, not a file"):
        ImageFolderData(str(folder)).predict_source().read(0)


def test_a_class_folder_named_with_spaces_alone_is_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set")
    (root / "train" / "dark").rename(root / "train" / " ")
    with pytest.raises(InvalidConfig, match=r"A class folder in .*train is named ' '\. Give it a name"):
        ImageFolderData(str(root))
