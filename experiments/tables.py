"""The paper's tables as configurations, and the index of them: `python -m experiments.tables`.

Writes `configs/imagenet/rows/*.yaml`, one file a row of tables 2 to 4 and of figure 4 that `eca-hub fit` can train, and
`README.md`. A row holds only what distinguishes it, so that it is laid over the recipe:

    eca-hub fit -c experiments/configs/imagenet/paper_resnet.yaml -c experiments/configs/imagenet/rows/FILE ...

A test fails when the files are not what this module writes.
"""

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from eca_hub.hub.card.edit import read_metadata
from eca_hub.hub.package import CARD_FILE, CONFIG_FILE, config_from_json
from eca_hub.models.paper import PublishedRow, published_rows
from eca_hub.releases import list_releases, release_folder
from eca_hub.report.page import CAPTIONS, comparisons_table, markdown_table, methods_table, notes_on, warnings_on
from eca_hub.report.study import DEFAULT_METRIC, Plan, Study, read_plan, read_study

ROOT = Path(__file__).parent
ROWS = ROOT / "configs" / "imagenet" / "rows"
COCO = ROOT / "configs" / "coco"
SWEEPS = ROOT / "sweeps"
RESULTS = ROOT / "results" / "measured.csv"
"""Own results, by configuration: config, metric, value, date, hardware, commit, hub_id."""

_FIGURE_4 = {"resnet50": {"3": 77.43, "adaptive": 77.48}, "resnet101": {"adaptive": 78.65}}
"""Top-1 of each kernel size that the paper states in its text or tables; the other points are drawn, not printed."""
_DESCRIPTIVE = ("k", "m", "p", "q", "r")
"""Blocks of which plan.yaml plans no comparison."""
_COMPARED_WITH = {"j": "v", "k": "w", "m": "w", "r": "v"}
"""Blocks of further methods, and the block of the same training that they are reported with."""
_BENCHES = ("attention", "detection", "hub", "overload", "ray", "runtimes", "service", "soak", "training")


@dataclass(frozen=True)
class ConfigRow:
    """One row of the index."""

    table: str
    name: str
    architecture: str
    attention: str
    attention_args: Mapping[str, Any]
    published: str
    file: Path | None
    """The configuration; None for a peer that is counted and not trained here."""
    recipe: str = ""


def rows() -> list[ConfigRow]:
    """List the rows of tables 2, 3 and 4 and of figure 4."""
    return [*_table_rows(), *_figure_4_rows()]


def _table_rows() -> Iterator[ConfigRow]:
    for table in ("2", "3", "4"):
        for row in published_rows(table):
            published = f"top-1 {row.top1:.2f}" if row.top1 else "-"
            is_trainable = table != "4" or row.attention == "eca"
            file = ROWS / f"table{table}_{row.attention}_{row.architecture}.yaml" if is_trainable else None
            yield ConfigRow(
                f"table {table}",
                f"{row.method}, {row.backbone}",
                row.architecture,
                row.attention,
                row.attention_args,
                f"{published} ({', '.join(row.sources)})",
                file,
                _recipe(row.architecture),
            )


def _figure_4_rows() -> Iterator[ConfigRow]:
    for architecture, printed in _FIGURE_4.items():
        for k in ("3", "5", "7", "9", "adaptive"):
            # The authors' weights are of an older rule.
            source = "paper, whose weights have the sizes 3, 5, 5, 7" if k == "adaptive" else "paper"
            published = f"top-1 {printed[k]:.2f} ({source})" if k in printed else "drawn, not printed"
            # Adaptive: the rule of equation 12, which is what eca takes when no size is given.
            args = {} if k == "adaptive" else {"kernel_sizes": int(k)}
            file = ROWS / f"figure4_k{k}_{architecture}.yaml"
            name = f"ECA, k = {k}, ResNet-{architecture.removeprefix('resnet')}"
            yield ConfigRow("figure 4", name, architecture, "eca", args, published, file, _recipe(architecture))


def _recipe(architecture: str) -> str:
    return "paper_mobilenet.yaml" if architecture.startswith("mobilenet") else "paper_resnet.yaml"


def config_text(row: ConfigRow) -> str:
    """Write the configuration of a row."""
    model: dict[str, Any] = {"architecture": row.architecture, "attention": row.attention}
    if row.attention_args:
        model["attention_args"] = dict(row.attention_args)
    values = ", ".join(
        f"{key}: {json.dumps(value) if not isinstance(value, str) else value}" for key, value in model.items()
    )
    assert row.file is not None
    return (
        f"# Claim: {row.table} of the ECA-Net paper, {row.name}: {row.published}.\n"
        f"# Command: {command(row)}\n"
        "# Expected: that, on 4 GPUs; not yet run here. Lay it over the recipe, as the command does.\n"
        f"model: {{{values}}}\n"
    )


