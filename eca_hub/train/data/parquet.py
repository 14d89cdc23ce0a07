"""Pictures in parquet files, as the Hugging Face Hub lays them out: a struct of bytes and a path, and a label."""

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from eca_hub.errors import InvalidConfig
from eca_hub.train.data.datamodule import ImageDataModule, check_labels, fill_missing_split
from eca_hub.train.data.hub_dataset import fetch_parquet
from eca_hub.train.data.source import Split, fingerprint_of

_NAMES = {"train": ("train",), "val": ("validation", "val", "valid", "dev"), "test": ("test",)}


class ParquetData(ImageDataModule):
    """Pictures in parquet files, such as TRAIN.parquet, validation.parquet and test.parquet of a data set of the Hub.

    One of validation and test may be missing: the other then stands for both, and the result and the model card say so.

    Args:
        root: A folder of parquet files whose names start with their split, or `owner/name` of a data set on the hub.
        image_column: Where pictures stand; None finds `image`, or the only column of pictures.
        label_column: Where classes stand, as numbers or as words; None finds `label`, or the only column of classes.
        subset: Folder of one of several subsets, which `datasets` calls configurations.
        revision: Branch, tag or commit of a data set on the hub.
        options: Those of all data: image, augment, batch_size, num_workers, cache_mib, max_bad_samples.

    Raises:
        InvalidConfig: a split or a column is missing, or a label that training has not.
    """

    def __init__(
        self,
        root: str,
        image_column: str | None = None,
        label_column: str | None = None,
        subset: str | None = None,
        revision: str | None = None,
        **options: object,
    ) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.title = Path(root).name or "pictures"
        folder = Path(root) if Path(root).is_dir() else fetch_parquet(root, revision, subset)
        files = _find_splits(folder, subset)
        tables = {split: ParquetSource(paths, image_column, label_column) for split, paths in files.items()}
        self.labels = tables["train"].labels
        for split, table in tables.items():
            check_labels(self.labels, table.labels, split, self.title)
        self.has_single_eval_split = len(tables) < 3
        self._tables = fill_missing_split(tables)

    def source(self, split: Split) -> "ParquetSource":
        """Return the files of a split."""
        return self._tables[split].with_labels(self.labels)


