"""Parquet files of the Hub: columns, labels, and mistakes refused in one sentence."""

import datetime
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]
import pytest
import torch

from eca_hub.errors import InvalidConfig
from eca_hub.train.data import ParquetData, parquet
from eca_hub.train.data.sampler import BatchIndex
from eca_hub.train.data.source import SPLITS
from tests.train.datasets import SMALL, png, write_parquet


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


def write_splits(root: Path, train: list[object], val: list[object] | None = None, **options: Any) -> str:
    write_parquet(root / "train.parquet", train, **options)
    write_parquet(root / "validation.parquet", val if val is not None else train, **options)
    return str(root)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [(["cat", "dog", "cat", None], ["cat", "dog"]), ([0, 1, 0, None], ["0", "1"]), ([0, 1, 0, -1], ["0", "1"])],
)
def test_rows_without_a_label_are_left_out_with_a_remark(
    labels: list[object], classes: list[str], tmp_path: Path
) -> None:
    data = ParquetData(write_splits(tmp_path, labels, labels[:2]))
    assert data.labels == classes
    assert data.num_images("train") == 3
    assert data.remarks == ["1 of the 4 images of the train split have no label and are left out."]


def test_a_test_split_with_hidden_labels_is_not_measured_on(tmp_path: Path) -> None:
    write_parquet(tmp_path / "test.parquet", [-1, -1, -1])
    data = ParquetData(write_splits(tmp_path, [0, 1]))
    assert (data.num_images("test"), len(data.predict_source().targets)) == (2, 3)
    assert "has no labels" in data.remarks[0]


def test_numbers_without_names_need_not_begin_at_zero(tmp_path: Path) -> None:
    data = ParquetData(write_splits(tmp_path, [1, 10, 2]))
    data.check()
    assert data.labels == ["1", "2", "10"]


def test_several_labels_an_image_are_refused_and_lists_of_one_are_not(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"holds several labels an image\. Give --data\.multi_label true"):
        ParquetData(write_splits(tmp_path, [[0], [0, 1]]))
    assert ParquetData(write_splits(tmp_path, [[0], [1]])).labels == ["0", "1"]


def test_lists_of_labels_become_rows_of_0_and_1(tmp_path: Path) -> None:
    root = write_splits(tmp_path, [[0, 1], [], None, [1]], [[0], [1, 0]], label="labels")
    data = ParquetData(root, multi_label=True)
    data.check()
    assert data.labels == ["0", "1"]
    assert data.source("train").targets.tolist() == [[1, 1], [0, 0], [0, 1]]
    assert data.source("val").targets.tolist() == [[1, 0], [1, 1]]
    assert data.class_counts() == [1, 2]
    with pytest.raises(InvalidConfig, match=r"with data\.multi_label it must hold lists"):
        ParquetData(write_splits(tmp_path, ["a", "b"], label="labels"), multi_label=True)


def test_lists_of_labels_take_the_class_names_that_the_file_states(tmp_path: Path) -> None:
    table = pa.table({"image": [{"bytes": png(0), "path": "0.png"}] * 2, "labels": [[1], [0, 1]]})
    feature = {"_type": "Sequence", "feature": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    features = {"image": {"_type": "Image"}, "labels": feature}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    for split in ("train", "test"):
        pq.write_table(table, tmp_path / f"{split}.parquet")
    assert ParquetData(str(tmp_path), multi_label=True).labels == ["cat", "dog"]


def test_labels_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"holds 0.5; classes are integers or words"):
        ParquetData(write_splits(tmp_path, [0.5, 1.0]))
    with pytest.raises(InvalidConfig, match="has the label 2, outside 0 to 1"):
        ParquetData(write_splits(tmp_path, [0, 2], names=["cat", "dog"]))
    for label, kind in (
        (datetime.date(2026, 1, 2), "date32"),
        (datetime.datetime(2026, 1, 2), "timestamp"),
        (b"cat", "b"),
    ):
        with pytest.raises(InvalidConfig, match=rf"'label' of .* is of type {kind}.*; classes are integers or words"):
            ParquetData(write_splits(tmp_path, [label]))
        with pytest.raises(InvalidConfig, match="classes are integers or words"):
            ParquetData(write_splits(tmp_path, [[label]]), multi_label=True)
    with pytest.raises(InvalidConfig, match=r"is of type struct.*; classes are integers or words.*label_column"):
        ParquetData(write_splits(tmp_path, [{"id": 0}, {"id": 1}]))


