"""Group the results of a sweep: blocks that share everything but the method, methods with one value a seed.

A column whose name starts with `attention` or `kernel_size` describes the method; `seed_everything` and `seed` are
seeds; every other column of the grid, such as the architecture, separates blocks. Methods are compared within a block.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from eca_hub.errors import InvalidConfig
from eca_hub.report.statistics import Comparison, Kind, Summary, compare, summarize
from eca_hub.sweep.grid import SEEDS
from eca_hub.sweep.results import Row, read_table, table_beside

PERCENT = 100.0

Planned = tuple[str, str, Kind, float]


@dataclass(frozen=True)
class Plan:
    """What is compared, fixed before the results are known."""

    metric: str
    """Column of the results, a share between 0 and 1; reported in percentage points."""
    comparisons: tuple[Planned, ...]
    """Method a, method b, kind and margin in points; empty compares each method with none and with se."""
    num_seeds: int = 0
    """Seeds of each method when the study is complete; 0 if the plan states none."""


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
    """Runs of its compared methods that the plan has and the results have not."""
    methods_without_runs: tuple[str, ...] = ()
    """Methods of planned comparisons of which the block has no run, so that these comparisons are left out."""


@dataclass(frozen=True)
class Study:
    """The tables of a sweep, grouped."""

    plan: Plan
    blocks: tuple[Block, ...]
    results: Sequence[Row]
    """A row a run."""
    curves: Sequence[Row] = ()
    """A row a run and epoch."""
    classes: Sequence[Row] = ()
    """A row a run and class."""
    costs: Sequence[Row] = ()
    """A row a run: its seconds, images a second and memory."""
    gates: Sequence[Row] = ()
    """A row a stage, class and channel."""


def read_study(results_file: Path, plan: Plan) -> Study:
    """Read a table of results and those beside it, and compare what the plan says.

    Raises:
        InvalidConfig: a table cannot be read, or its results cannot be compared.
    """
    results = read_table(results_file)
    files = {name: table_beside(results_file, name) for name in ("curves", "classes", "costs", "gates", "speeds")}
    tables = {name: read_table(file) if file.is_file() else [] for name, file in files.items()}
    speeds = tables.pop("speeds")
    return Study(plan, tuple(group(results, plan, speeds)), results, **tables)


def read_plan(path: Path | None, metric: str) -> Plan:
    """Read a plan file: `metric`, `num_seeds`, and `comparisons`, a list of {a, b, kind, margin}.

    Raises:
        InvalidConfig: the file is not such a plan.
    """
    if path is None:
        return Plan(metric, ())
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        comparisons = tuple(
            (str(each["a"]), str(each["b"]), each.get("kind", "difference"), float(each.get("margin", 0.0)))
            for each in document["comparisons"]
        )
        num_seeds = int(document.get("num_seeds", 0))
    except OSError as error:
        raise InvalidConfig(f"The plan {path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError):
        raise InvalidConfig(
            f"{path} is not a plan.", hint="It needs comparisons: [{a: eca, b: none, kind: difference}, ...]."
        ) from None
    for _, _, kind, margin in comparisons:
        if kind not in get_args(Kind):
            raise InvalidConfig(f"{path}: kind {kind!r} is none of {', '.join(get_args(Kind))}.")
        if kind == "non_inferiority" and margin <= 0:
            raise InvalidConfig(f"{path}: a comparison of kind non_inferiority needs a margin above 0 points.")
    return Plan(str(document.get("metric", metric)), comparisons, num_seeds)


def group(rows: Sequence[Row], plan: Plan, speeds: Sequence[Row] = ()) -> list[Block]:
    """Group the rows into blocks and run the comparisons of each block as one family.

    Args:
        rows: The results, a row a run.
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
        if not isinstance(row.get(plan.metric), int | float):
            raise InvalidConfig(f"Run {row.get('run')} has no number in the column {plan.metric}.")
    blocks: dict[str, list[Row]] = {}
    for row in rows:
        blocks.setdefault(_block_name(row, grid), []).append(row)
    speed_of = {(_block_name(row, grid), _method_name(row, grid)): row for row in speeds}
    return [_block(name, members, grid, plan, speed_of) for name, members in blocks.items()]


def _block(
    name: str, rows: Sequence[Row], grid: Sequence[str], plan: Plan, speed_of: Mapping[tuple[str, str], Row]
) -> Block:
    by_method: dict[str, list[Row]] = {}
    for row in rows:
        by_method.setdefault(_method_name(row, grid), []).append(row)
    methods = tuple(
        _method(method, members, plan.metric, grid, speed_of.get((name, method)))
        for method, members in by_method.items()
    )
    groups = {method.name: list(method.values) for method in methods}
    planned = plan.comparisons or _default_comparisons(list(groups))
    comparisons = tuple(compare(groups, planned))
    compared = {method for each in comparisons for method in (each.a, each.b)}
    num_missing = sum(max(plan.num_seeds - len(groups[method]), 0) for method in compared)
    wanted = dict.fromkeys(method for a, b, *_ in planned for method in (a, b))
    return Block(name, methods, comparisons, num_missing, tuple(method for method in wanted if method not in groups))


def _method(name: str, rows: Sequence[Row], metric: str, grid: Sequence[str], speed: Row | None) -> Method:
    points = [tuple(str(row[key]) for key in grid) for row in rows]
    if len(set(points)) != len(points):
        raise InvalidConfig(f"The results hold two runs of {name} with the same seed.", hint="Keep one of each.")
    values = tuple(float(row[metric]) * PERCENT for row in rows)
    first = rows[0]
    return Method(
        name,
        values,
        summarize(values),
        tuple(str(row["run"]) for row in rows),
        _whole(first.get("parameters")),
        _whole(first.get("multiply_adds")),
        _kernel_size(first),
        speed,
    )


def _grid_columns(row: Mapping[str, Any]) -> list[str]:
    """The columns between `run` and `config_hash`."""
    columns = list(row)
    if "run" not in columns or "config_hash" not in columns:
        raise InvalidConfig("The results lack the columns run and config_hash.", hint="Make them with eca-hub sweep.")
    return columns[columns.index("run") + 1 : columns.index("config_hash")]


def _block_name(row: Mapping[str, Any], grid: Sequence[str]) -> str:
    words = [f"{key} {row.get(key)}" for key in grid if not _is_method(key) and key not in SEEDS]
    return ", ".join(words) or "all runs"


def _is_method(column: str) -> bool:
    return column.startswith(("attention", "kernel_size"))


def _method_name(row: Mapping[str, Any], grid: Sequence[str]) -> str:
    words = [str(row[key]) for key in grid if _is_method(key) and row.get(key, "") not in ("", "{}")]
    return " ".join(words)


def _default_comparisons(methods: Sequence[str]) -> list[Planned]:
    return [(a, b, "difference", 0.0) for b in ("none", "se") if b in methods for a in methods if a not in ("none", b)]


def _kernel_size(row: Mapping[str, Any]) -> int | None:
    for key, value in row.items():
        if key.startswith("kernel_size") and isinstance(value, int):
            return value
        if key == "attention_args" and isinstance(value, str) and value.startswith("{"):
            args = json.loads(value)
            sizes = args.get("kernel_size", args.get("kernel_sizes"))
            if isinstance(sizes, int):
                return sizes
            if isinstance(sizes, list) and len(set(sizes)) == 1:
                return int(sizes[0])
    return None


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) else None
