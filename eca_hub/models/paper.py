"""Compare the published figures of the ECA-Net paper with ours, at the digits that were printed.

The figures and their sources are in paper_tables.json. A row that does not match has a note with the documented choice
that differs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import torchvision

from eca_hub.models.build import build_model, count_parameters
from eca_hub.models.complexity import Complexity, count_complexity
from eca_hub.models.config import ModelConfig
from eca_hub.models.detector_complexity import detector_complexity
from eca_hub.models.weight_init import on_meta_device

TableName = Literal["2", "3", "4", "5"]
Rule = Literal["paper", "poster", "plain", "detection"]


@dataclass(frozen=True)
class PublishedRow:
    """One row of a table, as printed."""

    table: TableName
    method: str
    """Name of the method in print."""
    backbone: str
    """Name of the network in print."""
    architecture: str
    """Name of the network in this library."""
    attention: str
    """Name of the method in this library."""
    sources: tuple[str, ...]
    """Where it was printed: keys of `sources()`."""
    attention_args: Mapping[str, Any] = field(default_factory=dict)
    """Options with which this library builds the printed network."""
    parameters: str = ""
    """As printed, such as 24.37M."""
    parameter_unit: str = "2^20"
    """Meaning of M."""
    parameters_counted: Literal["all", "trained"] = "all"
    """Which parameters the figure counts."""
    multiply_adds: str = ""
    """As printed, such as 3.86G."""
    rule: Rule = "paper"
    """Rule of the count: `paper` and `poster` print powers of two, `plain` and `detection` powers of ten."""
    gates_average_by: Literal["layer", "function"] = "layer"
    """How the counted code averaged inside its gates; the printed count includes layers only."""
    torchvision: Mapping[str, Any] = field(default_factory=dict)
    """Options of torchvision's network, if that was counted; this library's network when empty."""
    module_parameters: str = ""
    """Table 2: parameters of one module, as printed."""
    module_coefficients: tuple[str, str, str] | None = None
    """Table 2: the same as a, b, c of a C^2 + b C + c."""
    detector: str = ""
    """Table 5: the detector on the backbone."""
    image_size_px: int = 224
    """Side of the square input."""
    top1: float | None = None
    """Accuracy on ImageNet, percent."""
    top5: float | None = None
    """Accuracy on ImageNet, percent."""
    AP: float | None = None
    """Average precision of boxes on COCO, percent."""
    mask_AP: float | None = None  # noqa: N815 (named as the metric of a run)
    """Table 6: average precision of masks on COCO, percent."""
    note: str = ""
    """What differs, or a remark."""


@dataclass(frozen=True)
class ComparedRow:
    """One printed row, and our counts."""

    published: PublishedRow
    parameters: int
    """Our exact count: all parameters, or the trained ones, as the row counts."""
    attention_parameters: int
    """Our exact count of what the method adds to the same network without it."""
    multiply_adds: int | None
    """Ours by the plain rule; None for detectors."""
    paper_multiply_adds: int | None
    """Ours by the paper's rule; None for detectors."""
    ruled_multiply_adds: int
    """Ours by the rule of the row."""
    parameters_match: bool | None
    """Whether ours rounds to the published figure; None where nothing was printed."""
    multiply_adds_match: bool | None
    """Likewise."""

    @property
    def matches(self) -> bool:
        """Whether ours rounds to every published figure of the row."""
        return self.parameters_match is not False and self.multiply_adds_match is not False

    def as_json(self) -> dict[str, Any]:
        """Convert the row to JSON values."""
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
                key: value for key in ("top1", "top5", "AP", "mask_AP") if (value := getattr(row, key)) is not None
            },
            "note": row.note,
            "sources": list(row.sources),
        }


def tables() -> list[TableName]:
    """List the tables that print parameters and multiply-adds."""
    return list(_document()["captions"])


def caption(table: TableName) -> str:
    """Return what a table compares."""
    return str(_document()["captions"][table])