def test_spaces_around_a_word_belong_to_no_class(tmp_path: Path) -> None:
    data = ParquetData(write_splits(tmp_path, ["cat", "dog ", " "], ["cat ", "dog"]))
    assert data.labels == ["cat", "dog"]
    assert data.num_images("train") == 2


def test_images_may_be_paths_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png(40))
    table = pa.table({"image": ["0.png", "gone.png"], "label": [0, 1]})
    for split in ("train", "validation"):
        pq.write_table(table, tmp_path / f"{split}.parquet")
    batch = ParquetData(str(tmp_path), image=SMALL).dataset("val")[BatchIndex(0, [0, 1])]
    assert batch.indices.tolist() == [0]
    assert "row 1 (gone.png)" in batch.bad_samples[0].name


def test_a_device_and_a_file_that_is_too_large_to_decode_are_broken_images(tmp_path: Path) -> None:
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(11 * 2**20)
    images = [{"bytes": None, "path": path} for path in (os.devnull, "large.png", "a\0b")]
    write_table(tmp_path / "train.parquet", images, ["cat", "dog", "cat"])
    write_table(tmp_path / "val.parquet", images, ["cat", "dog", "cat"])
    batch = ParquetData(str(tmp_path), image=SMALL).dataset("val")[BatchIndex(0, [0, 1, 2])]
    assert [bad.reason for bad in batch.bad_samples] == [
        "it is a pipe, a socket or a device, not a file",
        "The image has 11.0 MiB; the limit is 10 MiB.",
        "embedded null byte",
    ]


def test_rows_of_a_data_set_of_the_hub_name_no_files_outside_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "snapshot"
    (snapshot / "images").mkdir(parents=True)
    (snapshot / "images" / "0.png").write_bytes(png(1))
    (tmp_path / "secret.png").write_bytes(png(2))
    paths = ["../images/0.png", "../../secret.png", str(tmp_path / "secret.png"), "secret.png"]
    for split in ("train", "val"):
        write_table(snapshot / "data" / f"{split}.parquet", paths, ["cat"] * 4)
    monkeypatch.setattr(parquet, "fetch_parquet", lambda *_: snapshot)
    monkeypatch.chdir(tmp_path)
    source = ParquetData("acme/pets").source("train")
    assert source.read(0) == png(1)
    for index in (1, 2):
        with pytest.raises(OSError, match="a path that leads out of the data set"):
            source.read(index)
    with pytest.raises(FileNotFoundError):
        source.read(3)


def test_pixels_as_nested_lists_are_refused(tmp_path: Path) -> None:
    table = pa.table({"image": [[[0, 255], [255, 0]]] * 2, "label": [0, 1]})
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(InvalidConfig, match=r"is of type list.*encoded bytes, a path, or a struct of both"):
        ParquetData(str(tmp_path))


def test_shards_of_different_integer_types_and_a_log_beside_them_are_read(tmp_path: Path) -> None:
    for number, kind in enumerate((pa.int64(), pa.int32())):
        images = [{"bytes": png(shade), "path": None} for shade in (0, 90)]
        table = pa.table({"image": images, "label": pa.array([0, 1], kind)})
        pq.write_table(table, tmp_path / f"train-{number}.parquet")
    pq.write_table(pa.table({"loss": [1.0]}), tmp_path / "training_log.parquet")
    data = ParquetData(str(tmp_path), val_fraction=0.5)
    assert (data.num_images("train"), data.num_images("val")) == (2, 2)
    pq.write_table(pa.table({"loss": [1.0]}), tmp_path / "train_log.parquet")
    with pytest.raises(InvalidConfig, match=r"train_log.parquet has no column 'image', unlike train-0.parquet"):
        ParquetData(str(tmp_path), val_fraction=0.5)