class ParquetSource:
    """The rows of the parquet files of one split; pictures stay encoded, in memory of their own process.

    Args:
        paths: The files, in order.
        image_column: Where pictures stand; None finds out.
        label_column: Where classes stand; None finds out.

    Raises:
        InvalidConfig: a file is no parquet file, or has no such column.
    """

    def __init__(self, paths: list[Path], image_column: str | None, label_column: str | None) -> None:
        import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
        import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]

        self._paths = paths
        try:
            schema = pq.read_schema(paths[0])
        except (OSError, pa.ArrowInvalid) as error:
            raise InvalidConfig(f"{paths[0]} is no parquet file: {' '.join(str(error).split())}.") from None
        features = _features(schema.metadata)
        image_column = _column(schema.names, image_column, "image", features, "Image", paths[0])
        label_column = _column(schema.names, label_column, "label", features, "ClassLabel", paths[0])
        self._image_column = image_column
        self._holds_structs = pa.types.is_struct(schema.field(image_column).type)
        values = pa.concat_tables(pq.read_table(path, columns=[label_column]) for path in paths)[
            label_column
        ].to_numpy()
        if len(values) and np.issubdtype(values.dtype, np.integer):
            self.labels = _names_of(features, label_column) or [str(n) for n in range(int(values.max()) + 1)]
            if int(values.max()) >= len(self.labels) or int(values.min()) < 0:
                raise InvalidConfig(f"{paths[0]} has labels outside 0 to {len(self.labels) - 1}.")
            self.targets = values.astype(np.int64)
        else:
            self.labels, self.targets = _numbered([str(value) for value in values])

    def with_labels(self, labels: list[str]) -> "ParquetSource":
        """Renumber the classes by another list of names, which holds all of them."""
        if labels != self.labels:
            number_of = {label: number for number, label in enumerate(labels)}
            self.targets = np.array([number_of[self.labels[target]] for target in self.targets], dtype=np.int64)
            self.labels = labels
        return self

    def read(self, index: int) -> bytes:
        """Return one file."""
        value = self._images[index].as_py()
        content = value["bytes"] if self._holds_structs and value else value
        if content is None:
            raise OSError("the row holds no bytes")
        return bytes(content)

    def name(self, index: int) -> str:
        """Say which row it is, and the path that the data set remembers."""
        path = (self._images[index].as_py() or {}).get("path") if self._holds_structs else None
        return f"{self._paths[0].name} row {index}" + (f" ({path})" if path else "")

    def fingerprint(self) -> str:
        """Hash sizes and labels."""
        sizes = [f"{path.name} {path.stat().st_size}" for path in self._paths]
        return fingerprint_of([*sizes, self.targets.tobytes().hex()])

    def __getstate__(self) -> dict[str, Any]:
        """Leave the pictures behind: each worker maps the files anew."""
        return {name: value for name, value in vars(self).items() if name != "_images"}

    @functools.cached_property
    def _images(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        tables = [pq.read_table(path, columns=[self._image_column], memory_map=True) for path in self._paths]
        return pa.concat_tables(tables)[self._image_column]


def _find_splits(folder: Path, subset: str | None) -> dict[str, list[Path]]:
    if subset and not (folder / subset).is_dir():
        raise InvalidConfig(f"{folder} has no subset {subset!r}; it holds {_listing(folder.iterdir())}.")
    paths = sorted((folder / subset if subset else folder).rglob("*.parquet"))
    found: dict[str, list[Path]] = {}
    for split, names in _NAMES.items():
        if files := [path for path in paths if path.name.lower().startswith(names) or path.parent.name in names]:
            found[split] = files
    if "train" not in found:
        raise InvalidConfig(f"{folder} has no train*.parquet; it holds {_listing(paths)}.")
    if "val" not in found and "test" not in found:
        raise InvalidConfig(f"{folder} has neither validation*.parquet nor test*.parquet; it holds {_listing(paths)}.")
    inside = {path.relative_to(folder).parts[0] for path in found["train"] if path.parent != folder}
    if len(subsets := sorted(inside - set(_NAMES["train"]))) > 1 and not subset:
        raise InvalidConfig(
            f"{folder} has the subsets {', '.join(subsets[:5])}.", hint=f"Give one, such as --data.subset {subsets[0]}."
        )
    return found


def _listing(paths: Iterable[Path]) -> str:
    return ", ".join(sorted(path.name for path in paths)[:5]) or "no parquet files"


def _features(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """Read what `datasets` says about the columns in a file; nothing if it was not `datasets` that wrote it."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {str(name): dict(feature) for name, feature in features.items()}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _names_of(features: dict[str, Any], column: str) -> list[str]:
    """The class names of a column; none if they are not known."""
    names = features.get(column, {}).get("names")
    return [str(name) for name in names] if isinstance(names, list) else []


def _column(names: list[str], wanted: str | None, usual: str, features: dict[str, Any], kind: str, path: Path) -> str:
    """The column that was asked for, the one with the usual name, or the only one of its kind."""
    of_kind = [name for name, feature in features.items() if feature.get("_type") == kind and name in names]
    if wanted is None and usual not in names and len(of_kind) == 1:
        return of_kind[0]
    column = wanted or usual
    if column not in names:
        raise InvalidConfig(
            f"{path} has no column {column!r}; it has {', '.join(names)}.",
            hint="Give --data.image_column and --data.label_column.",
        )
    return column


def _numbered(values: list[str]) -> tuple[list[str], np.ndarray]:
    labels = sorted(set(values))
    number_of = {label: number for number, label in enumerate(labels)}
    return labels, np.array([number_of[value] for value in values], dtype=np.int64)
