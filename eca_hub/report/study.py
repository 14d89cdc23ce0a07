"""Group the results of a sweep: blocks that share everything but the method, methods with one value a seed.

A column whose name starts with `attention` or `kernel_size` describes the method; `seed_everything` and `seed` are
seeds; every other column of the grid, such as the architecture, separates blocks. Methods are compared within a block.
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from eca_hub.checks import is_whole
from eca_hub.errors import InvalidConfig, UnknownName
from eca_hub.report.statistics import Comparison, Kind, Summary, compare, summarize
from eca_hub.sweep.grid import SEEDS, as_text
from eca_hub.sweep.results import Row, read_table, table_beside

PERCENT = 100.0
DEFAULT_METRIC = "test_top1"
_LOWER_IS_BETTER = ("loss", "error")
"""Ends of the names of metrics."""
_PLAN_KEYS = ("metric", "num_seeds", "comparisons")
_COMPARISON_KEYS = ("a", "b", "kind", "margin")
_MEASURED = ("run", "training_images_per_s", "training_time_ratio", "inference_images_per_s", "inference_time_ratio")
_COLUMNS = {
    "curves": ("run", "epoch"),
    "classes": ("run", "label"),
    "costs": ("run",),
    "gates": ("stage", "label", "gate"),
    "speeds": (*_MEASURED, "batch_size", "threads", "device"),
}
"""Tables beside the results, and the columns that each must have."""

_SHARED_COLUMNS = {
    "training_hash": "the configuration files or options of their sweeps",
    "data_hash": "the data set, or in the workers or the shuffle buffer of a stream",
    "num_test_images": "the number of test images",
    "steps": "the number of training steps",
}
"""Columns in which tables that are reported together must agree, in words. Tables of older versions lack the hashes."""

Planned = tuple[str, str, Kind, float]


@dataclass(frozen=True)
class Plan:
    """What is compared, fixed before the results are known."""

    metric: str
    """Column of the results, a share between 0 and 1; reported in percentage points."""
    comparisons: tuple[Planned, ...] | None
    """Method a, method b, kind and margin in points; None compares each method with none and with se."""
    num_seeds: int | Mapping[str, int] = 0
    """Seeds of each compared method when the study is complete, or of each method by its name; 0 if the plan states
    none. Where nothing is compared, of each method that has runs."""


@dataclass(frozen=True)
class Method:
    """One method within a block."""

    name: str
    values: tuple[float, ...]
    """The metric of each seed, in percentage points."""
    summary: Summary
    runs: tuple[str, ...]
    """Names of its runs."""
    parameters: int | None
    multiply_adds: int | None
    kernel_size: int | None
    """The kernel size that was set, where one was."""
    speed: Row | None = None
    """The row of its network in the table of speeds."""


@dataclass(frozen=True)
class Block:
    """Methods that were trained alike."""

    name: str
    methods: tuple[Method, ...]
    comparisons: tuple[Comparison, ...]
    num_missing_runs: int = 0
    """Runs that the plan has and the results have not."""
    methods_without_runs: tuple[str, ...] = ()
    """Methods of planned comparisons of which the block has no run, so that these comparisons are left out."""


@dataclass(frozen=True)
class Study:
    """The tables of a sweep, grouped."""

    plan: Plan
    blocks: tuple[Block, ...]
    results: Sequence[Row]
    """One row per run."""
    curves: Sequence[Row] = ()
    """One row per run and epoch."""
    classes: Sequence[Row] = ()
    """One row per run and class."""
    costs: Sequence[Row] = ()
    """One row per run: its seconds, images a second and memory."""
    gates: Sequence[Row] = ()
    """A row a stage, class and channel."""


def read_study(results_files: Sequence[Path], plan: Plan) -> Study:
    """Read tables of results and those beside them, and compare what the plan says.

    Args:
        results_files: One table or more; the runs of all are one study. Gates are those of the first table that has
            them. So are speeds, and those of tables that were timed beside the same first network: speeds of different
            times are not compared.
        plan: What is compared.

    Raises:
        InvalidConfig: a table cannot be read, or the results cannot be compared.
    """
    results = _read_together(results_files)
    tables = {name: [_read_beside(file, name) for file in results_files] for name in _COLUMNS}
    speeds, gates = _comparable_speeds(tables.pop("speeds")), next(filter(None, tables.pop("gates")), [])
    rows = {name: [row for table in each for row in table] for name, each in tables.items()}
    return Study(plan, tuple(group(results, plan, speeds)), results, gates=gates, **rows)


def _comparable_speeds(tables: Sequence[list[Row]]) -> list[Row]:
    """Return the rows of all tables whose ratios are to the same network, on such a device, as those of the first."""
    measured = [table for table in tables if table]
    firsts = [{name: each for name, each in table[0].items() if name not in _MEASURED and each} for table in measured]
    return [row for table, first in zip(measured, firsts, strict=True) if first == firsts[0] for row in table]


def _read_together(results_files: Sequence[Path]) -> list[Row]:
    """Read the rows of all tables, with the same columns in each: a method's column that a table lacks is empty."""
    tables = [read_table(file) for file in results_files]
    for file, table in zip(results_files, tables, strict=True):
        if not table:
            raise InvalidConfig(f"The results {file} have no rows.")
    grids = [_grid_columns(table[0]) for table in tables]
    together = list(dict.fromkeys(column for grid in grids for column in grid))
    for file, grid in zip(results_files, grids, strict=True):
        if missing := [column for column in together if column not in grid and not _is_method(column)]:
            raise InvalidConfig(
                f"The results {file} lack the column {missing[0]}, which others of the tables have.",
                hint="Only tables that differ in nothing but the method can be reported together.",
            )
    for column, words in _SHARED_COLUMNS.items():
        values = [(file, str(table[0].get(column) or "")) for file, table in zip(results_files, tables, strict=True)]
        for (first, value), (second, other) in itertools.combinations(values, 2):
            if value and other and value != other and _kind_of_hash(value) == _kind_of_hash(other):
                raise InvalidConfig(
                    f"{first} and {second} differ in {words}, and not only in the method.",
                    hint="Report them one by one.",
                )
    return [
        {"run": row["run"], **{column: row.get(column, "") for column in together}, **row}
        for table in tables
        for row in table
    ]


