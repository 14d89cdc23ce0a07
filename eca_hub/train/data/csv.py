"""Images listed in a CSV file: a path, a label and, if there is one, a split in each row."""

import csv
from collections.abc import Sequence
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

    A split is train, val or test; without such a column, val_fraction holds out images to validate on. Rows without a
    label are left out of training.

    Args:
        root: The CSV file; fields are separated by comma, semicolon or tab.
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
        if file.is_dir() and len(tables := sorted(file.glob("*.csv"))) == 1:
            file = tables[0]
        self.title = readable_name(file.stem) or "images"
        header, rows = _read_table(file)
        path_index = _find(header, path_column, _PATH_COLUMNS, "path", file)
        label_index = _find(header, label_column, _LABEL_COLUMNS, "label", file)
        has_splits = split_column or set(_SPLIT_COLUMNS) & {name.casefold() for name in header}
        split_index = _find(header, split_column, _SPLIT_COLUMNS, "split", file) if has_splits else None
        by_split: dict[Split, list[list[str]]] = {}
        for number, row in enumerate(rows, 2):
            split = "train" if split_index is None else _split_of(row[split_index], number, file)
            by_split.setdefault(split, []).append(row)
        if "train" not in by_split:
            raise InvalidConfig(f"{file} has no row of the train split.")
        values = {
            split: [readable_name(row[label_index].strip()) or None for row in split_rows]
            for split, split_rows in by_split.items()
        }
        self.labels = class_names(values["train"])
        folder = Path(image_folder) if image_folder else file.parent
        sources: dict[Split, Source] = {}
        for split, split_rows in by_split.items():
            check_labels(self.labels, class_names(values[split]), split, self.title)
            paths = [row[path_index].strip() for row in split_rows]
            sources[split] = PathSource(folder, paths, to_targets(values[split], self.labels))
        self.use_splits(sources, str(file))


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


def _read_table(file: Path) -> tuple[list[str], list[list[str]]]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InvalidConfig(f"{file} cannot be read: {error.strerror}.", hint="Give --data.root FILE.csv.") from None
    try:
        # Excel puts a byte order mark before UTF-8.
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if any(cell.strip() for cell in row)]
    if len(rows) < 2:
        raise InvalidConfig(f"{file} has no rows below a header.")
    header = [cell.strip() for cell in rows[0]]
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise InvalidConfig(f"Row {number} of {file} has {len(row)} fields, the header has {len(header)}.")
    return header, rows[1:]


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
