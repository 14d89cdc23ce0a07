"""The queue of a sweep, with runs that end when the test says so."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from eca_hub.errors import InvalidConfig
from eca_hub.hub.detector_format import detector_to_dict
from eca_hub.models.detector_config import DetectorConfig
from eca_hub.sweep.grid import SweepRun
from eca_hub.sweep.queue import SweepState, run_sweep
from eca_hub.sweep.results import read_table, table_beside

CONFIG = {
    "format": 1,
    "library_name": "eca-hub",
    "architecture": "resnet20",
    "attention": "eca",
    "attention_args": {"kernel_sizes": [3, 3, 3]},
    "stem": "default",
    "image": {
        "height_px": 16,
        "width_px": 16,
        "crop": 1.0,
        "crop_mode": "center",
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    },
    "num_classes": 2,
    "label_names": ["cat", "dog"],
}


DETECTOR = DetectorConfig("faster_rcnn", "resnet18", labels=("cat", "dog"))


def finish(run_dir: Path, top1: float) -> None:
    (run_dir / "model").mkdir(parents=True)
    (run_dir / "model" / "config.json").write_text(json.dumps(CONFIG))
    (run_dir / "metrics.csv").write_text("epoch,val_top1\n0,0.25\n1,0.5\n")
    (run_dir / "classes.csv").write_text("label,num_images,recall\n007,4,0.5\n")
    (run_dir / "environment.json").write_text(json.dumps({"device": "CPU", "git": {"commit": "abc"}}))
    (run_dir / "result.json").write_text(json.dumps({"test_top1": top1, "fit_s": 1.5}))


def runs_of(num: int) -> list[SweepRun]:
    return [SweepRun(f"run{i}", f"hash{i}", "shared", {"model.attention": f"a{i}"}, ()) for i in range(num)]


class FakeJob:
    def __init__(self, launcher: "FakeLauncher", run: SweepRun, run_dir: Path) -> None:
        self.launcher, self.run, self.run_dir, self.stopped = launcher, run, run_dir, False

    def poll(self) -> int | None:
        if self.stopped:
            return 143
        code = self.launcher.codes.get(self.run.name)
        if code == 0 and not self.run_dir.exists():
            finish(self.run_dir, 0.5)
        return code

    def stop(self) -> None:
        self.stopped = True


class FakeLauncher:
    """Each wait of the queue ends one run, in the order of their start."""

    def __init__(self, codes: dict[str, int] | None = None, num_jobs: int = 2) -> None:
        self.num_jobs = num_jobs
        self.outcome = codes or {}
        self.codes: dict[str, int] = {}
        self.started: list[str] = []
        self.jobs: list[FakeJob] = []

    def start(self, run: SweepRun, run_dir: Path) -> FakeJob:
        self.started.append(run.name)
        (run_dir.parent / f"{run.name}.log").write_text(f"the last words of {run.name}\n\n")
        self.jobs.append(FakeJob(self, run, run_dir))
        return self.jobs[-1]

    def wait(self, seconds: float) -> None:
        name = next(name for name in self.started if name not in self.codes)
        self.codes[name] = self.outcome.get(name, 0)


def sweep(launcher: FakeLauncher, out: Path, num_runs: int = 4, **options: Any) -> SweepState:
    return run_sweep(
        runs_of(num_runs),
        out,
        out / "results.csv",
        launcher=launcher,
        report=options.pop("report", lambda state: None),
        wait=options.pop("wait", launcher.wait),
    )


def test_all_runs_finish_and_are_in_the_results_in_the_order_of_the_grid(tmp_path: Path) -> None:
    seen: list[int] = []
    launcher = FakeLauncher()
    state = sweep(launcher, tmp_path, report=lambda state: seen.append(len(state.running)))
    assert (state.num_done, state.failed) == (4, {})
    assert max(seen) == 2
    rows = read_table(tmp_path / "results.csv")
    assert [row["run"] for row in rows] == ["run0", "run1", "run2", "run3"]
    measured = {"test_top1": 0.5, "parameters": rows[0]["parameters"], "multiply_adds": rows[0]["multiply_adds"]}
    expected = {
        "attention": "a0",
        "config_hash": "hash0",
        "training_hash": "shared",
        **measured,
        "hardware": "CPU",
        "commit": "abc",
    }
    assert rows[0] == {"run": "run0", **expected}
    assert rows[0]["parameters"] > 270_000
    curves = read_table(table_beside(tmp_path / "results.csv", "curves"))
    assert [row["val_top1"] for row in curves[:2]] == [0.25, 0.5]
    classes = read_table(table_beside(tmp_path / "results.csv", "classes"))
    assert (len(classes), classes[0]["label"], classes[0]["recall"]) == (4, "007", 0.5)
    assert read_table(table_beside(tmp_path / "results.csv", "costs"))[0]["fit_s"] == 1.5


def test_runs_of_detectors_are_collected_without_multiply_adds(tmp_path: Path) -> None:
    finish(tmp_path / "run0", 0.5)
    config = {"format": 1, "library_name": "eca-hub", **detector_to_dict(DETECTOR)}
    (tmp_path / "run0" / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "run0" / "metrics.csv").write_text("epoch,train_loss,lr,val_AP\n0,2.0,0.1,0.25\n")
    (tmp_path / "run0" / "classes.csv").write_text("label,num_objects,AP,AP50\ncat,4,0.5,0.75\n")
    (tmp_path / "run0" / "result.json").write_text(json.dumps({"test_AP": 0.5, "fit_s": 1.5}))
    sweep(FakeLauncher(), tmp_path, num_runs=1)
    [row] = read_table(tmp_path / "results.csv")
    assert row["test_AP"] == 0.5
    assert row["parameters"] > 11_000_000
    assert "multiply_adds" not in row
    [epoch] = read_table(table_beside(tmp_path / "results.csv", "curves"))
    assert epoch == {"run": "run0", "epoch": 0, "train_loss": 2.0, "val_AP": 0.25}
    [label] = read_table(table_beside(tmp_path / "results.csv", "classes"))
    assert label == {"run": "run0", "label": "cat", "AP": 0.5}


def test_a_run_with_labels_that_are_not_ascii_is_collected_in_every_locale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(tmp_path / "run0", 0.5)
    config = json.dumps({**CONFIG, "label_names": ["Käfer", "dog"]}, ensure_ascii=False)
    (tmp_path / "run0" / "model" / "config.json").write_text(config, encoding="utf-8")
    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, encoding=None: real(self, encoding or "ascii"))
    assert sweep(FakeLauncher(), tmp_path, num_runs=1).num_done == 1


def test_a_finished_run_is_never_repeated(tmp_path: Path) -> None:
    finish(tmp_path / "run1", 0.25)
    launcher = FakeLauncher()
    assert sweep(launcher, tmp_path).num_done == 4
    assert launcher.started == ["run0", "run2", "run3"]
    assert [row["test_top1"] for row in read_table(tmp_path / "results.csv")] == [0.5, 0.25, 0.5, 0.5]


def test_a_run_of_the_results_file_is_not_repeated_where_its_folder_is_missing(tmp_path: Path) -> None:
    finish(tmp_path / "run1", 0.25)
    sweep(FakeLauncher(), tmp_path)
    tables = [
        tmp_path / "results.csv",
        *(table_beside(tmp_path / "results.csv", n) for n in ("curves", "classes", "costs")),
    ]
    written = [table.read_bytes() for table in tables]
    for run in ("run0", "run1", "run3"):
        shutil.rmtree(tmp_path / run)
    launcher = FakeLauncher()
    assert sweep(launcher, tmp_path, num_runs=5).num_done == 5
    assert launcher.started == ["run4"]
    shutil.rmtree(tmp_path / "run4")
    (tmp_path / "elsewhere").mkdir()
    for table in tables:
        lines = [line for line in table.read_text().splitlines(keepends=True) if not line.startswith("run4")]
        (tmp_path / "elsewhere" / table.name).write_text("".join(lines))
    assert sweep(FakeLauncher(), tmp_path / "elsewhere").num_done == 4
    assert [(tmp_path / "elsewhere" / table.name).read_bytes() for table in tables] == written


def test_rows_of_other_runs_are_not_overwritten(tmp_path: Path) -> None:
    sweep(FakeLauncher(), tmp_path)
    shutil.rmtree(tmp_path / "run3")
    with pytest.raises(InvalidConfig, match=r"has 1 rows that belong to no finished run of this sweep.*'run3'"):
        sweep(FakeLauncher(), tmp_path, num_runs=3)
    assert len(read_table(tmp_path / "results.csv")) == 4


def test_a_failed_run_is_named_with_its_last_line_and_the_others_go_on(tmp_path: Path) -> None:
    state = sweep(FakeLauncher({"run2": 1}), tmp_path)
    assert state.failed == {"run2": "the last words of run2"}
    assert state.num_done == 3
    assert [row["run"] for row in read_table(tmp_path / "results.csv")] == ["run0", "run1", "run3"]


def test_when_the_first_run_fails_no_other_is_started(tmp_path: Path) -> None:
    launcher = FakeLauncher({"run0": 2}, num_jobs=1)
    state = sweep(launcher, tmp_path)
    assert launcher.started == ["run0"]
    assert list(state.failed) == ["run0"]


def test_an_interrupted_sweep_stops_its_runs_and_keeps_the_results(tmp_path: Path) -> None:
    launcher = FakeLauncher()
    num_waits = 0

    def wait(seconds: float) -> None:
        nonlocal num_waits
        num_waits += 1
        if num_waits == 2:
            raise KeyboardInterrupt
        launcher.wait(seconds)

    with pytest.raises(KeyboardInterrupt):
        sweep(launcher, tmp_path, wait=wait)
    assert [job.stopped for job in launcher.jobs] == [False, True, True]
    assert [row["run"] for row in read_table(tmp_path / "results.csv")] == ["run0"]


def test_where_the_results_cannot_be_written_the_runs_are_stopped(tmp_path: Path) -> None:
    launcher = FakeLauncher()

    def wait(seconds: float) -> None:
        if not (tmp_path / "results.csv").is_dir():
            (tmp_path / "results.csv").unlink(missing_ok=True)
            (tmp_path / "results.csv").mkdir()
        launcher.wait(seconds)

    with pytest.raises(InvalidConfig, match=r"results\.csv cannot be written: "):
        sweep(launcher, tmp_path, wait=wait)
    assert [job.stopped for job in launcher.jobs] == [False, True]


@pytest.mark.parametrize("name", ["curves", "classes", "costs"])
@pytest.mark.parametrize("run", ["other", "run2"])
def test_a_table_beside_the_results_is_not_overwritten_when_only_the_results_were_moved(
    tmp_path: Path, name: str, run: str
) -> None:
    beside = table_beside(tmp_path / "results.csv", name)
    beside.write_text(f"run\n{run}\n")
    with pytest.raises(
        InvalidConfig, match=rf"results_{name}\.csv has 1 rows.*move results\.csv together with .*_\*\.csv"
    ):
        sweep(FakeLauncher(), tmp_path)
    assert beside.read_text() == f"run\n{run}\n"


def test_tables_of_an_earlier_sweep_in_the_same_folder_do_not_stay_beside_the_results(tmp_path: Path) -> None:
    finish(tmp_path / "other", 0.5)
    stale = table_beside(tmp_path / "results.csv", "classes")
    stale.write_text("run,label,recall\nother,cat,0.5\n")
    sweep(FakeLauncher(codes={"run0": 1}), tmp_path, num_runs=1)
    assert not stale.exists()


def test_what_another_machine_has_recorded_is_written_again_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    text = "run,label,config_hash,training_hash,note,test_top1\nrun0,a0,hash0,shared,1_0,0.50\n"
    for recorded in (text, text.replace(",training_hash", "").replace(",shared", "")):  # older tables lack the column
        path.write_text(recorded)
        sweep(FakeLauncher(), tmp_path, num_runs=1)
        assert path.read_text() == text


def test_the_time_left_is_the_mean_duration_of_what_is_left(tmp_path: Path) -> None:
    state = SweepState(num_runs=10, num_done=4, failed={"x": ""}, run_seconds=[10.0, 20.0])
    assert state.left_s(2) == 5 * 15 / 2
    assert SweepState(num_runs=3).left_s(1) is None