def _kind_of_hash(value: str) -> str:
    """Return what stands before the colon of a training hash; those of different versions cannot be compared."""
    return value.rpartition(":")[0]


def _read_beside(results_file: Path, name: str) -> list[Row]:
    file = table_beside(results_file, name)
    rows = read_table(file) if file.is_file() else []
    if rows and (missing := [column for column in _COLUMNS[name] if column not in rows[0]]):
        raise InvalidConfig(f"The table {file} lacks the column {missing[0]}.", hint="Make it with eca-hub sweep.")
    return rows


def read_plan(path: Path | None, metric: str | None = None) -> Plan:
    """Read a plan file: `metric`, `num_seeds` and `comparisons`, a list of {a, b, kind, margin}.

    `num_seeds` is a number for all methods that are compared, or a mapping from methods to numbers.

    Args:
        path: The file; None for no plan.
        metric: Column of the results, if the user has named one; that of the plan, or test_top1, by default.

    Raises:
        InvalidConfig: the file is not such a plan, or it plans another metric.
        UnknownName: a key that a plan does not have.
    """
    if path is None:
        return Plan(metric or DEFAULT_METRIC, None)
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        _check_keys(document, _PLAN_KEYS)
        planned = [_comparison(each, path) for each in document["comparisons"]]
        num_seeds = _num_seeds(document.get("num_seeds", 0), path)
    except OSError as error:
        raise InvalidConfig(f"The plan {path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise InvalidConfig(
            f"{path} is not a plan.",
            hint="It needs comparisons: [{a: eca, b: none, kind: difference}, ...], or [] where nothing is compared.",
        ) from None
    _check_no_repetition(planned, path)
    planned_metric = str(document.get("metric", metric or DEFAULT_METRIC))
    if metric and metric != planned_metric:
        raise InvalidConfig(f"{path} compares {planned_metric}; --metric names {metric}.", hint="Leave out --metric.")
    for _, _, kind, _ in planned:
        if kind == "non_inferiority" and planned_metric.endswith(_LOWER_IS_BETTER):
            raise InvalidConfig(
                f"{path}: non_inferiority is for metrics that are better when higher: {planned_metric}."
            )
    return Plan(planned_metric, tuple(planned), num_seeds)