def command(row: ConfigRow) -> str:
    """The command that trains a row."""
    if row.file is None:
        return f"eca-hub complexity --table {row.table.removeprefix('table ')}"
    recipe = f"experiments/configs/imagenet/{row.recipe}"
    return f"eca-hub fit -c {recipe} -c experiments/{row.file.relative_to(ROOT)} --data.root IMAGENET --run_dir RUN"


def index(all_rows: Sequence[ConfigRow], coco: Sequence[Path], measured: Sequence[Mapping[str, str]]) -> str:
    """Write the index of the configurations."""
    ours = {row["config"]: row for row in measured}
    lines = [
        "# Experiments",
        "",
        "Each row of the paper's tables is a configuration laid over a recipe. `python -m experiments.tables`",
        "writes this page and the files of `configs/imagenet/rows/`. IMAGENET is a folder with `train/` and",
        "`val/`, COCO one with `annotations/`.",
        "",
        "| row | what | configuration | published | ours | hub id |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in all_rows:
        where = f"`{row.file.relative_to(ROOT)}`" if row.file else f"counted only: `{command(row)}`"
        lines.append(f"| {row.table} | {row.name} | {where} | {row.published} | {_ours(row.file, ours)} |")
    for path in coco:
        published = _coco_row(path)
        masks = f", of masks {published.mask_AP}" if published.mask_AP else ""
        lines.append(
            f"| {'tables 5 and 6' if masks else 'table 5'} | {path.stem} | `{path.relative_to(ROOT)}` | "
            f"AP {published.AP}{masks} ({', '.join(published.sources)}) | {_ours(path, ours)} |"
        )
    first = next(row for row in all_rows if row.table == "table 3" and row.attention == "eca")
    lines += ["", "The command of a row, here the first ECA-Net of table 3:", "", "```sh", command(first), "```", ""]
    lines += ["## Other recipes", "", "| configuration | claim |", "| --- | --- |"]
    for path in sorted((ROOT / "configs").glob("*/*.yaml")):
        claim = path.read_text().splitlines()[0]
        if path.parent != COCO and claim.startswith("# Claim: "):
            lines.append(f"| `{path.relative_to(ROOT)}` | {claim.removeprefix('# Claim: ')} |")
    lines += ["", "## Releases", "", *_releases()]
    lines += ["", "## The study", "", *_study()]
    lines += [
        "",
        "## Benches",
        "",
        "`python -m experiments.bench.NAME` with "
        + ", ".join(f"`{name}`" for name in _BENCHES if (ROOT / "bench" / f"{name}.py").is_file())
        + ". Most print ratios to a limit and to peers that were measured in the same run; `overload` compares",
        "with the bounds of the promises and with the capacity that it has just measured, `soak` counts what was lost",
        "and what memory grew, and `ray` and `runtimes` print images/s beside each other.",
    ]
    return "\n".join(lines) + "\n"


def _coco_row(path: Path) -> PublishedRow:
    """Find the published row of a configuration by its name, such as mask_rcnn_eca50."""
    detector, _, network = path.stem.rpartition("_")
    attention, depth = re.fullmatch(r"([a-z]+)(\d+)", network).groups()  # type: ignore[union-attr]
    wanted = (detector, f"resnet{depth}", "none" if attention == "plain" else attention)
    return next(row for row in published_rows("5") if (row.detector, row.architecture, row.attention) == wanted)


def _releases() -> list[str]:
    """The trained models in the package; the card of each has its recipe as commands."""
    lines = [
        "Trained models that are part of the package. The card of each has its measurements and its recipe as",
        "commands, of which the last one makes the package from the run.",
        "",
        "| release | data | test accuracy | images | card |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in list_releases():
        folder = release_folder(name)
        assert folder is not None
        [result] = read_metadata((folder / CARD_FILE).read_bytes())["model-index"][0]["results"]
        accuracy = next(metric["value"] for metric in result["metrics"] if metric["type"] == "accuracy")
        size = config_from_json((folder / CONFIG_FILE).read_bytes(), origin=name).image.height_px
        card = (folder / CARD_FILE).relative_to(ROOT.parent)
        lines.append(f"| `{name}` | {result['dataset']['name']} | {accuracy:.4f} | {size} px | [card](../{card}) |")
    return lines


def _study() -> list[str]:
    """The blocks of the plan, each with the command that runs or continues it and the state of its results."""
    lines = [
        "`results/plan.yaml` was committed before any comparison was computed: the blocks, the number of seeds,",
        "four comparisons and their tests. Blocks F, V, J, R and Q, for processors without bf16, have plans of their",
        "own: `results/plan_f.yaml` and so on. `data/cifar10` and `data/photos` are folders with parquet files, or",
        "links to them. The command of a block also continues it: finished runs are never repeated.",
        "",
        "| block | runs | finished | command |",
        "| --- | --- | --- | --- |",
    ]
    reports: list[str] = []
    tables: list[str] = []
    blocks = {path.stem: _read_block(path) for path in sorted(SWEEPS.glob("*.yaml"))}
    for name, block in blocks.items():
        lines.append(f"| `sweeps/{name}.yaml` | {block.num_runs} | {block.num_finished} | `{block.command}` |")
        if not block.num_finished:
            continue
        together = [each for each in (blocks.get(_COMPARED_WITH.get(name, "")), block) if each and each.num_finished]
        option = f" --plan experiments/results/{block.plan.name}" if block.plan else ""
        named = " ".join(f"experiments/results/{each.results_file.name}" for each in together)
        reports.append(f"eca-hub report {named}{option} --out runs/report_{name}")
        if all(each.num_finished == each.num_runs for each in together):
            plan = read_plan(block.plan) if block.plan else Plan(DEFAULT_METRIC, ())
            study = read_study([each.results_file for each in together], plan)
            tables += ["", f"### Block {name.upper()}", "", *_tables_of(study, block)]
    return [
        *lines,
        "",
        "```sh",
        *reports,
        "```",
        "",
        "writes tables, plots and statistics of the committed results. `python -m experiments.figures` draws the",
        "figures of the README into `results/figures/`.",
        *tables,
    ]


@dataclass(frozen=True)
class StudyBlock:
    """A block of the study: one sweep."""

    name: str
    command: str
    num_runs: int
    num_finished: int
    results_file: Path
    plan: Path | None
    """The comparisons that were planned; None for a block that is only described and has no plan of its own."""


def _read_block(sweep: Path) -> StudyBlock:
    text, results = sweep.read_text(), RESULTS.parent
    file = results / f"{sweep.stem}.csv"
    plans = [results / f"plan_{sweep.stem}.yaml", *([results / "plan.yaml"] if sweep.stem not in _DESCRIPTIVE else [])]
    return StudyBlock(
        sweep.stem,
        next(line.removeprefix("# ") for line in text.splitlines() if line.startswith("# eca-hub sweep")),
        math.prod(len(values) for values in yaml.safe_load(text)["grid"].values()),
        len(_read_csv(file)),
        file,
        next((plan for plan in plans if plan.exists()), None),
    )


def _tables_of(study: Study, block: StudyBlock) -> list[str]:
    """The tables of the report of a finished block, and its figure."""
    [compared] = study.blocks
    kind = "kernel_size" if any(method.kernel_size is not None for method in compared.methods) else "accuracy"
    comparisons = markdown_table(comparisons_table(compared)) if compared.comparisons else []
    return [
        *notes_on(study),
        "",
        *markdown_table(methods_table(study, compared)),
        "",
        *(line for warning in warnings_on(compared, study.plan) for line in (f"**{warning}**", "")),
        *comparisons,
        "",
        f"![{CAPTIONS[kind]}](results/figures/{kind}_{block.name}.png)",
    ]


def _ours(file: Path | None, ours: Mapping[str, Mapping[str, str]]) -> str:
    row = ours.get(str(file.relative_to(ROOT))) if file else None
    if row is None:
        return "- | -"
    measured = ", ".join((f"{row['metric']} {row['value']}", row["date"], row["hardware"], row["commit"][:12]))
    return f"{measured} | {row['hub_id'] or '-'}"


def _read_csv(path: Path) -> list[dict[str, str]]:
    """Read a table of results; without rows where nothing was measured yet."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def files() -> dict[Path, str]:
    """Every file that this module writes, with its text."""
    measured = _read_csv(RESULTS)
    texts = {row.file: config_text(row) for row in rows() if row.file}
    return {**texts, ROOT / "README.md": index(rows(), sorted(COCO.glob("*.yaml")), measured)}


def main() -> None:
    """Write all files, and remove configurations of rows that are gone."""
    ROWS.mkdir(parents=True, exist_ok=True)
    texts = files()
    for path in set(ROWS.glob("*.yaml")) - set(texts):
        path.unlink()
    for path, text in texts.items():
        path.write_text(text)
    print(f"{len(texts)} files written")


if __name__ == "__main__":
    main()
