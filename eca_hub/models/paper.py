"""The published figures of the ECA-Net paper beside ours, compared at the digits that were printed.

Figures are data with a source, in paper_tables.json next to this file. A row that cannot be met says which documented
choice differs; no number is bent to fit. Knows nothing of how anything is counted.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import torch

from eca_hub.models.build import build_model, count_parameters
from eca_hub.models.complexity import Complexity, count_complexity
from eca_hub.models.config import ModelConfig
from eca_hub.models.detector_complexity import detector_cost
from eca_hub.models.zoos import torchvision

TableName = Literal["2", "3", "4", "5"]
Rule = Literal["paper", "poster", "plain", "detection"]


@dataclass(frozen=True)
class Published:
    """One row of a table, as printed."""

    table: TableName
    method: str
    """What the row is called in print."""
    backbone: str
    """Which network, in print."""
    architecture: str
    """Our name of that network."""
    attention: str
    """Our name of the method."""
    sources: tuple[str, ...]
    """Where it was printed; keys of `sources()`."""
    attention_args: Mapping[str, Any] = field(default_factory=dict)
    """Options that make ours the printed one."""
    parameters: str = ""
    """As printed, such as 24.37M."""
    parameter_unit: str = "2^20"
    """What M stands for."""
    parameters_counted: Literal["all", "trained"] = "all"
    """Which parameters the figure counts."""
    multiply_adds: str = ""
    """As printed, such as 3.86G."""
    rule: Rule = "paper"
    """How these were counted: `paper` and `poster` in powers of two, `plain` and `detection` in powers of ten."""
    gates_average_by: Literal["layer", "function"] = "layer"
    """How the counted code averages inside its gates; the count saw layers only."""
    torchvision: Mapping[str, Any] = field(default_factory=dict)
    """Options with which torchvision's network of this name was counted; ours when empty."""
    module_parameters: str = ""
    """Table 2: parameters of one module, as printed."""
    module_coefficients: tuple[str, str, str] | None = None
    """Table 2: the same as a, b, c of a C^2 + b C + c."""
    detector: str = ""
    """Table 5: which detector stands on the backbone."""
    image_size_px: int = 224
    """Side of the square image that was counted for."""
    top1: float | None = None
    """Accuracy on ImageNet, percent."""
    top5: float | None = None
    """Accuracy on ImageNet, percent."""
    AP: float | None = None
    """Average precision of boxes on COCO, percent."""
    note: str = ""
    """What differs, or what to know."""


@dataclass(frozen=True)
class Compared:
    """One printed row, and what we count."""

    published: Published
    parameters: int
    """Ours, exact; all of them or those that are trained, as the row counts."""
    attention_parameters: int
    """Ours, exact: what the method adds to the same network without it."""
    multiply_adds: int | None
    """Ours, by the plain rule; None where the table is of detectors."""
    paper_multiply_adds: int | None
    """Ours, by the paper's rule; likewise."""
    ruled_multiply_adds: int
    """Ours, by the rule of the row."""
    parameters_match: bool | None
    """Whether ours prints as the published figure; None where nothing was printed."""
    multiply_adds_match: bool | None
    """Likewise."""

    @property
    def matches(self) -> bool:
        """Whether every published figure of the row is met."""
        return self.parameters_match is not False and self.multiply_adds_match is not False

    def as_json(self) -> dict[str, Any]:
        """Give the row as plain values, for scripts."""
        row = self.published
        return {
            "table": row.table,
            "method": row.method,
            "backbone": row.backbone,
            "architecture": row.architecture,
            "attention": row.attention,
            "attention_args": dict(row.attention_args),
            **({"detector": row.detector} if row.detector else {}),
            "parameters": self.parameters,
            "parameters_m_10e6": round(self.parameters / 10**6, 4),
            "parameters_m_2e20": round(self.parameters / 2**20, 4),
            "attention_parameters": self.attention_parameters,
            "published_parameters": row.module_parameters or row.parameters,
            "published_parameter_unit": "one module, C channels" if row.module_parameters else row.parameter_unit,
            "parameters_counted": row.parameters_counted,
            "parameters_match": self.parameters_match,
            "multiply_adds_plain": self.multiply_adds,
            "multiply_adds_paper": self.paper_multiply_adds,
            "multiply_adds_by_rule": self.ruled_multiply_adds,
            "rule": row.rule,
            "published_multiply_adds": row.multiply_adds,
            "published_multiply_adds_unit": multiply_adds_unit(row) if row.multiply_adds else "",
            "multiply_adds_match": self.multiply_adds_match,
            "matches": self.matches,
            "published_accuracy": {
                key: value for key in ("top1", "top5", "AP") if (value := getattr(row, key)) is not None
            },
            "note": row.note,
            "sources": list(row.sources),
        }


def tables() -> list[TableName]:
    """Name the tables that print what networks cost."""
    return list(_document()["captions"])


def caption(table: TableName) -> str:
    """Say what a table compares."""
    return str(_document()["captions"][table])