def _num_seeds(value: Any, path: Path) -> int | dict[str, int]:
    if isinstance(value, dict):
        return {str(method): _seed_count(each, f"{path}: num_seeds of {method}") for method, each in value.items()}
    return _seed_count(value, f"{path}: num_seeds")


def _seed_count(value: Any, where: str) -> int:
    if not is_whole(value) or value < 0:
        raise InvalidConfig(f"{where} is {value!r}; it must be a whole number, 0 or more.")
    return int(value)


def _comparison(each: Mapping[str, Any], path: Path) -> Planned:
    _check_keys(each, _COMPARISON_KEYS)
    a, b, kind, margin = str(each["a"]), str(each["b"]), each.get("kind", "difference"), float(each.get("margin", 0.0))
    if kind not in get_args(Kind):
        raise InvalidConfig(f"{path}: kind {kind!r} is none of {', '.join(get_args(Kind))}.")
    if kind == "non_inferiority" and not 0 < margin < math.inf:
        raise InvalidConfig(f"{path}: a comparison of kind non_inferiority needs a margin above 0 points.")
    if kind == "difference" and margin:
        raise InvalidConfig(
            f"{path}: the difference of {a} and {b} has a margin; only kind non_inferiority takes one.",
            hint="Leave out margin, or write kind: non_inferiority.",
        )
    if a == b:
        raise InvalidConfig(f"{path} compares {a} with itself.")
    return a, b, kind, margin


def _check_no_repetition(planned: Sequence[Planned], path: Path) -> None:
    """Refuse a comparison that is there twice, because each enters the correction; a difference has no direction."""
    pairs = [(kind, *(sorted((a, b)) if kind == "difference" else (a, b))) for a, b, kind, _ in planned]
    for kind, a, b in pairs:
        if pairs.count((kind, a, b)) > 1:
            raise InvalidConfig(f"{path} has the {kind} of {a} and {b} more than once.", hint="Keep one of them.")


