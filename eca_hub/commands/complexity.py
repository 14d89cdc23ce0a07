"""`eca-hub complexity`: parameters and multiply-adds of networks, next to published figures."""

import json
from typing import TYPE_CHECKING, Any

from eca_hub.commandline import CommandParser
from eca_hub.commands.progress import show_progress
from eca_hub.errors import InvalidUsage
from eca_hub.models.config import MAX_CLASSES, ModelConfig

if TYPE_CHECKING:
    from eca_hub.models.complexity import Complexity
    from eca_hub.models.paper import ComparedRow, TableName


def main(argv: list[str]) -> int:
    """Print a table of the paper, or the cost of one network."""
    parser = CommandParser("complexity", "Count parameters and multiply-adds, next to the published figures.")
    parser.add_argument(
        "--table", choices=["2", "3", "4", "5"], help="A table of the paper; all four when none is given."
    )
    parser.add_argument("--model", help="Count this network instead: resnet50, eca_resnet50.")
    parser.add_argument("--attention", help="Attention of --model, such as se; see eca-hub models.")
    parser.add_argument(
        "--attention_args", type=dict[str, Any], default={}, help='Its options, such as {"reduction": 8}.'
    )
    parser.add_argument("--num_classes", type=int, help="Outputs of --model; 1000 when not given.")
    parser.add_argument("--image_size_px", type=int, help="Side of the square image for --model; 224 when not given.")
    parser.add_argument("--json", action="store_true", help="Print one JSON document.")
    args = parser.read(argv)
    if args.model is not None and args.table:
        raise InvalidUsage("--table is for networks of the paper and --model for any other; give one of them.")
    if args.model is None:
        for name in ("attention", "attention_args", "num_classes", "image_size_px"):
            if args[name] not in (None, {}):
                raise InvalidUsage(f"--{name} needs a network.", hint="Add --model resnet50, for example.")
        return _tables(args.table, as_json=args.json)
    num_classes = 1000 if args.num_classes is None else args.num_classes
    image_size_px = 224 if args.image_size_px is None else args.image_size_px

    from eca_hub.models.complexity import MAX_SIDE_PX

    for name, value, most in (
        ("num_classes", num_classes, MAX_CLASSES),
        ("image_size_px", image_size_px, MAX_SIDE_PX),
    ):
        if not 1 <= value <= most:
            raise InvalidUsage(f"--{name} is {value}; it must be 1 to {most}.")

    from eca_hub.models.build import choose_attention

    config = ModelConfig(args.model, choose_attention(args.model, args.attention), dict(args.attention_args))
    return _one_network(config, num_classes, image_size_px, as_json=args.json)


def _one_network(config: ModelConfig, num_classes: int, image_size_px: int, *, as_json: bool) -> int:
    from eca_hub.models.build import build_model, resolve_config
    from eca_hub.models.complexity import count_complexity
    from eca_hub.models.weight_init import on_meta_device

    resolved = resolve_config(config)
    with on_meta_device():
        model = build_model(resolved, num_classes=num_classes)
    complexity = count_complexity(model, height_px=image_size_px, width_px=image_size_px)
    document = {
        "architecture": resolved.architecture,
        "attention": resolved.attention,
        "attention_args": dict(resolved.attention_args),
        "num_classes": num_classes,
        **_cost(complexity),
    }
    if as_json:
        print(json.dumps(document))
        return 0
    name = resolved.architecture if resolved.attention == "none" else f"{resolved.attention}_{resolved.architecture}"
    options = ", ".join(f"{key} = {value}" for key, value in resolved.attention_args.items())
    print(f"{name}{f' ({options})' if options else ''}, {num_classes} classes, {image_size_px} x {image_size_px} px")
    parameters, plain, paper = (
        complexity.num_parameters,
        complexity.multiply_adds,
        complexity.paper_multiply_adds,
    )
    print(
        f"parameters                   {parameters:>14,}   {parameters / 1e6:.2f} M   {parameters / 2**20:.2f} x 2^20"
    )
    print(f"multiply-adds, plain         {plain:>14,}   {plain / 1e9:.3f} G   {plain / 2**30:.3f} x 2^30")
    print(f"multiply-adds, paper's rule  {paper:>14,}   {paper / 1e9:.3f} G   {paper / 2**30:.3f} x 2^30")
    for kind, ops in complexity.paper_terms.items():
        print(f"  {kind:<26} {ops:>14,}")
    return 0


