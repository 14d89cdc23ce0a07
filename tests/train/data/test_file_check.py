"""Files are looked at before training, for a limited time."""

from pathlib import Path

import pytest

from eca_hub.errors import InvalidConfig
from eca_hub.train.data import ImageFolderData, file_check
from tests.train.datasets import SMALL, write_folder


def test_files_that_are_no_images_are_named_before_training_and_may_be_allowed(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set")
    for number in (1, 2):
        (root / "train" / "dark" / f"{number}.png").write_bytes(b"<html>404</html>")
    with pytest.raises(
        InvalidConfig,
        match=r"Broken images: 2, and --data\.max_bad_samples allows 1\. They are among 24 files of set, in the splits "
        r"train; the first: .*dark/\d\.png: The file is an HTML page, .* give --data.max_bad_samples 2",
    ):
        ImageFolderData(str(root), image=SMALL, max_bad_samples=1).check()
    data = ImageFolderData(str(root), image=SMALL, max_bad_samples=2)
    data.check()
    assert data.remarks == []


def test_broken_files_of_all_splits_count_together_as_in_the_run(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set")
    for split in ("train", "val", "test"):
        (root / split / "dark" / "1.png").write_bytes(b"no image at all")
    with pytest.raises(InvalidConfig, match=r"Broken images: 3, .* allows 2\. .* in the splits train, val, test"):
        ImageFolderData(str(root), image=SMALL, max_bad_samples=2).check()


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_without_an_image_that_is_whole_is_refused_before_training(split: str, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set")
    for path in (root / split).rglob("*.png"):
        path.write_bytes(b"no image at all")
    with pytest.raises(InvalidConfig, match=rf"Every image of the {split} split of set is broken; the first: .*\.png"):
        ImageFolderData(str(root), image=SMALL, max_bad_samples=8).check()


def test_when_the_time_is_over_training_starts_and_the_number_of_files_is_stated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_check, "_CHECK_S", 0)
    data = ImageFolderData(str(write_folder(tmp_path / "set")), image=SMALL)
    data.check()
    assert len(data.remarks) == 3
    assert data.remarks[0].startswith("1 of the 8 images of the train split were looked at in 0 s; the others are")