def test_copies_that_an_editor_hides_are_not_read(tmp_path: Path) -> None:
    for name in ("train.parquet", "test.parquet", ".ipynb_checkpoints/train-checkpoint.parquet", "._train.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_parquet(tmp_path / name, [0, 1])
    assert ParquetData(str(tmp_path)).num_images("train") == 2


def test_two_names_for_one_split_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "val.parquet", [0, 1])
    with pytest.raises(InvalidConfig, match=r"has validation.parquet and val.parquet; which is the val split"):
        ParquetData(write_splits(tmp_path, [0, 1]))


def test_only_a_few_rows_are_in_memory_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole file is one row group, as most writers leave it."""
    data = ParquetData(write_splits(tmp_path, [0, 1] * 100))
    sizes: list[int] = []
    real = pq.ParquetFile.iter_batches

    def watched(*args: Any, **kwargs: Any) -> Any:
        for batch in real(*args, **kwargs):
            sizes.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    assert data.source("train").read(199).startswith(b"\x89PNG")
    assert (max(sizes), sum(sizes)) == (64, 200)


def write_table(path: Path, images: Any, labels: Any, names: tuple[str, ...] = ("image", "label")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_arrays([pa.array(images), *([pa.array(labels)] * (len(names) - 1))], names), path)
    return path


@pytest.mark.parametrize(
    "train", ["train.parquet/part-0.snappy.parquet", "split=train/0.parquet", "TRAIN.PARQUET", "train.pq"]
)
def test_files_as_spark_and_others_name_them_are_found(train: str, tmp_path: Path) -> None:
    for name in (train, train.replace("train", "val").replace("TRAIN", "VAL")):
        write_table(tmp_path / name, [png(1), png(2)], ["cat", "dog"])
    data = ParquetData(str(tmp_path))
    data.check()
    assert data.num_images("train") == data.num_images("val") == 2


@pytest.mark.parametrize(("root", "subset"), [("test", None), ("pets", "train"), ("train", "test")])
def test_a_data_set_or_subset_named_after_a_split_has_the_splits_of_its_files(
    root: str, subset: str | None, tmp_path: Path
) -> None:
    folder = tmp_path / root / (subset or "")
    for split, shades in (("train", [1, 2, 3]), ("val", [4, 5]), ("test", [6])):
        write_table(folder / f"{split}.parquet", [png(shade) for shade in shades], ["cat"] * len(shades))
    data = ParquetData(str(tmp_path / root), subset=subset)
    assert [data.num_images(split) for split in SPLITS] == [3, 2, 1]


def test_the_name_of_a_file_decides_before_that_of_its_folder(tmp_path: Path) -> None:
    for name, shades in (("test/train-0.parquet", [1, 2, 3]), ("test/0.parquet", [4])):
        write_table(tmp_path / name, [png(shade) for shade in shades], ["cat"] * len(shades))
    data = ParquetData(str(tmp_path))
    assert (data.num_images("train"), data.num_images("test")) == (3, 1)


@pytest.mark.parametrize("names", [("img", "labels"), ("Image", "Label"), ("jpg", "cls")])
def test_columns_of_usual_names_are_found(names: tuple[str, str], tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_table(tmp_path / f"{split}.parquet", [png(1), png(2)], ["cat", "dog"], names)
    assert ParquetData(str(tmp_path)).labels == ["cat", "dog"]


def test_views_of_bytes_and_text_are_read(tmp_path: Path) -> None:
    for split in ("train", "val"):
        images, labels = pa.array([png(1), png(2)], pa.binary_view()), pa.array(["cat", "dog"], pa.string_view())
        write_table(tmp_path / f"{split}.parquet", images, labels)
    data = ParquetData(str(tmp_path))
    assert data.source("train").read(1) == png(2)


def test_class_names_of_a_list_written_by_an_older_program_are_read(tmp_path: Path) -> None:
    features = {"image": {"_type": "Image"}, "label": [{"names": ["cat", "dog"], "_type": "ClassLabel"}]}
    for split in ("train", "val"):
        table = pa.table({"image": [png(1), png(2)], "label": [[0], [1]]})
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / f"{split}.parquet")
    assert ParquetData(str(tmp_path)).labels == ["cat", "dog"]


def _two_columns_of_one_name(root: Path) -> None:
    write_table(root / "train.parquet", [png(1), png(2)], [0, 1], ("image", "label", "label"))


def _words_and_numbers(root: Path) -> None:
    write_table(root / "train-0.parquet", [png(1), png(2)], [0, 1])
    write_table(root / "train-1.parquet", [png(1), png(2)], ["0", "1"])


def _no_rows(root: Path) -> None:
    write_table(root / "train.parquet", pa.array([], pa.binary()), pa.array([], pa.int64()))


def _pointer(root: Path) -> None:
    (root / "train.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def _another_name(root: Path) -> None:
    (root / "val.parquet").rename(root / "data.parquet")


def _folder_of_datasets(root: Path) -> None:
    (root / "val.parquet").unlink()
    (root / "data-00000-of-00001.arrow").write_bytes(b"ARROW1")


def _negative_label(root: Path) -> None:
    write_table(root / "train.parquet", [png(1), png(2)], [-5, 1])


def _repeated_class(root: Path) -> None:
    write_parquet(root / "train.parquet", [0, 1], names=["cat", "cat"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_two_columns_of_one_name, r"train.parquet has two columns 'label'\. Rename one of them"),
        (_words_and_numbers, r"The column 'label' is of type int64 in train-0.parquet, but string in train-1.parquet"),
        (_no_rows, r"The train split of .* has no images\."),
        (_pointer, r"train.parquet is a pointer of Git LFS\. `git lfs pull` fetches the file\."),
        (_another_name, r"it holds data.parquet\. If it is to be trained on: mv .*data.parquet .*train.parquet"),
        (_folder_of_datasets, r"holds no parquet files\. It was written by save_to_disk; write parquet instead"),
        (_negative_label, r"train.parquet has the label -5, which is negative\."),
        (_repeated_class, r"train.parquet names the class 'cat' more than once\."),
    ],
)
def test_files_of_other_programs_that_cannot_be_used_are_named(
    change: Callable[[Path], None], sentence: str, tmp_path: Path
) -> None:
    write_table(tmp_path / "val.parquet", [png(1), png(2)], [0, 1])
    change(tmp_path)
    with pytest.raises(InvalidConfig, match=sentence):
        ParquetData(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("https://host/0.png", r"row 0 \(https://host/0.png\): a URL, and eca-hub does not download images"),
        ("iVBORw0KGgo" + "A" * 5000, r"row 0 \(iVBORw0KGgoA{189}\): base64 text; decode it to bytes first\.$"),
        ("data:image/png;base64,iVBORw0KGgo", "a data URL; decode it to bytes first"),
    ],
)
def test_text_that_is_no_path_is_named(text: str, sentence: str, tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_table(tmp_path / f"{split}.parquet", [text, text], ["cat", "dog"])
    with pytest.raises(InvalidConfig, match=sentence):
        ParquetData(str(tmp_path)).check()


def test_a_parquet_file_in_the_place_of_its_folder_is_named(tmp_path: Path) -> None:
    file = write_table(tmp_path / "train.parquet", [png(1), png(2)], [0, 1])
    with pytest.raises(InvalidConfig, match=rf"train.parquet is a file\. Give --data.root {tmp_path}, its folder"):
        ParquetData(str(file))


@pytest.mark.parametrize("column", ["image", "label"])
def test_a_file_with_damaged_pages_is_named(column: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", [0, 1] * 40, names=["cat", "dog"])
    path = tmp_path / "train.parquet"
    content = bytearray(path.read_bytes())
    row_group = pq.read_metadata(path).row_group(0)
    for number in range(row_group.num_columns):
        chunk = row_group.column(number)
        if chunk.path_in_schema.startswith(column):
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)
    with pytest.raises(InvalidConfig, match=r"train\.parquet is damaged: "):
        ParquetData(str(tmp_path), image=SMALL).check()
