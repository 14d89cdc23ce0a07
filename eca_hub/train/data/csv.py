"""Images listed in a CSV file: a path, a label and, if there is one, a split in each row."""

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from eca_hub.errors import InvalidConfig
from eca_hub.train.data.datamodule import FileDataModule, check_labels
from eca_hub.train.data.labels import class_names, to_targets
from eca_hub.train.data.source import Source, Split, fingerprint_of, readable_name

_PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img")
_LABEL_COLUMNS = ("label", "class", "category", "target", "labels", "class_name")
_SPLIT_COLUMNS = ("split", "set", "subset", "fold")
_SPLITS: dict[str, Split] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


class CsvData(FileDataModule):
    """Images listed in a CSV file with a header: columns `path`, `label` and, if there is one, `split`.

    A split is train, val or test; without such a column, val_fraction holds out images to validate on. A folder with
    train.csv beside val.csv or test.csv has a file for each split instead. Rows without a label are left out of
    training.

    Args:
        root: The CSV file, or a folder with one or with one for each split; fields are separated by comma, semicolon or
            tab.
        image_folder: Folder that the paths are relative to; None for the folder of the CSV file.
        path_column: Column of the paths; None finds path, file, filename, image and the like.
        label_column: Column of the classes; None finds label, class, category and the like.
        split_column: Column of the splits; None finds split, if it is there.
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
        **options: object,
    ) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        file = Path(root)
        tables = _find_tables(file)
        file = next(iter(tables.values()))
        self.title = readable_name((file if len(tables) == 1 else Path(root).resolve()).stem) or "images"
        by_split: dict[Split, list[tuple[str, str]]] = {}
        for split, table in tables.items():
            for found, path, label in _read_rows(table, split, path_column, label_column, split_column):
                by_split.setdefault(found, []).append((path, label))
        if "train" not in by_split:
            raise InvalidConfig(f"{file} has no row of the train split.")
        values = {split: [readable_name(label) or None for _, label in rows] for split, rows in by_split.items()}
        self.labels = class_names(values["train"])
        folder = Path(image_folder) if image_folder else file.parent
        sources: dict[Split, Source] = {}
        for split, rows in by_split.items():
            check_labels(self.labels, class_names(values[split]), split, self.title)
            paths = [path for path, _ in rows]
            sources[split] = PathSource(folder, paths, to_targets(values[split], self.labels))
        self.use_splits(sources, root)


class PathSource:
    """Images by their paths.

    Args:
        folder: Folder that the paths are relative to.
        paths: Of the images.
        targets: Class index of each, (N,).
    """

    def __init__(self, folder: Path, paths: Sequence[str], targets: np.ndarray) -> None:
        self._folder = folder
        self._paths = list(paths)
        self.targets = targets

    def read(self, index: int) -> bytes:
        """Return one encoded image."""
        return (self._folder / self._paths[index]).read_bytes()

    def name(self, index: int) -> str:
        """Return its path."""
        return readable_name(str(self._folder / self._paths[index]))

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


def _read_rows(
    file: Path, split: Split | None, path_column: str | None, label_column: str | None, split_column: str | None
) -> Iterator[tuple[Split, str, str]]:
    """Yield split, path and label of each row."""
    header, rows = _read_table(file)
    path_index = _find(header, path_column, _PATH_COLUMNS, "path", file)
    # A test split may have no labels, as in a competition.
    has_labels = split != "test" or label_column or set(_LABEL_COLUMNS) & {name.casefold() for name in header}
    label_index = _find(header, label_column, _LABEL_COLUMNS, "label", file) if has_labels else None
    has_splits = split is None and (split_column or set(_SPLIT_COLUMNS) & {name.casefold() for name in header})
    split_index = _find(header, split_column, _SPLIT_COLUMNS, "split", file) if has_splits else None
    for number, row in enumerate(rows, 2):
        found = split or ("train" if split_index is None else _split_of(row[split_index], number, file))
        # Windows writes paths with backslashes.
        path = row[path_index].strip().replace("\\", "/")
        yield found, path, "" if label_index is None else row[label_index].strip()


def _read_table(file: Path) -> tuple[list[str], list[list[str]]]:
    try:
        text = _decode(file.read_bytes())
        first, _, rest = text.partition("\n")
        # Excel may state the delimiter in a line of its own.
        if (stated := first.strip()).casefold().startswith("sep=") and len(stated) == 5:
            text, delimiter = rest, stated[-1]
        else:
            delimiter = max(",;\t", key=first.count)
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        rows = [row for row in lines if any(cell.strip() for cell in row)]
    except OSError as error:
        raise InvalidConfig(f"{file} cannot be read: {error.strerror}.", hint="Give --data.root FILE.csv.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidConfig(f"{file} is no CSV file: {error}.", hint="Save it as CSV in UTF-8.") from None
    if len(rows) < 2:
        raise InvalidConfig(f"{file} has no rows below a header.")
    header = [cell.strip() for cell in rows[0]]
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise InvalidConfig(f"Row {number} of {file} has {len(row)} fields, the header has {len(header)}.")
    return header, rows[1:]


def _decode(content: bytes) -> str:
    """Decode UTF-8, UTF-16 with a byte order mark (Excel's "Unicode text"), or else Windows' western code page.

    Raises:
        UnicodeDecodeError: UTF-16 that is cut off.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")


def _find(header: list[str], given: str | None, usual: Sequence[str], what: str, file: Path) -> int:
    names = [name.casefold() for name in header]
    for name in [given] if given else usual:
        if name.casefold() in names:
            return names.index(name.casefold())
    raise InvalidConfig(
        f"{file} has no column {given or usual[0]!r}; it has {', '.join(header)}.", hint=f"Give --data.{what}_column."
    )


def _split_of(cell: str, number: int, file: Path) -> Split:
    split = _SPLITS.get(cell.strip().casefold())
    if split is None:
        raise InvalidConfig(f"Row {number} of {file} has the split {cell!r}; it must be train, val or test.")
    return split
