"""Tar shards of WebDataset: labels as numbers, words, JSON or folders."""

import gzip
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from eca_hub.errors import InvalidConfig
from eca_hub.train.data import WebDatasetData
from eca_hub.train.data.sampler import BatchIndex
from eca_hub.train.data.source import SPLITS
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


def test_a_data_set_named_after_a_split_has_the_splits_of_its_shards(tmp_path: Path) -> None:
    for number in range(2):
        write_shard(tmp_path / "test" / f"train-{number}.tar", samples("number", 4 * number))
    write_shard(tmp_path / "test" / "val-0.tar", samples("number"))
    write_shard(tmp_path / "test" / "test" / "0.tar", samples("number"))
    data = WebDatasetData(str(tmp_path / "test"))
    assert [data.num_images(split) for split in SPLITS] == [8, 4, 4]


def test_a_shard_named_after_two_splits_is_refused(tmp_path: Path) -> None:
    for name in ("train-0", "val-0", "train-val-0"):
        write_shard(tmp_path / f"{name}.tar", samples("number"))
    with pytest.raises(InvalidConfig, match=r"train-val-0\.tar is named after the splits train and val\. Leave one of"):
        WebDatasetData(str(tmp_path))


def test_an_image_that_is_too_large_to_decode_is_broken_and_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "val"):
        write_shard(tmp_path / f"{split}-0.tar", samples("number") | {"0000.png": bytes(11 * 2**20)})
    dataset = WebDatasetData(str(tmp_path), image=SMALL).dataset("val")
    monkeypatch.setattr(os, "pread", lambda *_: pytest.fail("the image was read"))
    [bad] = dataset[BatchIndex(0, [0])].bad_samples
    assert bad.reason == "The image has 11.0 MiB; the limit is 10 MiB."


def test_a_file_with_a_class_that_is_too_large_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eca_hub.train.data.webdataset._MAX_LABEL_BYTES", 5)
    monkeypatch.setattr(tarfile.TarFile, "extractfile", lambda *_: pytest.fail("it was read"))
    root = write_splits(tmp_path, {"a.png": png(0), "a.cls": b"kitten"})
    with pytest.raises(InvalidConfig, match=r"a\.cls of .*train-0\.tar has 6 bytes; .* at most 5"):
        WebDatasetData(root)


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


def write_splits(root: Path, files: Mapping[str, bytes], names: tuple[str, str] = ("train-0.tar", "val-0.tar")) -> str:
    for name in names:
        write_shard(root / name, files)
    return str(root)


@pytest.mark.parametrize("names", [("TRAIN-0.TAR", "VAL-0.TAR"), ("imagenet-train-0000.tar", "imagenet-val-0000.tar")])
def test_shards_are_found_by_the_word_for_their_split(names: tuple[str, str], tmp_path: Path) -> None:
    data = WebDatasetData(write_splits(tmp_path, samples("number"), names))
    assert (data.num_images("train"), data.num_images("val")) == (4, 4)


def test_shards_without_a_split_are_trained_on_with_val_fraction(tmp_path: Path) -> None:
    write_shard(tmp_path / "00000.tar", samples("number"))
    with pytest.raises(
        InvalidConfig, match=r"it holds 00000.tar\. Name the shards train-0000.tar, or give --data.val_f"
    ):
        WebDatasetData(str(tmp_path))
    assert WebDatasetData(str(tmp_path), val_fraction=0.5).num_images("val") == 2


@pytest.mark.parametrize(
    ("contents", "labels"),
    [
        ([b'{"label": 0.0}', b'{"label": 1.0}'], ["0", "1"]),
        ([b'{"label": NaN}', b'{"label": 1}'], ["1"]),
        (["caf\u00e9".encode("latin-1"), b"dog"], ["caf\u00e9", "dog"]),
        (["cat".encode("utf-16"), "dog\r\n".encode("utf-16")], ["cat", "dog"]),
    ],
)
def test_labels_are_read_as_other_programs_write_them(contents: list[bytes], labels: list[str], tmp_path: Path) -> None:
    ending = "json" if contents[1].startswith(b"{") else "cls"
    files: dict[str, bytes] = {}
    for number in range(4):
        files |= {f"{number}.png": png(number), f"{number}.{ending}": contents[number % 2]}
    assert WebDatasetData(write_splits(tmp_path, files)).labels == labels


def test_names_that_repeat_in_a_shard_are_counted(tmp_path: Path) -> None:
    write_splits(tmp_path, samples("number"))
    with tarfile.open(tmp_path / "train-0.tar", "a") as tar:
        member = tarfile.TarInfo("0000.png")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"new"))
    data = WebDatasetData(str(tmp_path))
    assert data.source("train").read(0) == png(0)
    assert data.remarks[0] == "train-0.tar: images with the name of an earlier one are left out: 1."


