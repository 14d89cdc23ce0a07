"""The committed results: the report is rebuilt from them, and its p-values by other means."""

import itertools
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from eca_hub.__main__ import main
from eca_hub.sweep.grid import read_sweep
from eca_hub.sweep.results import read_table

RESULTS = Path("experiments/results")


def test_the_report_of_committed_results_is_rebuilt_with_p_values_that_a_count_of_all_splits_gives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(RESULTS / "digits.csv"), "--out", str(tmp_path), "--json"]) == 0
    comparisons = json.loads(capsys.readouterr().out)["comparisons"]
    values = defaultdict(list)
    for row in read_table(RESULTS / "digits.csv"):
        values[row["attention"]].append(100 * row["test_top1"])
    assert {method: len(each) for method, each in values.items()} == {"none": 4, "se": 4, "eca": 4}
    for each in comparisons:
        a, b = values[each["a"]], values[each["b"]]
        pooled, observed = [*a, *b], abs(np.mean(a) - np.mean(b))
        differences = [
            abs(np.mean([pooled[i] for i in chosen]) - np.mean([pooled[i] for i in range(8) if i not in chosen]))
            for chosen in itertools.combinations(range(8), 4)
        ]
        assert each["p"] == pytest.approx(np.mean([each >= observed - 1e-9 for each in differences]))
    assert {path.stem for path in (tmp_path / "figures").iterdir()} >= {"accuracy", "bubbles", "curves"}


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.csv")), ids=lambda path: path.stem)
def test_results_are_runs_of_the_committed_sweep(path: Path) -> None:
    sweep = Path("experiments/sweeps") / path.name
    if not sweep.is_file():
        pytest.skip("a table beside the results")
    known = {run.name: run.config_hash for run in read_sweep(sweep)}
    for row in read_table(path):
        assert known[row["run"]] == row["config_hash"]
        assert len(row["commit"]) == 40
        assert row["hardware"]