def _check_keys(mapping: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in mapping.keys() - set(known):
        raise UnknownName.among("key of a plan", str(key), known, listing=", ".join(known))


def group(rows: Sequence[Row], plan: Plan, speeds: Sequence[Row] = ()) -> list[Block]:
    """Group the rows into blocks and run the comparisons of each block as one family.

    Args:
        rows: The results, one row per run.
        plan: What is compared.
        speeds: A row a network, from `eca-hub sweep --speeds`.

    Raises:
        InvalidConfig: the results lack the metric, or have no method or seed twice.
    """
    if not rows:
        raise InvalidConfig("The results have no rows.")
    grid = _grid_columns(rows[0])
    if not any(_is_method(column) for column in grid):
        raise InvalidConfig(f"No column of the grid names a method; the columns are {', '.join(grid) or 'none'}.")
    for row in rows:
        value = row.get(plan.metric)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidConfig(f"Run {row.get('run')} has no number in the column {plan.metric}.")
        if not 0 <= value <= 1:  # NaN included
            raise InvalidConfig(f"Run {row.get('run')} has {plan.metric} {value}; it must be a share from 0 to 1.")
        if not _method_name(row, grid):
            raise InvalidConfig(f"Run {row.get('run')} has no method: the columns of the grid are empty.")
    blocks: dict[str, list[Row]] = {}
    for row in rows:
        blocks.setdefault(_block_name(row, grid), []).append(row)
    return [_block(name, members, grid, plan, speeds) for name, members in blocks.items()]


def _block(name: str, rows: Sequence[Row], grid: Sequence[str], plan: Plan, speeds: Sequence[Row]) -> Block:
    by_method: dict[str, list[Row]] = {}
    for row in rows:
        by_method.setdefault(_method_name(row, grid), []).append(row)
    methods = tuple(_method(method, members, plan.metric, grid, speeds) for method, members in by_method.items())
    groups = {method.name: list(method.values) for method in methods}
    planned = _default_comparisons(list(groups)) if plan.comparisons is None else plan.comparisons
    comparisons = tuple(compare(groups, planned))
    wanted = dict.fromkeys(method for a, b, *_ in planned for method in (a, b))
    without_runs = tuple(method for method in wanted if method not in groups)
    seeds_of = dict.fromkeys(wanted or groups, plan.num_seeds) if isinstance(plan.num_seeds, int) else plan.num_seeds
    num_missing = sum(max(num_seeds - len(groups.get(method, ())), 0) for method, num_seeds in seeds_of.items())
    return Block(name, methods, comparisons, num_missing, without_runs)


def _method(name: str, rows: Sequence[Row], metric: str, grid: Sequence[str], speeds: Sequence[Row]) -> Method:
    points = [tuple(str(row[key]) for key in grid) for row in rows]
    if len(set(points)) != len(points):
        raise InvalidConfig(f"The results hold two runs of {name} with the same seed.", hint="Keep one of each.")
    values = tuple(float(row[metric]) * PERCENT for row in rows)
    runs = tuple(str(row["run"]) for row in rows)
    first = rows[0]
    return Method(
        name,
        values,
        summarize(values),
        runs,
        _as_int(first.get("parameters")),
        _as_int(first.get("multiply_adds")),
        _kernel_size(first),
        # The first network is in each table of speeds, also as another of its runs; that of the first table counts.
        next((row for row in speeds if str(row["run"]) in runs), None),
    )


def _grid_columns(row: Mapping[str, Any]) -> list[str]:
    """The columns between `run` and `config_hash`."""
    columns = list(row)
    if "run" not in columns or "config_hash" not in columns:
        raise InvalidConfig("The results lack the columns run and config_hash.", hint="Make them with eca-hub sweep.")
    return columns[columns.index("run") + 1 : columns.index("config_hash")]


def _block_name(row: Mapping[str, Any], grid: Sequence[str]) -> str:
    words = [f"{key} {row[key]}" for key in grid if not _is_method(key) and key not in SEEDS]
    return ", ".join(words) or "all runs"


def _is_method(column: str) -> bool:
    return column.startswith(("attention", "kernel_size"))


def _method_name(row: Mapping[str, Any], grid: Sequence[str]) -> str:
    return " ".join(_in_words(row[key]) for key in grid if _is_method(key) and not _is_empty(row[key]))


def _in_words(value: Any) -> str:
    """Return a value of the grid as a part of a name: options as key=value."""
    options = _options(value)
    return str(value) if options is None else " ".join(f"{key}={as_text(each)}" for key, each in options.items())


def _options(cell: Any) -> dict[str, Any] | None:
    """Read a cell with options, such as {"kernel_sizes": 3}; None for other cells."""
    if not isinstance(cell, str) or not cell.startswith("{"):
        return None
    try:
        options = json.loads(cell)
    except ValueError:
        return None
    return options if isinstance(options, dict) else None


def _is_empty(value: Any) -> bool:
    """Whether a cell is empty; in a Parquet file it may be None or NaN."""
    return value in (None, "", "{}") or value != value


def _default_comparisons(methods: Sequence[str]) -> list[Planned]:
    return [(a, b, "difference", 0.0) for b in ("none", "se") if b in methods for a in methods if a not in ("none", b)]


def _kernel_size(row: Mapping[str, Any]) -> int | None:
    for key, value in row.items():
        if key.startswith("kernel_size") and isinstance(value, int):
            return value
        if key == "attention_args" and (args := _options(value)) is not None:
            sizes = args.get("kernel_size", args.get("kernel_sizes"))
            if isinstance(sizes, int):
                return sizes
            if isinstance(sizes, list) and len(set(sizes)) == 1:
                return int(sizes[0])
    return None


def _as_int(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else None
