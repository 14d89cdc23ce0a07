"""`eca-hub report`: the results of a sweep as a page with tables, plots and statistics."""

import json
from pathlib import Path

from eca_hub.commandline import CommandParser


def main(argv: list[str]) -> int:
    """Write the report of a table of results."""
    parser = CommandParser("report", "Write the results of a sweep as one HTML page and as Markdown, with statistics.")
    parser.add_argument("results", help="The table that eca-hub sweep wrote: results.csv or results.parquet.")
    parser.add_argument("--out", required=True, help="Folder for report.html, report.md and figures/.")
    parser.add_argument("--plan", help="YAML file with the comparisons that were fixed before; all with none and se.")
    parser.add_argument(
        "--metric", default="test_top1", help="Column that is compared, such as test_AP; a share between 0 and 1."
    )
    parser.add_argument("--title", default="Results", help="Heading of the page.")
    parser.add_argument("--json", action="store_true", help="Print the comparisons as one JSON object.")
    args = parser.read(argv)
    from eca_hub.report.page import write_report
    from eca_hub.report.plots import draw_all
    from eca_hub.report.study import read_plan, read_study

    study = read_study(Path(args.results), read_plan(Path(args.plan) if args.plan else None, args.metric))
    page = write_report(Path(args.out), study, draw_all(study), title=args.title)
    if args.json:
        comparisons = [
            {"block": block.name, **vars(each), "conclusion": each.conclusion}
            for block in study.blocks
            for each in block.comparisons
        ]
        print(json.dumps({"report": str(page), "comparisons": comparisons}))
    else:
        for block in study.blocks:
            for each in block.comparisons:
                print(f"{block.name}: {each.conclusion} (p = {each.p_holm:.4g}, corrected)")
        print(f"report: {page}")
    return 0
