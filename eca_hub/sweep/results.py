"""Collect the runs of a sweep into tables: results, curves, classes and costs.

All but the costs hold only what is reproducible, so a sweep that was interrupted and continued writes the same files as
one that was not. Times and memory, which differ from run to run, are in the table of costs alone.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from eca_hub.atomic import write_atomic
from eca_hub.errors import InvalidConfig
from eca_hub.sweep.grid import SweepRun, column_names
from eca_hub.sweep.worker import is_finished
from eca_hub.train.tables import write_csv

Row = dict[str, Any]

COST_COLUMNS = ("fit_s", "images_per_s", "peak_memory_mib")
"""Columns of result.json that depend on the machine's load."""


_TEXT_COLUMNS = (
    *("run", "label", "config_hash", "training_hash", "data_hash"),
    *("commit", "hardware", "attention", "architecture"),
)
"""Columns that stay text: a label of 007 is no number, nor is a hash that happens to consist of digits."""

_CURVE_COLUMNS = (
    *("epoch", "train_loss", "train_top1", "train_micro_f1"),
    *("val_loss", "val_top1", "val_micro_f1", "val_mAP", "val_AP", "val_mask_AP"),
)
"""Columns of metrics.csv that are kept, of those that the task has."""
_CLASS_COLUMNS = ("label", "recall", "AP")
"""The same for classes.csv."""


@dataclass
class Tables:
    """The tables of a sweep, each a list of rows in the order of the grid."""

    results: list[Row] = field(default_factory=list)
    """One row per run: its point of the grid, what was measured and what the network costs, commit and hardware."""
    curves: list[Row] = field(default_factory=list)
    """One row per run and epoch: loss and accuracy."""
    classes: list[Row] = field(default_factory=list)
    """One row per run and class: recall or average precision on the test split."""
    costs: list[Row] = field(default_factory=list)
    """One row per run: seconds, images a second, memory."""

    def write(self, results_file: Path) -> None:
        """Write each table that has rows and remove the others; their names derive from that of the results."""
        for name, rows in vars(self).items():
            file = results_file if name == "results" else table_beside(results_file, name)
            if rows:
                write_table(rows, file)
            elif name != "results":
                file.unlink(missing_ok=True)


def table_beside(results_file: Path, name: str) -> Path:
    """Return the file of another table of the same sweep, such as results_costs.csv beside results.csv."""
    return results_file.with_name(f"{results_file.stem}_{name}{results_file.suffix}")


def read_recorded(runs: Sequence[SweepRun], out_dir: Path, results_file: Path) -> Tables:
    """Read the rows of runs whose folders are not here, such as those that another machine has finished.

    Raises:
        InvalidConfig: a file cannot be read, or has rows of other runs, which the next write would lose.
    """
    paths = {name: results_file if name == "results" else table_beside(results_file, name) for name in vars(Tables())}
    found = {name: read_table(path, as_text=True) if path.exists() else [] for name, path in paths.items()}
    in_results = {(row.get("run"), row.get("config_hash")) for row in found["results"]}
    recorded = {
        run.name for run in runs if (run.name, run.config_hash) in in_results and not is_finished(out_dir / run.name)
    }
    for name, rows in found.items():
        others = {str(row.get("run", "")) for row in rows} - recorded
        unfinished = {run for run in others if not is_finished(out_dir / run)}
        if lost := [row for row in rows if str(row.get("run", "")) in unfinished]:
            raise InvalidConfig(
                f"{paths[name]} has {len(lost)} rows that belong to no finished run of this sweep and have no run "
                f"folder, the first of {str(lost[0].get('run', ''))!r}; they would be lost.",
                hint=f"Name another file with --results, or move {results_file.name} together with the tables beside "
                f"it, {table_beside(results_file, '*').name}.",
            )
    return Tables(**{name: [row for row in rows if row.get("run") in recorded] for name, rows in found.items()})


