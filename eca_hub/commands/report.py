"""`eca-hub report`: the results of sweeps as a page with tables, plots and statistics."""

import json
from typing import TYPE_CHECKING, Any

from eca_hub.commandline import CommandParser
from eca_hub.commands.outputs import check_folder, not_written, output_path
from eca_hub.paths import expand_home

if TYPE_CHECKING:
    from eca_hub.report.study import Study


def main(argv: list[str]) -> int:
    """Write the report of one or more tables of results."""
    parser = CommandParser("report", "Write the results of sweeps as one HTML page and as Markdown, with statistics.")
    parser.add_argument(
        "results",
        nargs="+",
        help="The table that eca-hub sweep wrote: results.csv or results.parquet; several are read as one study.",
    )
    parser.add_argument("--out", required=True, help="Folder for report.html, report.md and figures/.")
    parser.add_argument("--plan", help="YAML file with the comparisons that were fixed before; all with none and se.")
    parser.add_argument(
        "--metric", help="Column that is compared, a share from 0 to 1; that of the plan, or test_top1."
    )
    parser.add_argument("--title", default="Results", help="Heading of the page.")
    parser.add_argument("--json", action="store_true", help="Print the comparisons as one JSON object.")
    args = parser.read(argv)
    from eca_hub.report.page import warnings_on, write_report
    from eca_hub.report.plots import draw_all
    from eca_hub.report.study import read_plan, read_study

    out_dir = output_path("out", args.out)
    check_folder(out_dir)
    study = read_study(
        [expand_home(each) for each in args.results],
        read_plan(expand_home(args.plan) if args.plan else None, args.metric),
    )
    try:
        page = write_report(out_dir, study, draw_all(study), title=args.title)
    except OSError as error:
        raise not_written(out_dir, error) from None
    if args.json:
        print(json.dumps({"report": str(page), **_as_json(study)}))
        return 0
    for block in study.blocks:
        for warning in warnings_on(block, study.plan):
            print(f"{block.name}: {warning}")
        for each in block.comparisons:
            print(f"{block.name}: {each.conclusion} (p = {each.p_holm:.4g}, corrected)")
    print(f"report: {page}")
    return 0


def _as_json(study: "Study") -> dict[str, Any]:
    from eca_hub.report.page import warnings_on

    comparisons = [
        {
            "block": block.name,
            # NaN is not JSON.
            **{name: None if each != each else each for name, each in vars(comparison).items()},
            "conclusion": comparison.conclusion,
        }
        for block in study.blocks
        for comparison in block.comparisons
    ]
    warnings = [
        {"block": block.name, "warning": warning}
        for block in study.blocks
        for warning in warnings_on(block, study.plan)
    ]
    return {"metric": study.plan.metric, "comparisons": comparisons, "warnings": warnings}
