"""The arithmetic of the service's bench, and its table."""

from pathlib import Path
from typing import Any

import pytest

from eca_hub.errors import InvalidUsage
from experiments.bench.service import main
from experiments.bench.service_report import draw, pipeline_limit, print_report, rows_with_share

LIMIT = {"batch_1": 80.0, "with_decoding": 90.0, "batch_1_ms": 22.0, "format": "float32"}
ROW = {
    "server": "ours",
    "precision": "fp32",
    "clients": 8,
    "per_s": 45.0,
    "p50_ms": 1.0,
    "p99_ms": 2.0,
    "num_refused": 0,
    "num_without_response": 0,
    "memory_mib": 900.0,
    "start_s": 4.0,
    "server_cpu_ms": 22.0,
    "foreign": 0.01,
}


def saved_results() -> dict[str, Any]:
    head = {"when": "now", "cores": 2, "limit": {"fp32": LIMIT}}
    around_nothing = ROW | {"server": "ours, no network", "precision": "none", "server_cpu_ms": 0.5}
    return {"ours": head | {"rows": [ROW]}, "noop": head | {"rows": [around_nothing]}}


def test_the_limit_of_the_pipeline_adds_up_the_cost_of_each_image_on_one_core() -> None:
    assert pipeline_limit(LIMIT, 0.0, cores=2) == pytest.approx(90)
    # 2 cores: 22.2 ms of network and decoding a image, and 0.5 ms of HTTP.
    assert pipeline_limit(LIMIT, 0.5, cores=2) == pytest.approx(2000 / (2000 / 90 + 0.5))


def test_only_a_server_with_a_network_has_a_share_of_the_limit() -> None:
    parts = saved_results()
    assert [share for _, share in rows_with_share(parts["ours"], 0.0)] == [0.5]
    assert [share for _, share in rows_with_share(parts["noop"], 0.0)] == [None]


def test_the_limit_of_auto_is_the_faster_number_format_of_this_processor() -> None:
    limit = {"fp32": LIMIT, "bf16": LIMIT | {"with_decoding": 9.0, "format": "bfloat16"}}
    results = saved_results()["ours"] | {"rows": [ROW | {"precision": "auto"}], "limit": limit}
    assert [share for _, share in rows_with_share(results, 0.0)] == [0.5]


def test_the_report_names_every_server_with_its_share_and_draws_a_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_report(saved_results())
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("ours ") and " 0.51 " in line for line in lines)
    assert any(line.startswith("ours, no network") for line in lines)
    draw(saved_results(), str(tmp_path / "plot.png"))
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_part_that_there_is_not_is_named() -> None:
    with pytest.raises(InvalidUsage, match="no part warp"):
        main(["--only", "noop,warp"])
