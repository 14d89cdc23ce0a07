"""`eca-hub sweep` as a person types it."""

import contextlib
import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from eca_hub.__main__ import main
from eca_hub.commands.sweep import _write_speeds
from eca_hub.commands.sweep import main as sweep
from eca_hub.errors import InvalidUsage
from eca_hub.sweep.grid import read_sweep
from eca_hub.sweep.queue import SweepState
from eca_hub.sweep.results import read_table, write_table
from tests.sweep.test_speeds import OPTIONS, finish

CONFIG = Path(__file__).parents[2] / "experiments" / "configs" / "digits" / "eca.yaml"
SWEEP = f"""
configs: [{CONFIG}]
options: {{trainer.max_epochs: 2}}
grid: {{model.attention: [none, eca], seed_everything: [0, 1]}}
"""


def test_a_dry_run_lists_the_runs_and_starts_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    assert (
        main(["sweep", "-c", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "out"), "--dry-run", "--json"]) == 0
    )
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [run["finished"] for run in runs] == [False] * 4
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "x" * 300], "results.csv cannot be read: File name too long."),
        (["--results", "x" * 300 + ".csv"], "x.csv cannot be read: File name too long."),
        (["--speeds", "--baseline", "x" * 300], "x, which is no folder of a finished run"),
        (["--results", ""], "--results is empty"),
        (["--jobs", "0"], "--jobs is 0; it must be 1 or more"),
        (["--results", "x.txt"], "must end in .csv or .parquet"),
        (["--baseline", "x"], "--baseline is a network to time. Give --speeds with it."),
        (
            ["--speeds", "--baseline", "x"],
            "--baseline is x, which is no folder of a finished run",
        ),
    ],
)
def test_a_wrong_option_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    assert main(["sweep", "-c", str(tmp_path / "sweep.yaml"), *options]) == 2
    assert words in capsys.readouterr().err


def test_a_file_in_the_place_of_the_folder_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    (tmp_path / "out").write_text("")
    assert main(["sweep", "-c", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert "out cannot be made a folder: File exists." in capsys.readouterr().err


def test_the_folder_of_a_sweep_may_be_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    (tmp_path / "out").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["sweep", "-c", "~/sweep.yaml", "--out", "~/out"]) == 2
    assert f"{tmp_path / 'out'} cannot be made a folder" in capsys.readouterr().err


def test_results_that_cannot_be_written_are_refused_before_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("eca_hub.sweep.queue.run_sweep", lambda *_, **__: pytest.fail("a run was started"))
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    # The name of the temporary file, which is longer, is too long.
    command = ["sweep", "-c", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "out")]
    assert main([*command, "--results", str(tmp_path / f"{'x' * 236}.csv")]) == 2
    assert "cannot be written: File name too long." in capsys.readouterr().err