def footnotes(table: TableName) -> list[str]:
    """Say what to know of a table, its errors among it."""
    return list(_document()["footnotes"].get(table, []))


def sources() -> dict[str, str]:
    """Give the works that the figures were printed in."""
    return dict(_document()["sources"])


def published_rows(table: TableName) -> list[Published]:
    """Give the rows of a table, in its order."""
    rows = [row for row in _document()["rows"] if row["table"] == table]
    return [Published(**{**row, "sources": tuple(row["sources"])}) for row in rows]


def compare(row: Published) -> Compared:
    """Count the network of a row and hold it against what was printed."""
    if row.detector:
        return _compare_detector(row)
    complexity = _count(row)
    added = 0
    if row.attention != "none":
        added = complexity.num_parameters - _num_parameters_without_attention(row.architecture)
    ruled = {
        "paper": complexity.paper_multiply_adds,
        "poster": complexity.poster_multiply_adds,
        "plain": complexity.multiply_adds,
    }[row.rule]
    if row.gates_average_by == "function":
        ruled -= complexity.tally.averaged_in_gates
    if row.module_coefficients:
        parameters_match: bool | None = added == _table_2_parameters(row)
    else:
        parameters_match = prints_as(complexity.num_parameters, row.parameters, _UNITS[row.parameter_unit])
    return Compared(
        published=row,
        parameters=complexity.num_parameters,
        attention_parameters=added,
        multiply_adds=complexity.multiply_adds,
        paper_multiply_adds=complexity.paper_multiply_adds,
        ruled_multiply_adds=ruled,
        parameters_match=parameters_match,
        multiply_adds_match=prints_as(ruled, row.multiply_adds, _UNITS[multiply_adds_unit(row)]),
    )


def prints_as(value: int, printed: str, unit: int) -> bool | None:
    """Tell whether a count, in a unit and rounded to as many digits, is what was printed; None if nothing was.

    Args:
        value: The count.
        printed: Number and letter, such as 24.37M.
        unit: What the letter stands for.
    """
    if not printed:
        return None
    figure = Decimal(printed.rstrip("MG"))
    return (Decimal(value) / unit).quantize(figure, ROUND_HALF_UP) == figure


def multiply_adds_unit(row: Published) -> str:
    """Name what the letter behind the printed multiply-adds stands for; 2^30 where nothing was printed."""
    if not row.multiply_adds:
        return "2^30"
    in_powers_of_two = row.rule in ("paper", "poster")
    return {"M": ("10^6", "2^20"), "G": ("10^9", "2^30")}[row.multiply_adds[-1]][in_powers_of_two]


def in_printed_unit(row: Compared) -> float:
    """Give our multiply-adds by the row's rule in the unit of its figure; in 2^30 where none was printed."""
    return row.ruled_multiply_adds / _UNITS[multiply_adds_unit(row.published)]


_UNITS = {"2^20": 2**20, "2^30": 2**30, "10^6": 10**6, "10^9": 10**9}


@cache
def _document() -> dict[str, Any]:
    text = files("eca_hub.models").joinpath("paper_tables.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document


def _count(row: Published) -> Complexity:
    size = {"height_px": row.image_size_px, "width_px": row.image_size_px}
    if row.torchvision:
        with torch.device("meta"):
            return count_complexity(torchvision.models.get_model(row.architecture, **row.torchvision), **size)
    return count_complexity(ModelConfig(row.architecture, row.attention, row.attention_args), **size)


@cache
def _num_parameters_without_attention(architecture: str) -> int:
    with torch.device("meta"):
        model = build_model(ModelConfig(architecture, "none"), num_classes=1000)
    return count_parameters(model)


_TABLE_2_BLOCKS = {256: 3, 512: 4, 1024: 6, 2048: 3}
"""ResNet-50: output channels of a block to the number of such blocks."""


def _table_2_parameters(row: Published) -> Fraction:
    """Sum the printed formula over the blocks of ResNet-50."""
    assert row.module_coefficients is not None
    a, b, c = (Fraction(coefficient) for coefficient in row.module_coefficients)
    return sum((blocks * (a * C * C + b * C + c) for C, blocks in _TABLE_2_BLOCKS.items()), Fraction())


def _compare_detector(row: Published) -> Compared:
    cost = detector_cost(row.detector, ModelConfig(row.architecture, row.attention, dict(row.attention_args)))
    parameters = cost.trained_parameters if row.parameters_counted == "trained" else cost.num_parameters
    return Compared(
        published=row,
        parameters=parameters,
        attention_parameters=cost.attention_parameters,
        multiply_adds=None,
        paper_multiply_adds=None,
        ruled_multiply_adds=cost.multiply_adds,
        parameters_match=prints_as(parameters, row.parameters, _UNITS[row.parameter_unit]),
        multiply_adds_match=prints_as(cost.multiply_adds, row.multiply_adds, _UNITS[multiply_adds_unit(row)]),
    )
