"""Write a report: one self-contained HTML page, and the same as Markdown with its figures beside it."""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eca_hub.atomic import write_atomic
from eca_hub.models.paper import published_rows
from eca_hub.report.statistics import Summary
from eca_hub.report.study import DEFAULT_METRIC, Block, Plan, Study
from eca_hub.sweep.results import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Head and rows."""

CAPTIONS = {
    "accuracy": "Each seed, and the mean with its 95 % confidence interval.",
    "bubbles": "Result against parameters; the area of a bubble is its multiply-adds (figure 1 of the paper).",
    "kernel_size": "Result against the kernel size; dashed: methods without one (compare figure 4 of the paper).",
    "curves": "Training and validation: mean and range over the seeds.",
    "classes": "Change of each class.",
    "gates": "Learned gates of each channel, averaged over the images of a class; the last block of each stage.",
}
"""What each figure shows."""
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #8886; text-align: left; font-variant-numeric: tabular-nums; }
img { max-width: 100%; background: white; }
figcaption, .note { color: #777; font-size: .9rem; }
"""


def write_report(out_dir: Path, study: Study, figures: Mapping[str, "Figure"], *, title: str) -> Path:
    """Write report.html, report.md and figures/*.png, and return the path of the page."""
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "figures").mkdir(exist_ok=True)
    images = {name: png(figure) for name, figure in figures.items()}
    for name, content in images.items():
        write_atomic(out_dir / "figures" / f"{name}.png", content)
    notes = notes_on(study)
    page = [f"<h1>{html.escape(title)}</h1>", *(f'<p class="note">{html.escape(note)}</p>' for note in notes)]
    text = [f"# {title}", "", *notes, ""]
    for number, block in enumerate(study.blocks, start=1):
        page.append(f"<h2>{html.escape(block.name)}</h2>")
        text += [f"## {block.name}", ""]
        for warning in warnings_on(block, study.plan):
            page.append(f"<p><strong>{html.escape(warning)}</strong></p>")
            text += [f"**{warning}**", ""]
        tables = {"Methods": methods_table(study, block), "Comparisons": comparisons_table(block)}
        for heading, table in tables.items():
            if table[1]:
                page += [f"<h3>{heading}</h3>", _html_table(table)]
                text += [f"### {heading}", "", *markdown_table(table), ""]
        suffix = f"_{number}" if len(study.blocks) > 1 else ""
        for kind, caption in CAPTIONS.items():
            name = f"{kind}{suffix}"
            if name in images:
                source = base64.b64encode(images[name]).decode()
                page.append(
                    f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{source}">'
                    f"<figcaption>{html.escape(caption)}</figcaption></figure>"
                )
                text += [f"![{caption}](figures/{name}.png)", ""]
    document = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        + "\n".join(page)
        + "</body></html>\n"
    )
    write_atomic(out_dir / "report.md", ("\n".join(text).rstrip() + "\n").encode())
    write_atomic(out_dir / "report.html", document.encode())
    return out_dir / "report.html"


def notes_on(study: Study) -> list[str]:
    """Return what a reader of the tables must know: where the runs were made, and what the figures are."""
    plan, results = study.plan, study.results
    comparisons = [each for block in study.blocks for each in block.comparisons]
    hardware = sorted({str(row["hardware"]) for row in results if row.get("hardware")})
    commits = sorted({str(row["commit"])[:12] for row in results if row.get("commit")})
    notes = [
        f"{len(results)} runs; {plan.metric} in percentage points; hardware: {', '.join(hardware) or 'not recorded'}; "
        f"commit: {', '.join(commits) or 'not recorded'}.",
    ]
    statistics = []
    if any(map(_has_intervals, study.blocks)):
        statistics.append("Intervals: 95 %, Student's t over the seeds.")
    if comparisons:
        statistics.append(
            "p: exact permutation tests of independent groups, two-sided for differences and one-sided for "
            "non-inferiority, corrected by Holm for the number of "
            f"{'planned ' if plan.comparisons else ''}comparisons of a block."
        )
    if not all(math.isnan(each.smallest_difference) for each in comparisons):
        statistics.append(
            "Smallest detectable: the true difference that a t test of as many seeds finds with a power of 0.8 at a "
            "level of 0.05, before the correction."
        )
    if statistics:
        notes.append(" ".join(statistics))
    if _has_published(study):
        notes.append(
            "Published: top-1 of ResNet-50 on ImageNet in the ECA-Net paper, table 3; another data set, so compare the "
            "order and not the figures."
        )
    speeds = [method.speed for block in study.blocks for method in block.methods if method.speed]
    if speeds:
        notes.append(
            f"Images/s: networks in turns on {speeds[0]['device']}, threads: {speeds[0]['threads']}, batches of "
            f"{speeds[0]['batch_size']}; the fastest turn, and in parentheses, to be compared, the median over the "
            "turns of how much longer it took than the first network. Training is a step without the optimizer."
        )
    elif study.costs:
        notes.append("Training images/s: of the runs, which depends on what else the machine did.")
    return notes


