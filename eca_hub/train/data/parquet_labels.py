"""Classes in a column of a parquet file: numbers, words, or lists of them.

Shapes: N images.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]

from eca_hub.errors import InvalidConfig
from eca_hub.train.data.labels import label_name


def label_values(column: Any, names: list[str], title: str, path: Path) -> list[str | None]:
    """Return the class name of each row, None where there is none.

    Args:
        column: The column, a pyarrow ChunkedArray of N rows.
        names: Class names that the file states, in the order of their numbers; empty if it states none.
        title: Name of the column.
        path: The file.

    Raises:
        InvalidConfig: the column holds no classes, or several an image.
    """
    _check_label_type(column.type.value_type if _is_list(column) else column.type, title, path)
    values = column.to_pylist()
    if _is_list(column):
        if any(value is not None and len(value) > 1 for value in values):
            raise InvalidConfig(
                f"The column {title!r} of {path} holds several labels an image.",
                hint="Give --data.multi_label true to learn all of them, or another --data.label_column.",
            )
        values = [value[0] if value else None for value in values]
    return [_label_value(value, names, title, path) for value in values]


def label_lists(column: Any, names: list[str], title: str, path: Path) -> list[list[str] | None]:
    """Return the class names of each row, None where there is no list; otherwise as `label_values`.

    Raises:
        InvalidConfig: the column holds no lists of classes.
    """
    if not _is_list(column):
        raise InvalidConfig(
            f"The column {title!r} of {path} is of type {column.type}; with data.multi_label it must hold lists.",
            hint="Leave out --data.multi_label, or give another --data.label_column.",
        )
    _check_label_type(column.type.value_type, title, path)
    return [
        None
        if value is None
        else [name for each in value if (name := _label_value(each, names, title, path)) is not None]
        for value in column.to_pylist()
    ]


def _check_label_type(kind: Any, title: str, path: Path) -> None:
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    allowed = (
        types.is_integer,
        types.is_floating,
        types.is_boolean,
        is_text,
        types.is_null,
    )
    if not any(check(kind) for check in allowed):
        raise InvalidConfig(
            f"The column {title!r} of {path} is of type {kind}; classes are integers or words.",
            hint="Give another --data.label_column, or write it as strings.",
        )


def is_text(kind: Any) -> bool:
    """Whether a type of pyarrow is text."""
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_list(column: Any) -> bool:
    return bool(pa.types.is_list(column.type) or pa.types.is_large_list(column.type))


def _label_value(value: Any, names: list[str], title: str, path: Path) -> str | None:
    if isinstance(value, float):
        # Numbers with gaps become floats in pandas.
        if value != value:
            return None
        if not value.is_integer():
            raise InvalidConfig(f"The column {title!r} of {path} holds {value}; classes are integers or words.")
        value = int(value)
    if value is None or value == "" or (isinstance(value, int) and value == -1):
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        if value < -1 or (names and value >= len(names)):
            problem = f"outside 0 to {len(names) - 1}" if names else "which is negative"
            raise InvalidConfig(f"{path} has the label {value}, {problem}.")
        return names[value] if names else str(value)
    return label_name(str(value)) or None
