"""The figures of the README from committed data."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import figures


def test_the_latency_of_each_server_is_a_line_over_its_load(tmp_path: Path) -> None:
    rows = [
        {"server": server, "precision": "fp32", "clients": n, "per_s": 10.0 * n, "p50_ms": 50.0, "p99_ms": 80.0}
        for server in ("ours", "mosec")
        for n in (8, 1)
    ]
    silent = {**rows[0], "precision": "bf16", "per_s": 0.0, "p50_ms": 0.0, "p99_ms": 0.0}
    (tmp_path / "service.json").write_text(json.dumps({"engine": {}, "ours": {"rows": [*rows, silent]}}))
    [axes] = figures.latency(tmp_path / "service.json").axes
    solid = {
        line.get_label(): np.asarray(line.get_xdata()).tolist() for line in axes.lines if line.get_linestyle() == "-"
    }
    assert solid == {"ours, fp32": [10.0, 80.0], "mosec, fp32": [10.0, 80.0]}


@pytest.mark.slow
def test_the_bubbles_are_the_published_resnets_with_four_methods() -> None:
    [axes] = figures.bubbles().axes
    legend = axes.get_legend()
    assert legend is not None
    assert {text.get_text() for text in legend.get_texts()} == {"ResNet", "SENet", "CBAM", "ECA-Net"}
    assert len(axes.collections) == 5 * 3 + 3
