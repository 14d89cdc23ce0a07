"""The committed results of the study: their reports are rebuilt, and their p-values by a count of all splits."""

import csv
import itertools
import json
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

from eca_hub.__main__ import main

RESULTS = Path("experiments/results")


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


@pytest.mark.parametrize("block", ["f", "v"])
def test_the_p_values_of_a_report_are_those_of_a_count(
    block: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, plan = RESULTS / f"{block}.csv", RESULTS / f"plan_{block}.yaml"
    assert main(["report", str(table), "--plan", str(plan), "--out", str(tmp_path), "--json"]) == 0
    comparisons = json.loads(capsys.readouterr().out)["comparisons"]
    values: dict[str, list[float]] = defaultdict(list)
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            values[row["attention"]].append(100 * float(row["test_top1"]))
    planned = yaml.safe_load(plan.read_text())["comparisons"]
    assert [(each["a"], each["b"], each["kind"]) for each in comparisons] == [
        (each["a"], each["b"], each["kind"]) for each in planned
    ]
    counted = [counted_p(values[each["a"]], values[each["b"]], margin=each.get("margin")) for each in planned]
    assert [each["p"] for each in comparisons] == pytest.approx(counted)
    # Holm: the smallest of n times n, the next times n - 1, and none below the one before.
    order = sorted(range(len(counted)), key=counted.__getitem__)
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, counted[i] * (len(counted) - rank)))
        assert comparisons[i]["p_holm"] == pytest.approx(highest)


def test_tables_that_were_trained_alike_by_an_older_version_are_reported_together(tmp_path: Path) -> None:
    assert main(["report", *(str(RESULTS / f"{block}.csv") for block in "vj"), "--out", str(tmp_path)]) == 0


def test_tables_and_figures_are_rebuilt_and_say_that_seeds_are_missing(tmp_path: Path) -> None:
    plan = RESULTS / "plan.yaml"
    assert main(["report", str(RESULTS / "f.csv"), "--plan", str(plan), "--out", str(tmp_path)]) == 0
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {
        *("accuracy", "bubbles", "curves", "classes", "gates")
    }
    text = (tmp_path / "report.md").read_text()
    assert "| eca | 6 | 70.30" in text
    assert "Incomplete: 22 runs of the plan are missing." in text