def warnings_on(block: Block, plan: Plan) -> list[str]:
    """Return what a reader of the comparisons of a block must know first."""
    warnings = []
    if block.num_missing_runs:
        not_its_result = " The comparisons below are not its result." if block.comparisons else ""
        warnings.append(f"Incomplete: {block.num_missing_runs} runs of the plan are missing.{not_its_result}")
    if block.methods_without_runs:
        warnings.append(
            f"Left out: the comparisons that the plan makes with {', '.join(block.methods_without_runs)}, of which "
            "there are no runs; the correction counts them."
        )
    return warnings


def methods_table(study: Study, block: Block) -> Table:
    """The metric of each method, with what it costs and what the paper published."""
    published = _published() if _has_published(study) else None
    of_runs = {
        str(row["run"]): float(row["images_per_s"])
        for row in study.costs
        if isinstance(row.get("images_per_s"), int | float)
    }
    name = "accuracy" if study.plan.metric == DEFAULT_METRIC else study.plan.metric
    # The speed of a run depends on what else its machine did, so that it does not stand beside others.
    is_timed = any(method.speed for block in study.blocks for method in block.methods)
    rows = []
    for method in block.methods:
        training, inference = (_speed(method.speed, mode) for mode in ("training", "inference"))
        measured = [of_runs[run] for run in method.runs if run in of_runs]
        if not is_timed and measured:
            training = f"{sum(measured) / len(measured):,.0f}"
        rows.append(
            [
                method.name,
                str(method.summary.num_seeds),
                _interval(method.summary),
                f"{method.parameters:,}" if method.parameters is not None else "-",
                f"{method.multiply_adds / 1e6:,.2f}" if method.multiply_adds is not None else "-",
                training,
                inference,
                *([published.get(method.name, "-")] if published else []),
            ]
        )
    head = (
        *("method", "seeds", f"{name}, 95 % interval" if _has_intervals(block) else name),
        *("parameters", "multiply-adds (millions)"),
        *("training images/s", "inference images/s"),
        *(["published"] if published else []),
    )
    return head, rows


def _has_intervals(block: Block) -> bool:
    return any(method.summary.num_seeds > 1 for method in block.methods)


def _published() -> dict[str, str]:
    """Return the top-1 of ResNet-50 in the paper, by the attention."""
    rows = [row for row in published_rows("3") if row.architecture == "resnet50" and row.top1]
    return {row.attention: f"{row.top1:.2f}" for row in reversed(rows)}


def _has_published(study: Study) -> bool:
    """Whether the paper has a top-1 of one of the methods, and the study compares top-1."""
    names = {method.name for block in study.blocks for method in block.methods}
    return study.plan.metric.endswith("top1") and not names.isdisjoint(_published())


def _speed(measured: Row | None, mode: str) -> str:
    if measured is None:
        return "-"
    return f"{measured[f'{mode}_images_per_s']:,.0f} ({measured[f'{mode}_time_ratio'] - 1:+.1%})"


def comparisons_table(block: Block) -> Table:
    """Differences, p-values and conclusions."""
    rows = [
        [
            f"{each.a} - {each.b}" + (f", margin {each.margin:g}" if each.kind == "non_inferiority" else ""),
            f"{each.difference:+.2f}",
            f"{each.p:.4g}",
            f"{each.p_holm:.4g}",
            "-" if math.isnan(each.smallest_difference) else f"{each.smallest_difference:.2f}",
            each.conclusion,
        ]
        for each in block.comparisons
    ]
    return ("comparison", "difference", "p", "p (Holm)", "smallest detectable", "conclusion"), rows


def _interval(summary: Summary) -> str:
    if summary.num_seeds < 2:
        return f"{summary.mean:.2f}"
    return f"{summary.mean:.2f} ({summary.low:.2f} to {summary.high:.2f})"


def _html_table(table: Table) -> str:
    head, rows = table
    cells = "".join(f"<th>{html.escape(each)}</th>" for each in head)
    lines = ["".join(f"<td>{html.escape(each)}</td>" for each in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def markdown_table(table: Table) -> list[str]:
    """Return the lines of a table in Markdown."""
    head, rows = table
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def png(figure: "Figure") -> bytes:
    """Encode a figure; the same data give the same bytes."""
    buffer = io.BytesIO()
    # No date and version in the file.
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
