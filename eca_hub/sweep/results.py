"""Collect the runs of a sweep into one table, and what they cost into another.

The results hold only what is reproducible, so a sweep that was interrupted and continued writes the same file as one
that was not. Times and memory, which differ from run to run, are in the file of costs beside it.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eca_hub.atomic import write_atomic
from eca_hub.errors import InvalidConfig
from eca_hub.sweep.grid import SweepRun, column_names
from eca_hub.sweep.worker import is_finished

Row = dict[str, Any]

COST_COLUMNS = ("fit_s", "images_per_s", "peak_memory_mib")
"""Columns of result.json that depend on the machine's load."""


def collect(runs: Sequence[SweepRun], out_dir: Path) -> tuple[list[Row], list[Row]]:
    """Read the finished runs, in the order of the grid.

    Returns:
        The rows of results, and the rows of costs.
    """
    results, costs = [], []
    for run in runs:
        run_dir = out_dir / run.name
        if not is_finished(run_dir):
            continue
        result = _read_json(run_dir / "result.json")
        environment = _read_json(run_dir / "environment.json") if (run_dir / "environment.json").is_file() else {}
        columns = column_names(list(run.point))
        known = {
            "run": run.name,
            **{columns[key]: _plain(value) for key, value in run.point.items()},
            "config_hash": run.config_hash,
        }
        measured = {key: _plain(value) for key, value in result.items() if key not in COST_COLUMNS}
        machine = {
            "hardware": environment.get("device", ""),
            "commit": (environment.get("git") or {}).get("commit", ""),
        }
        results.append({**known, **measured, **machine})
        costs.append({**known, **{key: result.get(key, "") for key in COST_COLUMNS}})
    return results, costs


def write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows atomically, as Parquet or CSV by the ending of the name."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist([{key: row.get(key) for key in columns} for row in rows]), sink)
        write_atomic(path, sink.getvalue().to_pybytes())
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode())


def read_table(path: Path) -> list[Row]:
    """Read what `write_table` wrote; numbers of a CSV file become numbers.

    Raises:
        InvalidConfig: the file cannot be read, or is neither CSV nor Parquet.
    """
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            return list(pq.read_table(path).to_pylist())
        if path.suffix != ".csv":
            raise InvalidConfig(f"{path} must be a file named *.csv or *.parquet.")
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [{key: _number(value) for key, value in row.items()} for row in csv.DictReader(file)]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InvalidConfig(f"The results {path} cannot be read: {reason}.") from None


def _read_json(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text())
    assert isinstance(document, dict)
    return document


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else json.dumps(value)


def _number(text: str | None) -> Any:
    for kind in (int, float):
        try:
            return kind(text or "")
        except ValueError:
            continue
    return text or ""
