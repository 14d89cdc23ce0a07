"""A committed table of made-up results: its report is rebuilt, and its p-values by a count of all splits."""

import csv
import itertools
import json
from collections import defaultdict
from pathlib import Path

import pytest

from eca_hub.__main__ import main

TABLE = Path(__file__).parent / "example.csv"


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def counted_p(a: list[float], b: list[float], *, margin: float | None = None) -> float:
    """The share of all splits at least as extreme; one-sided with a margin."""
    a = [value + (margin or 0) for value in a]
    pooled, indices = [*a, *b], range(len(a) + len(b))
    observed = mean(a) - mean(b)
    extreme = []
    for chosen in itertools.combinations(indices, len(a)):
        difference = mean([pooled[i] for i in chosen]) - mean([pooled[i] for i in indices if i not in chosen])
        extreme.append(difference >= observed - 1e-9 if margin is not None else abs(difference) >= abs(observed) - 1e-9)
    return sum(extreme) / len(extreme)


def test_the_p_values_of_the_report_are_those_of_a_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = "experiments/results/plan.yaml"
    assert main(["report", str(TABLE), "--plan", plan, "--out", str(tmp_path), "--json"]) == 0
    comparisons = json.loads(capsys.readouterr().out)["comparisons"]
    values: dict[str, list[float]] = defaultdict(list)
    with TABLE.open(newline="") as file:
        for row in csv.DictReader(file):
            values[row["attention"]].append(100 * float(row["test_top1"]))
    assert [(each["a"], each["b"], each["kind"]) for each in comparisons] == [
        ("eca", "none", "difference"),
        ("eca", "se", "non_inferiority"),
    ]
    counted = [counted_p(values["eca"], values["none"]), counted_p(values["eca"], values["se"], margin=0.5)]
    assert [each["p"] for each in comparisons] == pytest.approx(counted)
    low, high = sorted(counted)
    assert sorted(each["p_holm"] for each in comparisons) == pytest.approx([2 * low, max(2 * low, high)])


def test_tables_and_figures_are_rebuilt_and_say_that_seeds_are_missing(tmp_path: Path) -> None:
    assert main(["report", str(TABLE), "--plan", "experiments/results/plan.yaml", "--out", str(tmp_path)]) == 0
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"accuracy", "bubbles"}
    text = (tmp_path / "report.md").read_text()
    assert "| eca | 4 | 90.50" in text
    assert "Incomplete: 12 runs of the compared methods are missing from the 8 seeds of the plan." in text