def collect(runs: Sequence[SweepRun], out_dir: Path, recorded: Tables) -> Tables:
    """Read the finished runs, in the order of the grid; `recorded` has the rows of those without a folder."""
    tables = Tables()
    for run in runs:
        run_dir = out_dir / run.name
        if not is_finished(run_dir):
            for name, rows in vars(tables).items():
                of_run = [row for row in getattr(recorded, name) if row["run"] == run.name]
                rows += [_with_training_hash(row, run) for row in of_run] if name == "results" else of_run
            continue
        result = _read_json(run_dir / "result.json")
        environment = _read_json(run_dir / "environment.json") if (run_dir / "environment.json").is_file() else {}
        columns = column_names(list(run.point))
        known = {
            "run": run.name,
            **{columns[key]: plain(value) for key, value in run.point.items()},
            "config_hash": run.config_hash,
            "training_hash": run.training_hash,
        }
        measured = {
            key: plain(value)
            for key, value in result.items()
            if key not in COST_COLUMNS and not isinstance(value, list)
        }
        machine = {
            "hardware": environment.get("device", ""),
            "commit": (environment.get("git") or {}).get("commit", ""),
        }
        cost = _network_cost((run_dir / "model" / "config.json").read_bytes())
        tables.results.append({**known, **measured, **cost, **machine})
        tables.costs.append({**known, **{key: result.get(key, "") for key in COST_COLUMNS}})
        epochs = read_table(run_dir / "metrics.csv") if (run_dir / "metrics.csv").is_file() else []
        tables.curves += [{"run": run.name, **_selected(row, _CURVE_COLUMNS)} for row in epochs]
        classes = read_table(run_dir / "classes.csv") if (run_dir / "classes.csv").is_file() else []
        tables.classes += [{"run": run.name, **_selected(row, _CLASS_COLUMNS)} for row in classes]
    return tables


def _with_training_hash(row: Row, run: SweepRun) -> Row:
    """Add the column behind config_hash, because tables of older versions lack it."""
    completed: Row = {}
    for column, value in row.items():
        completed.setdefault(column, value)
        if column == "config_hash":
            completed["training_hash"] = run.training_hash
    return completed


def _selected(row: Row, columns: Sequence[str]) -> Row:
    return {key: row[key] for key in columns if key in row}


@cache
def _network_cost(config_json: bytes) -> Row:
    """Count parameters from a config.json, and for a classifier multiply-adds at the size of its images."""
    from eca_hub.hub.package import config_from_json, detector_config_from_json, is_detector
    from eca_hub.models.build import build_model, count_parameters
    from eca_hub.models.complexity import count_complexity
    from eca_hub.models.weight_init import on_meta_device

    if is_detector(config_json):
        from eca_hub.models.detectors import build_detector

        with on_meta_device():
            detector = build_detector(detector_config_from_json(config_json, origin="config.json"))
        return {"parameters": count_parameters(detector)}
    config = config_from_json(config_json, origin="config.json")
    with on_meta_device():
        model = build_model(config)
    complexity = count_complexity(model, height_px=config.image.height_px, width_px=config.image.width_px)
    return {"parameters": count_parameters(model), "multiply_adds": complexity.multiply_adds}


def write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows atomically, as Parquet or CSV by the ending of the name."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        values = {column: [row.get(column) for row in rows] for column in columns}
        pq.write_table(pa.table({column: _of_one_type(each) for column, each in values.items()}), sink)
        write_atomic(path, sink.getvalue().to_pybytes())
        return
    write_csv(path, columns, [[row.get(column, "") for column in columns] for row in rows])


def _of_one_type(values: list[Any]) -> list[Any]:
    """Return numbers as they are, and as text where a column holds both, such as the kernel sizes 3 and adaptive."""
    known = [value for value in values if value not in (None, "")]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return [None if value == "" else value for value in values]
    if len({type(value) for value in known}) == 1:
        return values
    return [None if value is None else str(value) for value in values]


def read_table(path: Path, *, as_text: bool = False) -> list[Row]:
    """Read what `write_table` wrote; what looks like a number in a CSV file becomes one.

    Args:
        path: The file.
        as_text: Leave the cells of a CSV file as they are, so that they can be written again.

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
            reader = csv.DictReader(file, restval="")
            rows: list[Row] = []
            for row in reader:
                # Where the surplus cells of a row are.
                if None in row:
                    raise ValueError(f"line {reader.line_num} has more cells than the first")
                rows.append(row if as_text else {key: _value(key, text) for key, text in row.items()})
            return rows
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InvalidConfig(f"The results {path} cannot be read: {reason}.") from None


def _read_json(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_bytes())
    assert isinstance(document, dict)
    return document


def plain(value: Any) -> Any:
    """Return a value as a cell of a table: lists and mappings become JSON."""
    return value if isinstance(value, str | int | float | bool) else json.dumps(value)


def _value(column: str, text: str | None) -> Any:
    if column in _TEXT_COLUMNS or "_" in (text or ""):  # Python reads 1_0 as 10
        return text or ""
    for kind in (int, float):
        try:
            return kind(text or "")
        except ValueError:
            continue
    return text or ""
