"""The table of results, written and read."""

from pathlib import Path

import pytest

from eca_hub.errors import InvalidConfig
from eca_hub.sweep.results import read_table, write_table

ROWS = [
    {"run": "a", "attention": "none", "test_top1": 0.5, "seed": 0},
    {"run": "b", "attention": "eca", "test_top1": 0.75},
]


@pytest.mark.parametrize("name", ["results.csv", "results.parquet"])
def test_what_was_written_is_read(tmp_path: Path, name: str) -> None:
    write_table(ROWS, tmp_path / name)
    first, second = read_table(tmp_path / name)
    assert first == ROWS[0]
    assert second["attention"] == "eca"
    assert second["seed"] in ("", None)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("absent.csv", None, "No such file"),
        ("results.txt", b"", r"must be a file named \*.csv or \*.parquet"),
        ("results.parquet", b"no parquet", "cannot be read"),
        ("results.csv", b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_an_unreadable_file_is_one_sentence(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidConfig, match=words):
        read_table(tmp_path / name)


def test_a_column_of_numbers_and_words_is_text_in_parquet(tmp_path: Path) -> None:
    write_table([{"run": "a", "k": 3, "lr": 0.5}, {"run": "b", "k": "adaptive", "lr": ""}], tmp_path / "t.parquet")
    rows = read_table(tmp_path / "t.parquet")
    assert [row["k"] for row in rows] == ["3", "adaptive"]
    assert [row["lr"] for row in rows] == [0.5, None]


def test_a_row_with_too_many_cells_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("run,k\na,3,5\n")
    with pytest.raises(InvalidConfig, match="line 2 has more cells than the first"):
        read_table(tmp_path / "t.csv")


def test_a_label_that_utf_8_cannot_encode_is_escaped_as_in_the_tables_of_a_run(tmp_path: Path) -> None:
    write_table([{"run": "a", "label": "Käfer\ud800"}], tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_bytes() == b"run,label\na,K\xc3\xa4fer\\ud800\n"