def _cost(complexity: "Complexity") -> dict[str, Any]:
    return {
        "image_size_px": complexity.height_px,
        "parameters": complexity.num_parameters,
        "parameters_m_10e6": round(complexity.num_parameters / 10**6, 4),
        "parameters_m_2e20": round(complexity.num_parameters / 2**20, 4),
        "multiply_adds_plain": complexity.multiply_adds,
        "multiply_adds_paper": complexity.paper_multiply_adds,
        "multiply_adds_poster": complexity.poster_multiply_adds,
        "paper_rule_terms": complexity.paper_terms,
    }


def _tables(chosen: "TableName | None", *, as_json: bool) -> int:
    from eca_hub.models.paper import caption, compare, footnotes, published_rows, sources, tables

    documents = []
    for table in [chosen] if chosen else tables():
        rows = []
        for number, row in enumerate(published := published_rows(table), start=1):
            show_progress(f"table {table}: {number} of {len(published)}")
            rows.append(compare(row))
        show_progress("")
        if not as_json:
            print(_render(f"Table {table}. {caption(table)}", rows, footnotes(table)))
            continue
        used = {source: sources()[source] for row in rows for source in row.published.sources}
        documents.append(
            {
                "table": int(table),
                "caption": caption(table),
                "rows": [row.as_json() for row in rows],
                "footnotes": footnotes(table),
                "sources": used,
            }
        )
    if as_json:
        print(json.dumps(documents[0] if chosen else documents))
    return 0


def _render(title: str, rows: list["ComparedRow"], footnotes: list[str]) -> str:
    """Align the rows in columns; notes follow, numbered."""
    notes: list[str] = []
    for row in rows:
        if row.published.note and row.published.note not in notes:
            notes.append(row.published.note)
    cells = [_HEADER, *(_cells(row, notes) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADER))]
    lines = [
        "  ".join(
            cell.ljust(width) if column in _LEFT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    numbered = [f"[{number}] {note}" for number, note in enumerate(notes, start=1)]
    return "\n".join([title, "", *lines, "", _LEGEND, *footnotes, *numbered, ""])


_HEADER = (
    *("backbone", "method", "parameters", "10^6", "2^20", "printed", ""),
    *("multiply-adds: plain", "by the row's rule", "", "printed", "", ""),
)
_LEFT = {0, 1, 6, 11, 12}
_LEGEND = "Plain: one for each product. By the row's rule: counted as the printed figure was, in its unit."
_DETECTORS = {"faster_rcnn": "Faster R-CNN", "mask_rcnn": "Mask R-CNN", "retinanet": "RetinaNet"}


def _cells(row: "ComparedRow", notes: list[str]) -> tuple[str, ...]:
    from eca_hub.models.paper import in_printed_unit

    printed = row.published
    parameters = row.attention_parameters if printed.module_parameters else row.parameters
    return (
        f"{_DETECTORS[printed.detector]} {printed.backbone}" if printed.detector else printed.backbone,
        printed.method,
        f"{parameters:,}",
        f"{parameters / 10**6:.3f}",
        f"{parameters / 2**20:.3f}",
        printed.module_parameters or printed.parameters,
        _verdict(row.parameters_match),
        "" if row.multiply_adds is None else f"{row.multiply_adds:,}",
        f"{row.ruled_multiply_adds:,}",
        f"{in_printed_unit(row):.3f}",
        printed.multiply_adds,
        _verdict(row.multiply_adds_match),
        f"[{notes.index(printed.note) + 1}]" if printed.note else "",
    )


def _verdict(match: bool | None) -> str:
    return "" if match is None else "matches" if match else "differs"