def _pointer(path: Path) -> None:
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def _compressed(path: Path) -> None:
    path.write_bytes(gzip.compress(path.read_bytes()))


def _cut_in_a_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: 4 * tarfile.BLOCKSIZE + 100])


def _damaged_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4 * tarfile.BLOCKSIZE : 4 * tarfile.BLOCKSIZE + 8] = b"\xff" * 8
    path.write_bytes(content)


def _without_files(path: Path) -> None:
    write_shard(path, {})


def _without_labels(path: Path) -> None:
    write_shard(path, {"0.png": png(0), "0.json": b'{"caption": "a cat"}'})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_pointer, r"train-0.tar is a pointer of Git LFS\. `git lfs pull` fetches it\."),
        (_compressed, r"train-0.tar is compressed\. Compressed shards must be unpacked to \.tar\."),
        (_cut_in_a_header, r"train-0.tar is damaged or cut off: no valid tar header after 2048 bytes\."),
        (_damaged_header, r"train-0.tar is damaged or cut off: no valid tar header after 2048 bytes\."),
        (_without_files, r"The train split of .* has no images\."),
        (_without_labels, r"has no labels\. A class is in KEY.cls, or under label in KEY.json, or the folder"),
    ],
)
def test_a_shard_that_cannot_be_used_is_named(change: Callable[[Path], None], sentence: str, tmp_path: Path) -> None:
    write_splits(tmp_path, samples("number"))
    change(tmp_path / "train-0.tar")
    with pytest.raises(InvalidConfig, match=sentence):
        WebDatasetData(str(tmp_path))


def test_a_shard_without_an_end_of_archive_marker_is_remarked_on(tmp_path: Path) -> None:
    write_splits(tmp_path, samples("number"))
    content = (tmp_path / "train-0.tar").read_bytes()
    (tmp_path / "train-0.tar").write_bytes(content[: len(content.rstrip(b"\0")) // 512 * 512 + 512])
    data = WebDatasetData(str(tmp_path))
    assert data.num_images("train") == 4
    assert data.remarks[0] == "train-0.tar has no end-of-archive marker; it may be cut off, with images missing."


def test_more_classes_than_half_the_images_are_remarked_on(tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    for number in range(8):
        files |= {f"{number}.png": png(number), f"{number}.txt": f"caption {number}".encode()}
    data = WebDatasetData(write_splits(tmp_path, files))
    data.check()
    assert "has 8 classes for 8 training images, such as 'caption 0'; are these the classes?" in data.remarks[0]


def test_a_tar_file_in_the_place_of_its_folder_is_named(tmp_path: Path) -> None:
    write_splits(tmp_path, samples("number"))
    with pytest.raises(InvalidConfig, match=rf"train-0.tar is a file\. Give --data.root {tmp_path}, its folder"):
        WebDatasetData(str(tmp_path / "train-0.tar"))


def test_links_inside_a_shard_are_read_and_samples_without_an_image_are_counted(tmp_path: Path) -> None:
    write_shard(tmp_path / "val-0.tar", samples("word"))
    write_shard(tmp_path / "train-0.tar", samples("word") | {"8.jfif": png(8), "8.cls": b"cat"})
    with tarfile.open(tmp_path / "train-0.tar", "a") as tar:
        link = tarfile.TarInfo("9.png")
        link.type, link.linkname = tarfile.LNKTYPE, "0001.png"
        tar.addfile(link)
        for name, content in (("9.cls", b"dog"), ("10.tif", b"II*"), ("10.cls", b"dog")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    data = WebDatasetData(str(tmp_path), image=SMALL)
    source = data.source("train")
    assert len(source.targets) == 6
    assert source.read(5) == source.read(1) == png(20)
    assert source.name(5).endswith("9.png")
    assert data.remarks == ["train-0.tar: samples without an image that is decoded are left out: 1 (.tif)."]


def test_what_is_left_out_of_a_shard_labeled_by_folders_is_counted(tmp_path: Path) -> None:
    write_shard(tmp_path / "val-0.tar", samples("folder"))
    write_shard(tmp_path / "train-0.tar", samples("folder") | {"cat/8.tif": b"II*", "README": b"", "dog/9.HEIC": b""})
    with tarfile.open(tmp_path / "train-0.tar", "a") as tar:
        for name, kind in (("cat/10.png", tarfile.SYMTYPE), ("cat/11.png", tarfile.LNKTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "elsewhere.png"
            tar.addfile(link)
    data = WebDatasetData(str(tmp_path), image=SMALL)
    assert data.num_images("train") == 4
    assert data.remarks == [
        "train-0.tar: symbolic links, and links to files that are not before them, are left out: 2.",
        "train-0.tar: samples without an image that is decoded are left out: 2 (.heic, .tif).",
    ]
