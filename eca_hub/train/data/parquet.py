"""Images in parquet files, as the Hugging Face Hub stores them: a struct of bytes and a path, and a label.

Shapes: N images.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]

from eca_hub.errors import InvalidConfig, NotAnImage
from eca_hub.images.containers import sniff_format
from eca_hub.images.files import read_file
from eca_hub.images.folders import walk_files
from eca_hub.paths import expand_home
from eca_hub.train.data.datamodule import FileDataModule, check_labels
from eca_hub.train.data.hub_dataset import fetch_parquet
from eca_hub.train.data.labels import class_names, label_name, to_multi_hot, to_targets
from eca_hub.train.data.parquet_labels import is_text, label_lists, label_values
from eca_hub.train.data.source import Source, Split, fingerprint_of, pointer_in, readable_name, split_named_by
from eca_hub.train.data.spool import Spool

_SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("validation", "val", "valid", "dev"),
    "test": ("test",),
}
# train.parquet, train-00000-of-00002.parquet or train/0000.parquet, but not training_log.parquet. Spark writes folders
# such as train.parquet/ and split=train/.
_IN_FILE = {name: re.compile(rf"\A{name}(?![a-z])", re.IGNORECASE) for names in _SPLIT_NAMES.values() for name in names}
_OF_FOLDER = {name: re.compile(rf"(split=)?{name}(\.parquet)?", re.IGNORECASE) for name in _IN_FILE}
_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "images", "image_bytes")
_LABEL_COLUMNS = ("label", "labels", "cls", "class", "category", "target")
_BATCH_ROWS = 64
_SNIFFED_BYTES = 512
_MAX_NAME_CHARS = 200
_DAMAGES = (OSError, pa.ArrowException, UnicodeDecodeError)
"""What pyarrow raises for the pages of a damaged file."""


class ParquetData(FileDataModule):
    """Images in parquet files, such as train.parquet, validation.parquet and test.parquet of a data set of the Hub.

    One of validation and test may be missing: the other then serves as both, and the result and the model card say so;
    so may both with val_fraction. Rows without a label are left out; a test split without labels is not measured on.
    The images of a split are unpacked once into a temporary file (see TMPDIR), batch by batch.

    Args:
        root: A folder of parquet files whose names start with their split, or else that lie in a folder named as it;
            or `owner/name` of a data set on the hub.
        image_column: Column of the images; None finds `image`, or the only column of images.
        label_column: Column of the classes, numbers or words; None finds `label`, or the only column of classes.
        subset: Folder of one of several subsets, which `datasets` calls configurations.
        revision: Branch, tag or commit of a data set on the hub.
        multi_label: Whether any number of classes applies to an image: label_column then holds lists, of which an empty
            one says that none applies.
        options: val_fraction, image, augment, batch_size, num_workers, cache_mib, max_bad_samples, balanced_sampling.

    Raises:
        InvalidConfig: a split or a column is missing, or has a label that the train split does not have.
    """

    def __init__(
        self,
        root: str,
        image_column: str | None = None,
        label_column: str | None = None,
        subset: str | None = None,
        revision: str | None = None,
        multi_label: bool = False,
        **options: object,
    ) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.is_multi_label = multi_label
        self.title = readable_name(Path(root).name) or "images"
        folder = expand_home(root)
        if folder.is_file():
            raise InvalidConfig(f"{root} is a file.", hint=f"Give --data.root {folder.parent}, its folder.")
        if not folder.is_dir():
            folder = fetch_parquet(root, revision, subset)
            self.hub_id = root
        files = _find_splits(folder, subset)
        tables = {split: ParquetTable(paths, image_column, label_column, multi_label) for split, paths in files.items()}
        for split, table in tables.items():
            if not table.values:
                raise InvalidConfig(f"The {split} split of {self.title} has no images.")
        self.labels = tables["train"].names or class_names(tables["train"].values)
        sources: dict[Split, Source] = {}
        for split, table in tables.items():
            check_labels(self.labels, class_names(table.values), split, self.title)
            sources[split] = ParquetSource(table, self.labels, multi_label, folder if self.hub_id else None)
        self.use_splits(sources, str(folder))


class ParquetTable:
    """Columns and labels of the parquet files of one split.

    Args:
        paths: The files, in order.
        image_column: Column of the images; None finds it.
        label_column: Column of the classes; None finds it.
        is_multi_label: Whether it holds a list of classes for each image.

    Raises:
        InvalidConfig: a file is not a parquet file or has no such column, or a column has no usable type.
    """

    def __init__(
        self, paths: list[Path], image_column: str | None, label_column: str | None, is_multi_label: bool = False
    ) -> None:
        self.paths = paths
        schemas = [_read_schema(path) for path in paths]
        features = _features(schemas[0].metadata)
        self.image_column = _column(schemas[0].names, image_column, _IMAGE_COLUMNS, features, "Image", paths[0])
        label_column = _column(schemas[0].names, label_column, _LABEL_COLUMNS, features, "ClassLabel", paths[0])
        for path, schema in zip(paths, schemas, strict=True):
            for column in (self.image_column, label_column):
                if column not in schema.names:
                    raise InvalidConfig(
                        f"{path} has no column {column!r}, unlike {paths[0].name}; it has {', '.join(schema.names)}.",
                        hint="If it holds no images, move it to another folder.",
                    )
            _check_image_type(schema.field(self.image_column).type, self.image_column, path)
            if is_text(schema.field(label_column).type) != is_text(schemas[0].field(label_column).type):
                raise InvalidConfig(
                    f"The column {label_column!r} is of type {schemas[0].field(label_column).type} in {paths[0].name}, "
                    f"but {schema.field(label_column).type} in {path.name}.",
                    hint="Write both as words or both as numbers.",
                )
        self.names = _class_label_names(features, label_column)
        """Class names that the files state; empty if they state none."""
        if repeated := [name for name, times in Counter(self.names).items() if times > 1]:
            raise InvalidConfig(f"{paths[0]} names the class {repeated[0]!r} more than once.")
        self.values: list[Any] = []
        """Class name of each row, or the names of several; None where there is none."""
        for path in paths:
            try:
                column = pq.read_table(path, columns=[label_column])[label_column]
            except _DAMAGES as error:
                raise _damaged(path, error) from None
            read = label_lists if is_multi_label else label_values
            self.values += read(column, self.names, label_column, path)
        self.num_rows = [pq.read_metadata(path).num_rows for path in paths]


class ParquetSource:
    """The rows of the parquet files of one split.

    Args:
        table: The files.
        labels: Class names in the order of their indices.
        is_multi_label: Whether the rows have lists of classes.
        snapshot: The folder of a data set of the hub, whose rows may not name files elsewhere.
    """

    def __init__(
        self, table: ParquetTable, labels: list[str], is_multi_label: bool = False, snapshot: Path | None = None
    ) -> None:
        self.targets = to_multi_hot(table.values, labels) if is_multi_label else to_targets(table.values, labels)
        self._paths = table.paths
        self._image_column = table.image_column
        self._snapshot = snapshot
        self._starts = np.cumsum([0, *table.num_rows])
        self._spool = Spool(self._rows, sum(path.stat().st_size for path in self._paths))

    def read(self, index: int) -> bytes:
        """Return one encoded image.

        Raises:
            OSError: the row holds neither bytes nor the path of a file.
            TooLarge: the file has more bytes than are decoded.
        """
        kind, content = self._spool.read(index)
        if kind == _BYTES:
            return content
        if kind == _PATH:
            if reason := _not_a_path(content):
                raise OSError(reason)
            return read_file(self._find(content.decode(), self._file_of(index)[0].parent))
        raise OSError("the row holds no image")

    def name(self, index: int) -> str:
        """Return file and row, and the path that the data set states."""
        path, row = self._file_of(index)
        stated = self._spool.name(index)
        shown = f" ({stated[:_MAX_NAME_CHARS]})" if stated else ""
        return readable_name(f"{path.name} row {row}{shown}")

    def fingerprint(self) -> str:
        """Hash sizes and labels."""
        sizes = [f"{path.name} {path.stat().st_size}" for path in self._paths]
        return fingerprint_of([*sizes, self.targets.tobytes().hex()])

    def _find(self, path: str, folder: Path) -> Path:
        """Return the path of a file relative to the folder of its row, or else to the current one.

        Raises:
            OSError: it leads out of the snapshot of a data set of the hub.
        """
        beside, given = folder / path, Path(path)
        if self._snapshot is None:
            return beside if beside.exists() or not given.exists() else given
        # By name: the files of a snapshot are links into the cache.
        if not Path(os.path.normpath(beside)).is_relative_to(self._snapshot):
            raise OSError("a path that leads out of the data set, which is not read from a data set of the hub")
        return beside

    def _file_of(self, index: int) -> tuple[Path, int]:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._paths[number], index - int(self._starts[number])

    def _rows(self) -> Iterable[tuple[int, bytes, str]]:
        """Yield kind, content and stated name of every row, holding a few rows in memory."""
        for path in self._paths:
            try:
                with pq.ParquetFile(path) as file:
                    for batch in file.iter_batches(_BATCH_ROWS, columns=[self._image_column]):
                        yield from map(_unpack, batch.column(0).to_pylist())
            except _DAMAGES as error:
                raise _damaged(path, error) from None


_BYTES, _PATH, _NOTHING = range(3)


def _unpack(value: Any) -> tuple[int, bytes, str]:
    name = ""
    if isinstance(value, dict):
        name, value = value.get("path") or "", value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return _BYTES, value, name
    if isinstance(value, str) and value:
        return _PATH, value.encode(), name or value
    return _NOTHING, b"", name


def _not_a_path(text: bytes) -> str | None:
    """Return why a text is not the path of a file; None if it may be one."""
    if re.match(rb"[a-z][a-z0-9+.-]+://", text, re.IGNORECASE):
        return "a URL, and eca-hub does not download images"
    try:
        sniff_format(text)
    except NotAnImage as error:
        named = re.search(r"is (a data URL|base64 text)", error.message)
        return f"{named[1]}; decode it to bytes first" if named else None
    return None


def _find_splits(folder: Path, subset: str | None) -> dict[Split, list[Path]]:
    if subset and not (folder / subset).is_dir():
        raise InvalidConfig(f"{folder} has no subset {subset!r}; it holds {_listing(folder.iterdir())}.")
    inside = folder / subset if subset else folder
    files = sorted(walk_files(inside))
    paths = [path for path in files if path.suffix.lower() in (".parquet", ".pq")]
    by_name: dict[str | None, list[Path]] = {}
    for path in paths:
        by_name.setdefault(split_named_by(path, inside, _IN_FILE, _OF_FOLDER), []).append(path)
    splits: dict[Split, list[Path]] = {}
    for split, names in _SPLIT_NAMES.items():
        used = [name for name in names if name in by_name]
        if len(used) > 1:
            raise InvalidConfig(
                f"{folder} has {' and '.join(by_name[name][0].name for name in used)}; which is the {split} split?",
                hint="Keep one of them there.",
            )
        if used:
            splits[split] = by_name[used[0]]
    if "train" not in splits:
        hint = ""
        if any(path.suffix == ".tar" for path in files):
            hint = f"Give --data WebDatasetData --data.root {folder}."
        elif any(path.suffix == ".arrow" for path in files):
            hint = "It was written by save_to_disk; write parquet instead: dataset.to_parquet('train.parquet')."
        elif len(paths) == 1:
            hint = f"If it is to be trained on: mv {paths[0]} {paths[0].with_name('train.parquet')}"
        raise InvalidConfig(f"{folder} has no train*.parquet; it holds {_listing(paths)}.", hint=hint)
    folders = {path.relative_to(folder).parts[0] for path in splits["train"] if path.parent != folder}
    if len(subsets := sorted(folders - set(_SPLIT_NAMES["train"]))) > 1 and not subset:
        raise InvalidConfig(
            f"{folder} has the subsets {', '.join(subsets[:5])}.", hint=f"Give one, such as --data.subset {subsets[0]}."
        )
    return splits


def _listing(paths: Iterable[Path]) -> str:
    return ", ".join(sorted(path.name for path in paths)[:5]) or "no parquet files"


def _read_schema(path: Path) -> Any:
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowInvalid) as error:
        with path.open("rb") as file:
            pointer = pointer_in(file.read(_SNIFFED_BYTES))
        if pointer:
            raise InvalidConfig(
                f"{path} is a pointer of {pointer.tool}.", hint=f"`{pointer.command}` fetches the file."
            ) from None
        raise InvalidConfig(f"{path} is no parquet file: {' '.join(str(error).split()).rstrip('.')}.") from None
    if repeated := [name for name, times in Counter(schema.names).items() if times > 1]:
        raise InvalidConfig(f"{path} has two columns {repeated[0]!r}.", hint="Rename one of them.")
    return schema


def _damaged(path: Path, error: Exception) -> InvalidConfig:
    return InvalidConfig(
        f"{path} is damaged: {' '.join(str(error).split()).rstrip('.')}.", hint="Fetch or write the file again."
    )


def _check_image_type(kind: Any, column: str, path: Path) -> None:
    types = pa.types
    if types.is_struct(kind):
        if {field.name for field in kind} & {"bytes", "path"}:
            return
    elif types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind) or is_text(kind):
        return
    raise InvalidConfig(
        f"The column {column!r} of {path} is of type {kind}; images are encoded bytes, a path, or a struct of both.",
        hint="Give --data.image_column, or encode the images as PNG or JPEG.",
    )


def _features(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """Read what `datasets` states about the columns in a file; nothing if another program wrote it."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        # Older versions of `datasets` write a list of classes as a list of one feature.
        pairs = {
            name: {"feature": each[0]} if isinstance(each, list) and each else each for name, each in features.items()
        }
        return {str(name): dict(each) for name, each in pairs.items() if isinstance(each, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _class_label_names(features: dict[str, Any], column: str) -> list[str]:
    feature = features.get(column, {})
    # Of a list of classes, the feature describes its members.
    inner = feature.get("feature")
    names = (inner if isinstance(inner, dict) else feature).get("names")
    return [label_name(str(name)) for name in names] if isinstance(names, list) else []


def _column(
    names: list[str], given: str | None, usual: Sequence[str], features: dict[str, Any], kind: str, path: Path
) -> str:
    """Return the given column, one with a usual name, or the only one of its kind."""
    if given in names:
        return given
    if given is None:
        by_folded = {name.casefold(): name for name in reversed(names)}
        if usual[0] in by_folded:
            return by_folded[usual[0]]
        of_kind = [name for name, feature in features.items() if feature.get("_type") == kind and name in names]
        if len(of_kind) == 1:
            return of_kind[0]
        if not of_kind and (column := next((by_folded[name] for name in usual if name in by_folded), None)):
            return column
    raise InvalidConfig(
        f"{path} has no column {given or usual[0]!r}; it has {', '.join(names)}.",
        hint="Give --data.image_column and --data.label_column.",
    )
