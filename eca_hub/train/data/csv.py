"""Images listed in a CSV file: a path, a label or several, and, if there is one, a split in each row."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from eca_hub.errors import InvalidConfig
from eca_hub.images.files import read_file
from eca_hub.images.folders import IMAGE_ENDINGS
from eca_hub.paths import expand_home
from eca_hub.train.data.datamodule import FileDataModule, check_labels
from eca_hub.train.data.labels import class_names, read_values, to_multi_hot, to_targets
from eca_hub.train.data.source import Split, fingerprint_of, readable_name
from eca_hub.train.data.table import find_file, is_file, read_table

_PATH_COLUMNS = (
    "path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img", "img_path",
    "image_name", "img_name", "image_id", "images", "filenames", "id_code", "id",
)  # fmt: skip
_LABEL_COLUMNS = ("label", "class", "category", "target", "labels", "class_name")
_SPLIT_COLUMNS = ("split", "set", "subset", "fold")
_SEPARATORS = ("|", ";", ",")
_BITS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True, "no": False, "yes": True}
_HIDDEN = "-1"
"""Label of all rows of a test split whose labels are not published."""
_MISSING_WORDS = {"na", "n/a", "#n/a", "null", "none", "?"}
"""Words for a missing value that may be the name of a class, too."""
_URL_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_SPLITS: dict[str, Split] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


class CsvData(FileDataModule):
    """Images listed in a CSV file with a header: columns `path`, `label` and, if there is one, `split`.

    A split is train, val or test; without such a column, val_fraction holds out images to validate on. A folder with
    train.csv beside val.csv or test.csv has a file for each split instead. Rows without a label are left out of
    training.

    With multi_label, any number of classes applies to an image. They are in one column, as in `cat|dog`, where nothing
    says that none applies; or each has a column of 0 and 1.

    Args:
        root: The CSV file, or a folder with one or with one for each split; fields are separated by comma, semicolon,
            tab or a vertical bar.
        image_folder: Folder that the paths are relative to; None for the folder of the CSV file.
        path_column: Column of the paths; None finds path, file, filename, image and the like.
        label_column: Column of the classes; None finds label, class, category and the like.
        split_column: Column of the splits; None finds split, if it is there.
        multi_label: Whether any number of classes applies to an image.
        label_separator: Between the classes of an image in label_column; None finds `|`, `;` or `,`.
        label_columns: Columns of 0 and 1, one a class; None takes all such columns where there is no label_column.
        encoding: Encoding of the file, such as shift_jis; None takes UTF-8, UTF-16 and, with a remark, Windows-1252.
        options: val_fraction, image, augment, batch_size, num_workers, cache_mib, max_bad_samples, balanced_sampling.

    Raises:
        InvalidConfig: a column is missing, or a split or label cannot be.
    """

    def __init__(
        self,
        root: str,
        image_folder: str | None = None,
        path_column: str | None = None,
        label_column: str | None = None,
        split_column: str | None = None,
        multi_label: bool = False,
        label_separator: str | None = None,
        label_columns: list[str] | None = None,
        encoding: str | None = None,
        **options: object,
    ) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        if (label_separator is not None or label_columns) and not multi_label:
            raise InvalidConfig(
                "data.label_separator and data.label_columns are for images with any number of classes.",
                hint="Add --data.multi_label true.",
            )
        if label_columns and (label_separator is not None or label_column):
            raise InvalidConfig("Give either data.label_columns, or data.label_column and data.label_separator.")
        self.is_multi_label = multi_label
        file = expand_home(root)
        tables = _find_tables(file)
        file = next(iter(tables.values()))
        self.title = readable_name((file if len(tables) == 1 else file.parent.resolve()).stem) or "images"
        by_split: dict[Split, list[tuple[str, Any]]] = {}
        find_labels: _FindLabels = partial(_one_column, label_column)
        if multi_label:
            find_labels = partial(_several_columns, label_column, label_columns)
        for split, table in tables.items():
            header, lines = read_table(table, encoding, self.remarks)
            triples = _read_rows(table, header, lines, split, path_column, split_column, find_labels, self.remarks)
            for row_split, path, label in triples:
                by_split.setdefault(row_split, []).append((path, label))
        if "train" not in by_split:
            raise InvalidConfig(f"{file} has no row of the train split.")
        values: dict[Split, list[Any]] = {split: [label for _, label in rows] for split, rows in by_split.items()}
        if multi_label:
            separator = label_separator or _find_separator(label for labels in values.values() for label in labels)
            values = {split: _split_cells(labels, separator) for split, labels in values.items()}
            if "test" in values and not any(values["test"]):
                values["test"] = [None] * len(values["test"])
        else:
            remaining = iter(read_values([label for labels in values.values() for label in labels]))
            values = {split: [next(remaining) for _ in labels] for split, labels in values.items()}
            _check_classes(values["train"], file)
            self._remark_on_missing_words(values["train"])
            if set(values.get("test", [])) == {_HIDDEN}:
                values["test"] = [None] * len(values["test"])
        encode: Callable[[Any, list[str]], np.ndarray] = to_multi_hot if multi_label else to_targets
        self.labels = class_names(values["train"])
        folder = expand_home(image_folder) if image_folder else file.parent
        if not folder.is_dir():
            raise InvalidConfig(
                f"There is no folder {folder}.", hint="Give --data.image_folder, which the paths are relative to."
            )
        self._remark_on_repeated_files(by_split)
        sources: dict[Split, PathSource] = {}
        for split, rows in by_split.items():
            check_labels(self.labels, class_names(values[split]), split, self.title)
            sources[split] = PathSource(folder, [path for path, _ in rows], encode(values[split], self.labels))
        self._listed = list(sources.values())
        self.use_splits(sources, root)

    def check(self) -> None:
        """Check the data, as the base does, and that the listed files are there.

        Raises:
            InvalidConfig: more files are missing than max_bad_samples allows.
        """
        missing = [name for source in self._listed for name in source.missing_files()]
        num_listed = sum(len(source.targets) for source in self._listed)
        if len(missing) > self.max_bad_samples or len(missing) == num_listed:
            allow = f"; or allow for them with --data.max_bad_samples {len(missing)}"
            raise InvalidConfig(
                f"{len(missing)} of the {num_listed} files that {self.title} lists are not there. The first: "
                f"{readable_name(missing[0])}.",
                hint="Give --data.image_folder, which the paths are relative to"
                f"{allow if len(missing) < num_listed else ''}.",
            )
        super().check()

    def _remark_on_repeated_files(self, by_split: dict[Split, list[tuple[str, Any]]]) -> None:
        num_rows: Counter[tuple[Split, str, str]] = Counter()
        labels: dict[str, set[str]] = {}
        splits: dict[str, set[Split]] = {}
        for split, rows in by_split.items():
            for path, label in rows:
                num_rows[split, path, str(label)] += 1
                labels.setdefault(path, set()).add(str(label))
                splits.setdefault(path, set()).add(split)
        if repeated := [path for (_, path, _), times in num_rows.items() if times > 1]:
            self.remarks.append(
                f"Files listed more than once: {len(repeated)}. The first: {readable_name(repeated[0])}."
            )
        for values_by_path, problem in ((labels, "with different labels"), (splits, "in more than one split")):
            if repeated := [path for path, values in values_by_path.items() if len(values) > 1]:
                self.remarks.append(
                    f"Files listed {problem}: {len(repeated)}. The first: {readable_name(repeated[0])}."
                )

    def _remark_on_missing_words(self, labels: list[str | None]) -> None:
        for label, times in Counter(label for label in labels if label is not None).items():
            if label.casefold() in _MISSING_WORDS:
                self.remarks.append(
                    f"{label!r} is a class of {times} training images; if it stands for a missing label, leave the "
                    "cell empty."
                )


class PathSource:
    """Images by their paths.

    Args:
        folder: Folder that the paths are relative to.
        paths: Of the images.
        targets: Class index of each (N,), or which classes apply (N, K).
    """

    def __init__(self, folder: Path, paths: Sequence[str], targets: np.ndarray) -> None:
        self._folder = folder
        self._paths = [find_file(folder, path) for path in paths]
        self.targets = targets

    def read(self, index: int) -> bytes:
        """Return one encoded image."""
        return read_file(self._folder / self._paths[index])

    def name(self, index: int) -> str:
        """Return its path."""
        return readable_name(str(self._folder / self._paths[index]))

    def missing_files(self) -> list[str]:
        """Return the paths of the files that are not there."""
        return [str(self._folder / path) for path in self._paths if not is_file(self._folder / path)]

    def fingerprint(self) -> str:
        """Hash paths and labels."""
        return fingerprint_of([*self._paths, self.targets.tobytes().hex()])


def _find_tables(root: Path) -> dict[Split | None, Path]:
    """Return the file of each split; under None the one that names splits itself, or has none."""
    if not root.is_dir():
        return {None: root}
    files = sorted(path for path in root.iterdir() if path.suffix.lower() in (".csv", ".tsv"))
    if len(files) == 1:
        return {None: files[0]}
    tables: dict[Split | None, Path] = {}
    for path in files:
        if split := _SPLITS.get(path.stem.casefold()):
            if split in tables:
                raise InvalidConfig(
                    f"{root} has {tables[split].name} and {path.name}; which is the {split} split?",
                    hint="Keep one of them there.",
                )
            tables[split] = path
    if "train" not in tables:
        names = ", ".join(path.name for path in files[:5]) or "no CSV file"
        raise InvalidConfig(f"{root} has no train.csv; it holds {names}.", hint="Give --data.root FILE.csv.")
    return tables


_ReadLabel = Callable[[list[str]], Any]
"""From a row to its class or to the list of its classes; a cell that names several is returned as it is."""
_FindLabels = Callable[[list[str], list[list[str]], set[int], Path, bool], _ReadLabel]
"""From header, rows, the positions of other columns, the file, and whether labels may be missing."""


def _read_rows(
    file: Path,
    header: list[str],
    rows: list[list[str]],
    split: Split | None,
    path_column: str | None,
    split_column: str | None,
    find_labels: _FindLabels,
    remarks: list[str],
) -> Iterator[tuple[Split, str, Any]]:
    """Yield split, path and label of each row."""
    if not path_column and any(cell.lower().endswith(IMAGE_ENDINGS) for cell in header):
        raise InvalidConfig(
            f"The first line of {file} names an image: {', '.join(header)}. A table needs a header.",
            hint=f"Write a line such as path,label{',split' if len(header) > 2 else ''} above it.",
        )
    path_index = _find(header, path_column, _PATH_COLUMNS, "path", file)
    has_splits = split is None and (split_column or set(_SPLIT_COLUMNS) & {name.casefold() for name in header})
    split_index = _find(header, split_column, _SPLIT_COLUMNS, "split", file) if has_splits else None
    if split_index is not None and not split_column and header[split_index].casefold() != _SPLIT_COLUMNS[0]:
        cells = {row[split_index].strip().casefold() for row in rows}
        if not cells & _SPLITS.keys():
            # Such as the numbers of folds of a cross-validation.
            remarks.append(f"The column {header[split_index]!r} names no split, such as train, and is not used.")
            split_index = None
    others = {path_index} if split_index is None else {path_index, split_index}
    # A test split may have no labels, as in a competition.
    read_label = find_labels(header, rows, others, file, split == "test")
    for number, row in enumerate(rows, 2):
        row_split = split or ("train" if split_index is None else _split_of(row[split_index], number, file))
        yield row_split, _local_path(row[path_index], number, file), read_label(row)


def _local_path(cell: str, number: int, file: Path) -> str:
    """Return the path in a cell, without `file://`; any other URL is refused."""
    # Windows writes paths with backslashes.
    path = cell.strip().replace("\\", "/")
    scheme = _URL_SCHEME.match(path)
    if scheme is None:
        return path
    if scheme[0].casefold() != "file://":
        raise InvalidConfig(
            f"Row {number} of {file} names the URL {path[:100]}, and eca-hub does not download images.",
            hint="Download them, and list the paths.",
        )
    return unquote(path[len(scheme[0]) :])


def _one_column(
    label_column: str | None, header: list[str], rows: list[list[str]], others: set[int], file: Path, may_lack: bool
) -> _ReadLabel:
    """Find the column of classes."""
    if may_lack and not label_column and not _has_label_column(header):
        return lambda row: None
    column = _find(header, label_column, _LABEL_COLUMNS, "label", file)
    return lambda row: readable_name(row[column].strip()) or None


def _several_columns(
    label_column: str | None,
    label_columns: list[str] | None,
    header: list[str],
    rows: list[list[str]],
    others: set[int],
    file: Path,
    may_lack: bool,
) -> _ReadLabel:
    """Find the column that names the classes of each image, or the columns of 0 and 1."""
    if not label_columns and (label_column or _has_label_column(header)):
        column = _find(header, label_column, _LABEL_COLUMNS, "label", file)
        return lambda row: row[column]
    if label_columns:
        column_of = {readable_name(name): _find(header, name, (), "label", file) for name in label_columns}
    else:
        columns = [
            (readable_name(name), index)
            for index, name in enumerate(header)
            if index not in others and {row[index].strip().casefold() for row in rows} <= _BITS.keys() | {""}
        ]
        column_of = dict(columns)
        if len(column_of) < len(columns):
            twice = next(name for name, number in Counter(name for name, _ in columns).items() if number > 1)
            raise InvalidConfig(f"{file} has two columns {twice!r}.", hint="Rename one of them.")
    if len(column_of) < 2:
        if may_lack:
            return lambda row: None
        raise InvalidConfig(
            f"{file} has neither a column 'label' nor columns of 0 and 1; it has {', '.join(header)}.",
            hint="Give --data.label_column or --data.label_columns.",
        )
    return partial(_read_bits, column_of, file)


def _read_bits(column_of: dict[str, int], file: Path, row: list[str]) -> list[str] | None:
    cells = {label: row[index].strip().casefold() for label, index in column_of.items()}
    if not any(cells.values()):
        return None
    for label, cell in cells.items():
        if cell not in _BITS:
            raise InvalidConfig(
                f"The column {label!r} of {file} holds {cell!r} beside {row[0]!r}; with data.multi_label it must be 0 "
                "or 1."
            )
    return [label for label, cell in cells.items() if _BITS[cell]]


def _has_label_column(header: list[str]) -> bool:
    return bool(set(_LABEL_COLUMNS) & {name.casefold() for name in header})


def _find_separator(labels: Iterable[Any]) -> str:
    """Return the first of the usual separators that occurs; any of them where there is one class in each cell."""
    cells = [label for label in labels if isinstance(label, str)]
    return next((each for each in _SEPARATORS if any(each in cell for cell in cells)), _SEPARATORS[0])


def _split_cells(labels: list[Any], separator: str) -> list[list[str] | None]:
    """Split the cells that name several classes; lists of classes stay."""
    return [
        [readable_name(part.strip()) for part in label.split(separator) if part.strip()]
        if isinstance(label, str)
        else label
        for label in labels
    ]


def _check_classes(labels: Sequence[str | None], file: Path) -> None:
    """Refuse labels that are measurements, such as 0.37, and not classes."""
    given = [label for label in labels if label is not None]
    is_number = all(re.fullmatch(r"[-+]?\d*\.?\d+(e[-+]?\d+)?", label, re.IGNORECASE) for label in given)
    if is_number and len(set(given)) > len(given) / 2 and any("." in label for label in given):
        raise InvalidConfig(
            f"The labels of {file} are numbers such as {given[0]}, {len(set(given))} different ones in {len(given)} "
            "rows; a classifier learns classes.",
            hint="Give another --data.label_column, or write the name of a range in their place.",
        )


def _find(header: list[str], given: str | None, usual: Sequence[str], role: str, file: Path) -> int:
    hint = f"Give --data.{role}_column."
    if role == "label" and not given:
        hint += " If each class has a column of 0 and 1: --data.multi_label true."
    names = [name.casefold() for name in header]
    for name in [given] if given else usual:
        if names.count(name.casefold()) > 1:
            raise InvalidConfig(f"{file} has two columns {name!r}.", hint="Rename one of them.")
        if name.casefold() in names:
            return names.index(name.casefold())
    raise InvalidConfig(f"{file} has no column {given or usual[0]!r}; it has {', '.join(header)}.", hint=hint)


def _split_of(cell: str, number: int, file: Path) -> Split:
    split = _SPLITS.get(cell.strip().casefold())
    if split is None:
        raise InvalidConfig(f"Row {number} of {file} has the split {cell!r}; it must be train, val or test.")
    return split
