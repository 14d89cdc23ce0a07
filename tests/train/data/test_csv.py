"""CSV files: encodings, delimiters, columns and splits as people write them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eca_hub.errors import InvalidConfig
from eca_hub.train.data import CsvData
from eca_hub.train.data.csv import PathSource
from eca_hub.train.data.sampler import BatchIndex
from tests.train.datasets import SMALL, png

ROWS = [(f"{number}.png", "cat" if number % 2 else "dog") for number in range(8)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, _ in ROWS:
        (tmp_path / name).write_bytes(png(int(name[0]) * 20))
    return tmp_path


def write(
    path: Path, header: str, rows: Sequence[tuple[str, ...]], encoding: str = "utf-8", delimiter: str = ","
) -> str:
    lines = [header.replace(",", delimiter), *(delimiter.join(row) for row in rows)]
    path.write_bytes("\r\n".join(lines).encode(encoding))
    return str(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_a_table_is_read_in_the_usual_encodings_and_delimiters(encoding: str, delimiter: str, folder: Path) -> None:
    rows = [(name, label.replace("a", "\u00e4")) for name, label in ROWS]
    file = write(folder / "labels.csv", "file,label", rows, encoding, delimiter)
    data = CsvData(file, val_fraction=0.25, image=SMALL)
    assert data.labels == ["c\u00e4t", "dog"]
    assert (data.num_images("train"), data.num_images("val")) == (6, 2)
    assert len(data.dataset("train")[BatchIndex(0, [0, 1, 2])].targets) == 3


def test_tables_of_windows_programs_are_read(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "8.png").write_bytes(png(9))
    text = 'sep=;\r\nfile;label;note\r\nsub\\8.png;"a \u201cquoted\u201d; name";"two\nlines"\r\n'
    text += "0.png;dog;\r\n1.png;dog;\r\n"
    (folder / "labels.csv").write_bytes(text.encode("cp1252"))
    data = CsvData(str(folder / "labels.csv"), val_fraction=0.5, image=SMALL)
    assert data.labels == ["a \u201cquoted\u201d; name", "dog"]
    assert data.source("train").read(0) == png(9)


@pytest.mark.parametrize("test_columns", ["path,label", "path"])
def test_a_folder_may_have_a_table_for_each_split(test_columns: str, folder: Path) -> None:
    write(folder / "train.csv", "path,label", ROWS[:4])
    write(folder / "Validation.csv", "path,label", ROWS[4:6])
    write(folder / "test.csv", test_columns, [row[: test_columns.count(",") + 1] for row in ROWS[6:]])
    (folder / "sample_submission.csv").write_text("id,label\n")
    data = CsvData(str(folder))
    assert [data.num_images(split) for split in ("train", "val")] == [4, 2]
    assert len(data.predict_source().targets) == 2
    assert data.title == folder.name


def test_a_folder_without_a_table_to_train_on_is_refused(folder: Path) -> None:
    for name in ("a.csv", "b.csv"):
        write(folder / name, "path,label", ROWS)
    with pytest.raises(InvalidConfig, match=r"has no train.csv; it holds a.csv, b.csv. Give --data.root FILE.csv"):
        CsvData(str(folder))


def test_labels_as_pandas_writes_them_are_integers_and_gaps(folder: Path) -> None:
    labels = ["0.0", "1.0", "nan", "1.0", "", "0.0", "1.0", "0.0"]
    rows = [(name, label) for (name, _), label in zip(ROWS, labels, strict=True)]
    data = CsvData(write(folder / "labels.csv", "path,label", rows), val_fraction=0.5)
    assert data.labels == ["0", "1"]
    assert data.num_images("train") + data.num_images("val") == 6


def test_a_test_split_with_hidden_labels_is_not_measured_on(folder: Path) -> None:
    rows = [(name, str(int(name[0]) % 2), "train") for name, _ in ROWS[:4]]
    rows += [(name, str(int(name[0]) % 2), "val") for name, _ in ROWS[4:6]] + [
        (name, "-1", "test") for name, _ in ROWS[6:]
    ]
    assert len(CsvData(write(folder / "labels.csv", "path,label,split", rows)).predict_source().targets) == 2


def test_files_that_are_listed_twice_are_remarked_on(folder: Path) -> None:
    rows = [(*row, "train") for row in ROWS[:6]] + [(*row, "val") for row in ROWS[6:]]
    rows += [("0.png", "cat", "train"), ("1.png", "cat", "val")]
    data = CsvData(write(folder / "labels.csv", "path,label,split", rows))
    assert data.remarks == [
        "Files listed with different labels: 1. The first: 0.png.",
        "Files listed in more than one split: 1. The first: 1.png.",
    ]


def test_files_that_are_not_there_are_counted_before_training(folder: Path) -> None:
    file = write(folder / "labels.csv", "path,label", [*ROWS, ("8.png", "cat"), ("9.png", "dog")])
    with pytest.raises(InvalidConfig, match=r"2 of the 10 files that labels lists are not there.*8\.png.*image_folder"):
        CsvData(file, val_fraction=0.5).check()
    CsvData(file, val_fraction=0.5, max_bad_samples=2).check()


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"PK\3\4" + bytes(9), "an Excel or ZIP file"), (b"\x1f\x8b\x08", "a gzip file"), (b"p\0a\0,\0", "not text")],
)
def test_another_kind_of_file_is_named(content: bytes, what: str, folder: Path) -> None:
    (folder / "labels.csv").write_bytes(content)
    with pytest.raises(InvalidConfig, match=f"is no CSV file: it is {what}"):
        CsvData(str(folder / "labels.csv"))


def test_a_table_that_is_cut_off_is_refused(folder: Path) -> None:
    (folder / "labels.csv").write_bytes("path,label\n0.png,cat\n".encode("utf-16")[:-1])
    with pytest.raises(InvalidConfig, match=r"labels.csv is no CSV file: .*Save it as CSV in UTF-8"):
        CsvData(str(folder / "labels.csv"))


def test_a_column_of_splits_is_followed(folder: Path) -> None:
    splits = ["train"] * 4 + ["Validation"] * 2 + ["test"] * 2
    rows = [(name, label, split) for (name, label), split in zip(ROWS, splits, strict=True)]
    data = CsvData(write(folder / "labels.csv", "path,label,split", rows))
    assert [data.num_images(split) for split in ("train", "val", "test")] == [4, 2, 2]
    assert data.source("test").name(1) == str(folder / "7.png")


def test_a_test_split_without_labels_is_not_measured_on(folder: Path) -> None:
    rows = [(*row, "train") for row in ROWS[:4]] + [(*row, "val") for row in ROWS[4:6]]
    rows += [(name, "", "test") for name, _ in ROWS[6:]]
    data = CsvData(write(folder / "labels.csv", "path,label,split", rows))
    assert data.num_images("test") == 2
    assert data.predict_source().targets.tolist() == [-1, -1]


def test_labels_that_are_numbers_are_in_the_order_of_numbers(folder: Path) -> None:
    rows = [(name, str(label)) for (name, _), label in zip(ROWS, [10, 9, 10, 9, 2, 2, 10, 9], strict=True)]
    assert CsvData(write(folder / "labels.csv", "image,class", rows), val_fraction=0.3).labels == ["2", "9", "10"]


def test_a_folder_with_one_table_and_paths_elsewhere_are_found(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    write(tmp_path / "table" / "labels.csv", "name,kind", list(ROWS))
    options: dict[str, Any] = {"image_folder": str(folder), "path_column": "name", "label_column": "kind"}
    data = CsvData(str(tmp_path / "table"), val_fraction=0.25, image=SMALL, **options)
    data.check()
    assert data.source("train").read(0)


SEVERAL = ["cat|dog", "", "dog", "cat", "eel", "dog|eel", "cat", ""]
BITS = [["1", "1", "0"], ["0", "0", "0"], ["0", "1", "0"], ["1", "0", "0"]]
BITS += [["0", "0", "1"], ["0", "1", "1"], ["1", "0", "0"], ["0", "0", "0"]]


@pytest.mark.parametrize("separator", ["|", ";", " "])
def test_several_labels_in_a_cell_become_a_row_of_0_and_1(separator: str, folder: Path) -> None:
    rows = [(f"{number}.png", cell.replace("|", separator)) for number, cell in enumerate(SEVERAL)]
    options: dict[str, Any] = {"label_separator": separator} if separator == " " else {}
    data = CsvData(write(folder / "labels.csv", "path,labels", rows), multi_label=True, val_fraction=0.4, **options)
    data.check()
    assert data.labels == ["cat", "dog", "eel"]
    rows_NK = {}
    for source in (data.source("train"), data.source("val")):
        for index, row_K in enumerate(source.targets):
            rows_NK[int(Path(source.name(index)).stem)] = row_K.tolist()
    assert [rows_NK[number] for number in range(8)] == [[int(bit) for bit in bits] for bits in BITS]
    assert len(data.dataset("val")[BatchIndex(0, [0, 1])].targets[0]) == 3
    assert data.class_counts() == data.source("train").targets.sum(0).tolist()


@pytest.mark.parametrize("options", [{}, {"label_columns": ["cat", "dog", "eel"]}])
def test_columns_of_0_and_1_are_classes(options: dict[str, Any], folder: Path) -> None:
    rows = [(f"{number}.png", f"shot {number}", *bits) for number, bits in enumerate(BITS)]
    rows[7] = ("7.png", "shot 7", "", "", "")
    data = CsvData(
        write(folder / "labels.csv", "path,remark,cat,dog,eel", rows), multi_label=True, val_fraction=0.4, **options
    )
    data.check()
    assert data.labels == ["cat", "dog", "eel"]
    assert data.num_images("train") + data.num_images("val") == 7
    assert "1 of the 8 images of the train split have no label and are left out." in data.remarks


@pytest.mark.parametrize(
    ("header", "cells", "options", "sentence"),
    [
        ("path,labels", "cat|dog", {"label_separator": "|"}, "Add --data.multi_label true"),
        ("path,a,b", "1,2", {"multi_label": True, "label_columns": ["a", "b"]}, "column 'b' .* must be 0 or 1"),
        ("path,a,b", "x,y", {"multi_label": True}, "neither a column 'label' nor columns of 0 and 1"),
        ("path,a,b", "1,0", {"multi_label": True, "label_columns": ["a", "c"]}, "has no column 'c'; it has path, a, b"),
        ("path,a,b", "1,0", {"multi_label": True, "label_columns": ["a"], "label_column": "b"}, "Give either"),
    ],
)
def test_several_labels_that_cannot_be_read_are_refused(
    header: str, cells: str, options: dict[str, Any], sentence: str, folder: Path
) -> None:
    rows = [(f"{number}.png", *cells.split(",")) for number in range(8)]
    with pytest.raises(InvalidConfig, match=sentence):
        CsvData(write(folder / "labels.csv", header, rows), val_fraction=0.25, **options)


@pytest.mark.parametrize(
    ("header", "rows", "sentence"),
    [
        ("name,label", [("0.png", "cat")], "has no column 'path'; it has name, label. Give --data.path_column"),
        ("path,kind", [("0.png", "cat")], "has no column 'label'; it has path, kind. Give --data.label_column"),
        ("path,label,split", [("0.png", "cat", "old")], "Row 2 of .* has the split 'old'"),
        ("path,label", [("0.png", "cat", "x")], "Row 2 of .* has 3 fields, the header has 2"),
        ("path,label", [], "has no rows below a header"),
        ("path,label", [("0.png", "cat"), ("1.png", "dog")], "Give --data.val_fraction"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(
    header: str, rows: Sequence[tuple[str, ...]], sentence: str, folder: Path
) -> None:
    with pytest.raises(InvalidConfig, match=sentence):
        CsvData(write(folder / "labels.csv", header, rows))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"labels.csv cannot be read: No such file"):
        CsvData(str(tmp_path / "labels.csv"))


def test_another_encoding_is_guessed_with_a_remark_and_may_be_given(folder: Path) -> None:
    rows = [(name, label.replace("cat", "\u732b")) for name, label in ROWS]
    file = write(folder / "labels.csv", "path,label", rows, "shift_jis")
    [remark] = CsvData(file, val_fraction=0.25).remarks
    assert "is read as Windows-1252, such as '\u201dL'. If that is wrong, give its encoding" in remark
    data = CsvData(file, val_fraction=0.25, encoding="shift_jis")
    assert data.labels == ["dog", "\u732b"]
    assert not data.remarks
    for encoding in ("utf-8", "no such"):
        with pytest.raises(InvalidConfig, match=f"is no CSV file: --data.encoding {encoding}: "):
            CsvData(file, encoding=encoding)


@pytest.mark.parametrize("encoding", ["utf-32", "utf-16-le", "utf-16-be"])
def test_text_of_two_and_four_bytes_a_character_is_read(encoding: str, folder: Path) -> None:
    file = write(folder / "labels.csv", "path,label", ROWS, encoding)
    options: dict[str, Any] = {} if encoding == "utf-32" else {"encoding": encoding}
    assert CsvData(file, val_fraction=0.25, **options).labels == ["cat", "dog"]


def test_a_table_without_a_header_is_named(folder: Path) -> None:
    file = write(folder / "labels.csv", "0.png,dog", ROWS[1:])
    with pytest.raises(
        InvalidConfig, match=r"names an image: 0.png, dog\. A table needs a header\. Write .*path,label"
    ):
        CsvData(file, val_fraction=0.25)


def test_paths_without_an_ending_or_in_another_unicode_form_are_found(folder: Path) -> None:
    (folder / "0.png").rename(folder / "caf\u00e9.png")
    (folder / "1.png").rename(folder / "e\u0301.png")
    rows = [("cafe\u0301", "dog"), ("\u00e9", "cat"), *((name.removesuffix(".png"), label) for name, label in ROWS[2:])]
    data = CsvData(write(folder / "labels.csv", "image_id,label", rows), val_fraction=0.25)
    data.check()
    assert data.num_images("train") == 6


def test_a_listed_device_is_not_read(folder: Path) -> None:
    source = PathSource(folder, [os.devnull], np.zeros(1, np.int64))
    with pytest.raises(OSError, match="a device, not a file"):
        source.read(0)


def test_urls_are_refused_except_those_of_files(folder: Path) -> None:
    rows = [(f"{folder.as_uri()}/{name}", label) for name, label in ROWS]
    CsvData(write(folder / "labels.csv", "path,label", rows), val_fraction=0.25).check()
    rows[3] = ("https://host/3.png", "cat")
    with pytest.raises(InvalidConfig, match=r"Row 5 of .* names the URL https://host/3.png, and eca-hub does not"):
        CsvData(write(folder / "labels.csv", "path,label", rows), val_fraction=0.25)


def test_a_column_of_folds_is_no_column_of_splits(folder: Path) -> None:
    rows = [(*row, str(number % 5)) for number, row in enumerate(ROWS)]
    data = CsvData(write(folder / "labels.csv", "path,label,fold", rows), val_fraction=0.25)
    assert data.num_images("train") == 6
    assert data.remarks == ["The column 'fold' names no split, such as train, and is not used."]
    with pytest.raises(InvalidConfig, match="has the split '0'; it must be train, val or test"):
        CsvData(str(folder / "labels.csv"), split_column="fold")


def test_measurements_are_no_classes(folder: Path) -> None:
    rows = [(name, f"{number * 0.37:.2f}") for number, (name, _) in enumerate(ROWS)]
    with pytest.raises(InvalidConfig, match=r"are numbers such as 0.00, 8 different ones in 8 rows"):
        CsvData(write(folder / "labels.csv", "path,label", rows), val_fraction=0.25)


def test_a_class_whose_name_may_stand_for_no_label_is_remarked_on(folder: Path) -> None:
    rows = [(name, label.replace("cat", "None")) for name, label in ROWS]
    data = CsvData(write(folder / "labels.csv", "path,label", rows), val_fraction=0.25)
    assert data.labels == ["None", "dog"]
    assert data.remarks == [
        "'None' is a class of 4 training images; if it stands for a missing label, leave the cell empty."
    ]


def test_rows_that_repeat_are_remarked_on(folder: Path) -> None:
    data = CsvData(write(folder / "labels.csv", "path,label", [*ROWS, ROWS[0]]), val_fraction=0.25)
    assert data.remarks == ["Files listed more than once: 1. The first: 0.png."]


def test_more_broken_images_are_not_offered_where_every_file_is_missing(folder: Path) -> None:
    file = write(folder / "labels.csv", "path,label", [(f"C:\\data\\{name}", label) for name, label in ROWS])
    with pytest.raises(InvalidConfig, match=r"8 of the 8 files .* Give --data.image_folder, .* relative to\.$"):
        CsvData(file, val_fraction=0.25, max_bad_samples=99).check()
    with pytest.raises(InvalidConfig, match="There is no folder /none"):
        CsvData(file, image_folder="/none")


@pytest.mark.parametrize(
    ("header", "row", "options"),
    [("path,label,label", ("a", "c"), {}), ("path,cat,cat,dog", ("1", "0", "1"), {"multi_label": True})],
)
def test_a_column_that_is_there_twice_is_refused(
    header: str, row: tuple[str, ...], options: dict[str, Any], folder: Path
) -> None:
    file = write(folder / "labels.csv", header, [(name, *row) for name, _ in ROWS])
    with pytest.raises(InvalidConfig, match=r"has two columns '(label|cat)'\. Rename one of them"):
        CsvData(file, val_fraction=0.25, image=SMALL, **options)


def test_a_cell_that_is_longer_than_a_path_can_be_is_a_missing_file(folder: Path) -> None:
    file = write(folder / "labels.csv", "file,label", [*ROWS, ("x" * 5000, "cat")])
    with pytest.raises(InvalidConfig, match="xxx"):
        CsvData(file, val_fraction=0.25, image=SMALL).check()
