"""Parquet files of the Hub: columns, labels, and mistakes told in one sentence."""

import pickle
from pathlib import Path

import pytest
import torch

from eca_hub.errors import InvalidConfig
from eca_hub.train.data import ParquetData
from eca_hub.train.data.sampler import BatchIndex
from tests.train.datasets import SMALL, write_parquet


def test_parquet_of_the_hub_loads_with_its_class_names(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        write_parquet(tmp_path / f"{split}.parquet", [0, 1, 1], names=["cat", "dog"])
    data = ParquetData(str(tmp_path), image=SMALL)
    assert data.labels == ["cat", "dog"]
    assert data.source("val").targets.tolist() == [0, 1, 1]
    assert data.source("test").name(2) == "test.parquet row 2 (2.png)"
    dataset = data.dataset("train")
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[BatchIndex(0, [1])].pixels, dataset[BatchIndex(0, [1])].pixels)


def test_labels_that_are_words_are_numbered_as_in_the_train_split(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00000-of-00001.parquet", ["eel", "cat", "dog"])
    write_parquet(tmp_path / "test-00000-of-00001.parquet", ["dog", "eel"])
    data = ParquetData(str(tmp_path))
    assert data.labels == ["cat", "dog", "eel"]
    assert data.source("test").targets.tolist() == [1, 2]


def test_a_label_that_only_the_test_split_has_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", ["cat", "dog"])
    write_parquet(tmp_path / "validation.parquet", ["dog", "cat"])
    write_parquet(tmp_path / "test.parquet", ["dog", "yak"])
    with pytest.raises(
        InvalidConfig, match=r"The test split of .* has the class 'yak', which the train split does not have"
    ):
        ParquetData(str(tmp_path))


def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", [0, 1])
    with pytest.raises(InvalidConfig, match="has no column 'fine_label'; it has image, label"):
        ParquetData(str(tmp_path), label_column="fine_label")


def test_a_folder_without_parquet_files_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"no parquet")
    (tmp_path / "test.parquet").write_bytes(b"no parquet")
    with pytest.raises(InvalidConfig, match="is no parquet file"):
        ParquetData(str(tmp_path))