class ClosedTerminal(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_failed_run_ends_a_sweep_with_its_reason_and_the_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    state = SweepState(num_runs=4, num_done=1, failed={"run1": "exit code 1"})
    monkeypatch.setattr("eca_hub.sweep.queue.run_sweep", lambda *_, **__: state)
    assert sweep(["-c", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith("1 of 4 runs finished")
    assert "run1 failed: exit code 1 " in printed.err


def test_networks_are_timed_when_the_terminal_has_been_closed(finished: list[str], tmp_path: Path) -> None:
    with contextlib.redirect_stdout(ClosedTerminal()), pytest.raises(OSError, match="Input/output error"):
        sweep([*finished, "--speeds"])
    assert (tmp_path / "out" / "results_speeds.csv").is_file()


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The options of a sweep whose runs have finished and whose networks are timed at once."""
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    monkeypatch.setattr("eca_hub.sweep.queue.run_sweep", lambda *_, **__: SweepState(num_runs=4, num_done=4))
    monkeypatch.setattr(
        "eca_hub.sweep.speeds.measure_speeds",
        lambda networks, **_: [{"run": folder.name} for folder in networks.values()],
    )
    return ["-c", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "out")]


def test_a_baseline_of_the_same_grid_values_as_a_network_of_the_sweep_names_the_one_it_replaces(
    finished: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(tmp_path / "other", attention="none", attention_args={})
    (tmp_path / "other" / "config.yaml").write_text("model: {attention: none}\n")
    assert sweep([*finished, "--speeds", "--baseline", str(tmp_path / "other")]) == 0
    first, second = (run.name for run in read_sweep(tmp_path / "sweep.yaml")[::2])
    assert [row["run"] for row in read_table(tmp_path / "out" / "results_speeds.csv")] == ["other", second]
    assert f"{tmp_path / 'other'} is timed in place of {tmp_path / 'out' / first}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        ({"task": "object-detection"}, OPTIONS, "--speeds times classifiers; "),
        ({}, "model: {attention", "config.yaml is not the configuration of a run."),
        ({}, "", "config.yaml is not the configuration of a run."),
        ({"image": {}}, OPTIONS, "cannot be used: "),
    ],
)
def test_a_baseline_that_cannot_be_timed_is_refused_before_the_first_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: dict[str, Any], options: str, words: str
) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    finish(tmp_path / "other", **config)
    (tmp_path / "other" / "config.yaml").write_text(options)
    command = ["sweep", "-c", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "out")]
    assert main([*command, "--dry_run", "--speeds", "--baseline", str(tmp_path / "other")]) == 2
    assert words in capsys.readouterr().err


def test_networks_are_timed_with_the_threads_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("eca_hub.sweep.queue.threads_of_job", lambda num_jobs: 10 + num_jobs)
    monkeypatch.setattr(
        "eca_hub.sweep.speeds.measure_speeds", lambda *_, **__: [{"run": "x", "threads": torch.get_num_threads()}]
    )
    before = torch.get_num_threads()
    _write_speeds({"x": tmp_path}, [], tmp_path / "results.csv", num_jobs=2)
    assert [row["threads"] for row in read_table(tmp_path / "results_speeds.csv")] == [12]
    assert torch.get_num_threads() == before


def test_speeds_that_cannot_be_written_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eca_hub.sweep.speeds.measure_speeds", lambda *_, **__: [{"run": "x"}])
    (tmp_path / "results_speeds.csv").mkdir()
    with pytest.raises(InvalidUsage, match=r"results_speeds\.csv cannot be written: "):
        _write_speeds({"x": tmp_path}, [], tmp_path / "results.csv", num_jobs=1)


def test_speeds_of_a_sweep_that_another_machine_has_finished_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    rows = [
        {"run": run.name, "attention": run.point["model.attention"], "config_hash": run.config_hash, "test_top1": 0.5}
        for run in read_sweep(tmp_path / "sweep.yaml")
    ]
    write_table(rows, tmp_path / "results.csv")
    command = ["sweep", "-c", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "out"), "--speeds"]
    assert main([*command, "--results", str(tmp_path / "results.csv")]) == 0
    assert "No network was timed, because no run has a folder here." in capsys.readouterr().err


@pytest.mark.parametrize("text", ["name,age\nA,1\n", "run,epoch\nA,1\n", "run,config_hash\nA,1\n"])
def test_a_file_of_something_else_is_not_replaced(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    (tmp_path / "table.csv").write_text(text)
    command = ["sweep", "-c", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "out")]
    assert main([*command, "--results", str(tmp_path / "table.csv")]) == 2
    assert "table.csv has 1 rows that belong to no finished run of this sweep" in capsys.readouterr().err
    assert (tmp_path / "table.csv").read_text() == text


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_that_is_killed_twice_ends_with_the_results_of_one_that_was_not(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(out: str, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "eca_hub", "sweep", "-c", str(tmp_path / "sweep.yaml"), "--jobs", "2"]
        return subprocess.Popen(
            [*command, "--out", str(tmp_path / out), *options], env=environment, stderr=subprocess.DEVNULL
        )

    assert start("whole").wait(timeout=300) == 0
    for num_finished in (0, 1):
        sweep = start("killed")
        # Killed as soon as a run is in progress and the next has begun to train.
        deadline_s = time.monotonic() + 120
        while time.monotonic() < deadline_s and sweep.poll() is None:
            logs = [path.read_text() for path in (tmp_path / "killed").glob("*.log")]
            if sum("epoch 1/2" in text for text in logs) > num_finished:
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                sweep.wait(timeout=0.1)
        assert sweep.poll() is None
        sweep.send_signal(signal.SIGKILL)
        sweep.wait()
    assert start("killed").wait(timeout=300) == 0
    assert (tmp_path / "killed" / "results.csv").read_bytes() == (tmp_path / "whole" / "results.csv").read_bytes()
    assert len((tmp_path / "whole" / "results.csv").read_text().splitlines()) == 5
    assert start("whole", "--speeds").wait(timeout=120) == 0
    speeds = read_table(tmp_path / "whole" / "results_speeds.csv")
    assert [row["attention"] for row in speeds] == ["none", "eca"]
