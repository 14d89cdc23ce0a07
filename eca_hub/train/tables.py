"""Write CSV files: UTF-8 whatever the locale, and whole or not at all."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from eca_hub.atomic import write_atomic


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file, and its folder if that is missing.

    Args:
        path: The file.
        header: Names of the columns.
        rows: Values of each row; a character that UTF-8 cannot encode, as in some file names, is escaped.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.getvalue().encode("utf-8", "backslashreplace"))
