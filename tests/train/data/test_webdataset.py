"""Tar shards of WebDataset: labels as numbers, words, JSON or folders."""

import io
import json
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from eca_hub.errors import InvalidConfig
from eca_hub.train.data import WebDatasetData
from eca_hub.train.data.sampler import BatchIndex
from tests.train.datasets import SMALL, png


def write_shard(path: Path, files: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def samples(kind: str, start: int = 0) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for number in range(start, start + 4):
        label = number % 2
        folder = f"{'dog' if label else 'cat'}/" if kind == "folder" else ""
        files[f"{folder}{number:04}.png"] = png(number * 20)
        if kind == "json":
            files[f"{number:04}.json"] = json.dumps({"label": label}).encode()
        elif kind != "folder":
            files[f"{number:04}.cls"] = (str(label) if kind == "number" else ("dog" if label else "cat")).encode()
    return files


@pytest.mark.parametrize(
    ("kind", "labels"),
    [("number", ["0", "1"]), ("json", ["0", "1"]), ("word", ["cat", "dog"]), ("folder", ["cat", "dog"])],
)
def test_shards_are_read_with_their_labels(kind: str, labels: list[str], tmp_path: Path) -> None:
    for number in range(2):
        write_shard(tmp_path / f"train-{number:04}.tar", samples(kind, 4 * number))
    write_shard(tmp_path / "val-0000.tar", samples(kind))
    data = WebDatasetData(str(tmp_path), image=SMALL)
    data.check()
    assert data.labels == labels
    assert data.source("train").targets.tolist() == [0, 1] * 4 if kind != "folder" else [0, 0, 1, 1] * 2
    dataset = data.dataset("val")
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(dataset[BatchIndex(0, [3, 1])].pixels, copy[BatchIndex(0, [3, 1])].pixels)
    assert data.source("train").name(4).startswith("train-0001.tar/")


def test_val_fraction_and_folders_of_splits_work_as_with_other_data(tmp_path: Path) -> None:
    write_shard(tmp_path / "train" / "0000.tar", samples("number"))
    data = WebDatasetData(str(tmp_path), val_fraction=0.5)
    assert (data.num_images("train"), data.num_images("val")) == (2, 2)


def test_a_sample_without_a_label_is_left_out(tmp_path: Path) -> None:
    files = samples("number")
    del files["0003.cls"]
    write_shard(tmp_path / "train-0.tar", files)
    write_shard(tmp_path / "val-0.tar", samples("number"))
    data = WebDatasetData(str(tmp_path))
    assert data.num_images("train") == 3
    assert data.remarks == ["1 of the 4 images of the train split have no label and are left out."]


def test_a_key_ends_at_the_first_dot_and_the_only_file_of_an_ending_is_taken(tmp_path: Path) -> None:
    files = {name.replace(".cls", ".target.cls"): content for name, content in samples("word").items()}
    files |= {f"{number:04}.mask.png": png(0) for number in range(4)}
    for split in ("train", "val"):
        write_shard(tmp_path / f"{split}-0.tar", files)
    data = WebDatasetData(str(tmp_path))
    assert data.source("train").targets.tolist() == [0, 1, 0, 1]
    assert data.source("train").name(1) == "train-0.tar/0001.png"


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        (
            {"a.1.png": b"", "a.2.png": b""},
            r"The image of the sample a of .*train-1\.tar: it has \.1\.png and \.2\.png",
        ),
        (
            {"a.png": b"", "a.x.cls": b"0", "a.y.cls": b"1"},
            r"The class of the sample a of .* it has \.x\.cls and \.y\.cls",
        ),
    ],
)
def test_files_between_which_the_ending_does_not_decide_are_refused(
    file: dict[str, bytes], sentence: str, tmp_path: Path
) -> None:
    for split in ("train", "val"):
        write_shard(tmp_path / f"{split}-0.tar", samples("number"))
    write_shard(tmp_path / "train-1.tar", file)
    with pytest.raises(InvalidConfig, match=sentence):
        WebDatasetData(str(tmp_path))


def test_an_image_cut_off_at_the_end_of_a_shard_is_a_broken_image(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-0.tar", samples("number"))
    write_shard(tmp_path / "val-0.tar", samples("number"))
    data = WebDatasetData(str(tmp_path), image=SMALL)
    whole = (tmp_path / "val-0.tar").read_bytes()
    (tmp_path / "val-0.tar").write_bytes(whole[:600])
    batch = data.dataset("val")[BatchIndex(0, [0, 3])]
    assert batch.bad_samples[-1].reason == "the shard ends inside the image"


def test_compressed_and_broken_shards_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train-0.tar.gz").write_bytes(b"x")
    with pytest.raises(InvalidConfig, match=r"it holds train-0.tar.gz\. Compressed shards .* must be unpacked"):
        WebDatasetData(str(tmp_path))
    (tmp_path / "train-0.tar").write_bytes(b"no tar file" * 100)
    with pytest.raises(InvalidConfig, match=r"train-0.tar cannot be read as a tar file"):
        WebDatasetData(str(tmp_path))