def footnotes(table: TableName) -> list[str]:
    """Return remarks on a table, its errors included."""
    return list(_document()["footnotes"].get(table, []))


def sources() -> dict[str, str]:
    """Return the publications of the figures."""
    return dict(_document()["sources"])


def published_rows(table: TableName) -> list[PublishedRow]:
    """Return the rows of a table, in its order."""
    rows = [row for row in _document()["rows"] if row["table"] == table]
    return [PublishedRow(**{**row, "sources": tuple(row["sources"])}) for row in rows]


def compare(row: PublishedRow) -> ComparedRow:
    """Count the network of a row and compare with what was printed."""
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
    return ComparedRow(
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
    """Whether a count, in a unit and rounded to as many digits, equals the printed figure; None if nothing was printed.

    Args:
        value: The count.
        printed: Number and letter, such as 24.37M.
        unit: What one of the letter is.
    """
    if not printed:
        return None
    figure = Decimal(printed.rstrip("MG"))
    return (Decimal(value) / unit).quantize(figure, ROUND_HALF_UP) == figure


def multiply_adds_unit(row: PublishedRow) -> str:
    """Return the unit of the printed multiply-adds; 2^30 where nothing was printed."""
    if not row.multiply_adds:
        return "2^30"
    in_powers_of_two = row.rule in ("paper", "poster")
    return {"M": ("10^6", "2^20"), "G": ("10^9", "2^30")}[row.multiply_adds[-1]][in_powers_of_two]


def in_printed_unit(row: ComparedRow) -> float:
    """Convert our multiply-adds by the row's rule to the unit of its figure; to 2^30 where none was printed."""
    return row.ruled_multiply_adds / _UNITS[multiply_adds_unit(row.published)]


_UNITS = {"2^20": 2**20, "2^30": 2**30, "10^6": 10**6, "10^9": 10**9}


@cache
def _document() -> dict[str, Any]:
    text = files("eca_hub.models").joinpath("paper_tables.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document


def _count(row: PublishedRow) -> Complexity:
    size = {"height_px": row.image_size_px, "width_px": row.image_size_px}
    if row.torchvision:
        with on_meta_device():
            return count_complexity(torchvision.models.get_model(row.architecture, **row.torchvision), **size)
    return count_complexity(ModelConfig(row.architecture, row.attention, row.attention_args), **size)


@cache
def _num_parameters_without_attention(architecture: str) -> int:
    with on_meta_device():
        model = build_model(ModelConfig(architecture, "none"), num_classes=1000)
    return count_parameters(model)


_TABLE_2_BLOCKS = {256: 3, 512: 4, 1024: 6, 2048: 3}
"""ResNet-50: output channels of a block to the number of such blocks."""


def _table_2_parameters(row: PublishedRow) -> Fraction:
    """Sum the printed formula over the blocks of ResNet-50."""
    assert row.module_coefficients is not None
    a, b, c = (Fraction(coefficient) for coefficient in row.module_coefficients)
    return sum((blocks * (a * C * C + b * C + c) for C, blocks in _TABLE_2_BLOCKS.items()), Fraction())


def _compare_detector(row: PublishedRow) -> ComparedRow:
    complexity = detector_complexity(
        row.detector, ModelConfig(row.architecture, row.attention, dict(row.attention_args))
    )
    parameters = complexity.trained_parameters if row.parameters_counted == "trained" else complexity.num_parameters
    return ComparedRow(
        published=row,
        parameters=parameters,
        attention_parameters=complexity.attention_parameters,
        multiply_adds=None,
        paper_multiply_adds=None,
        ruled_multiply_adds=complexity.multiply_adds,
        parameters_match=prints_as(parameters, row.parameters, _UNITS[row.parameter_unit]),
        multiply_adds_match=prints_as(complexity.multiply_adds, row.multiply_adds, _UNITS[multiply_adds_unit(row)]),
    )
