"""A run that was stopped, killed or damaged resumes to bit-identical weights, or is refused with the reason."""

import contextlib
import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Trainer

from eca_hub.errors import InvalidConfig
from eca_hub.train.callbacks.checkpointing import ResumableCheckpoint
from eca_hub.train.checkpoint.store import CheckpointStore, VerifiedCheckpointIO
from eca_hub.train.optim import OptimConfig, lr_factor
from eca_hub.train.run_folder import open_run_folder
from tests.train.datasets import write_folder
from tests.train.runs import CONFIG, NUM_BATCHES, checkpoints, fit, stop_at, weights_hash

STOPS = {
    "at the last batch of an epoch": ("on_train_batch_end", 2 * NUM_BATCHES),
    "during validation": ("on_validation_batch_end", 5),
    "in the first step": ("on_train_batch_end", 1),
    "between validation and the next epoch": ("on_train_epoch_end", 1),
    "at the very end": ("on_train_epoch_end", 3),
    "at the last step": ("on_train_batch_end", 3 * NUM_BATCHES),
    "during the last validation": ("on_validation_batch_end", 8),
}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert fit(run_dir) == 0
    return run_dir


def test_a_run_stopped_by_sigterm_inside_an_epoch_ends_in_the_same_weights(stopped_run: Path, whole_run: Path) -> None:
    assert not (stopped_run / "model").exists()
    assert fit(stopped_run, "--resume") == 0
    assert weights_hash(stopped_run) == weights_hash(whole_run)
    assert numbers_of(stopped_run / "metrics.csv") == numbers_of(whole_run / "metrics.csv")


@pytest.mark.soak
@pytest.mark.parametrize("moment", STOPS)
def test_a_run_stopped_by_sigterm_ends_in_the_same_weights(
    moment: str, whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, *STOPS[moment])
        assert fit(tmp_path / "run") == 143
    assert "To continue, give the same command with --resume." in capsys.readouterr().out
    assert not (tmp_path / "run" / "model").exists()
    assert fit(tmp_path / "run", "--resume") == 0
    assert weights_hash(tmp_path / "run") == weights_hash(whole_run)
    rows, expected = (numbers_of(run / "metrics.csv") for run in (tmp_path / "run", whole_run))
    assert rows == expected


def numbers_of(metrics_csv: Path) -> list[dict[str, str]]:
    with metrics_csv.open() as file:
        return [
            {name: value for name, value in row.items() if name not in ("images_per_s", "epoch_s")}
            for row in csv.DictReader(file)
        ]


@pytest.fixture(scope="module")
def one_stopped_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in its second epoch, with two checkpoints."""
    run_dir = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, "on_train_batch_end", NUM_BATCHES + 3)
        with contextlib.redirect_stdout(io.StringIO()) as output:
            assert fit(run_dir) == 143
    assert "To continue, give the same command with --resume." in output.getvalue()
    assert len(checkpoints(run_dir)) == 2
    return run_dir


@pytest.fixture
def stopped_run(one_stopped_run: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    shutil.copytree(one_stopped_run, tmp_path / "run")
    return tmp_path / "run"


SOAK = pytest.mark.soak


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param("cut", marks=pytest.mark.slow),
        *(pytest.param(damage, marks=SOAK) for damage in ("flipped", "empty", "without its hash")),
    ],
)
def test_a_damaged_checkpoint_is_skipped(
    damage: str, stopped_run: Path, whole_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older, newest = checkpoints(stopped_run)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "without its hash":
        newest.with_name(newest.name + ".sha256.json").unlink()
    else:
        newest.write_bytes(bytes({"cut": content[:-100], "flipped": content, "empty": bytearray()}[damage]))
    assert fit(stopped_run, "--resume") == 0
    output = capsys.readouterr().out
    assert f"{newest}" in output
    assert "Trying the checkpoint before it." in output
    assert f"Resuming from {older.name}" in output
    assert weights_hash(stopped_run) == weights_hash(whole_run)


@SOAK
def test_with_every_checkpoint_damaged_training_starts_from_the_beginning(
    stopped_run: Path, whole_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in checkpoints(stopped_run):
        path.write_bytes(b"")
    assert fit(stopped_run, "--resume") == 0
    assert "No valid checkpoint: starting from the beginning." in capsys.readouterr().out
    assert weights_hash(stopped_run) == weights_hash(whole_run)


def test_leftovers_of_a_crash_are_never_used_and_are_removed(stopped_run: Path) -> None:
    folder = CheckpointStore(stopped_run / "checkpoints")
    newest = checkpoints(stopped_run)[-1]
    part = newest.with_name(".step-000000099-epoch-00009-batch-0000001.ckpt.0123456789ab.tmp")
    part.write_bytes(newest.read_bytes())
    lonely = newest.with_name("step-000000099-epoch-00009-batch-0000001.ckpt.sha256.json")
    lonely.write_text("{}")
    latest = folder.latest_valid()
    assert latest is not None
    assert latest.path == newest
    folder.prune(None)
    assert not part.exists()
    assert not lonely.exists()


def test_the_order_is_by_step_and_not_by_time(stopped_run: Path) -> None:
    older, newest = checkpoints(stopped_run)
    os.utime(newest, (0, 0))
    os.utime(older, (4e9, 4e9))
    latest = CheckpointStore(stopped_run / "checkpoints").latest_valid()
    assert latest is not None
    assert latest.path == newest


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (("--data.batch_size", "4"), "data.batch_size was 8 and is 4"),
        pytest.param(("--data.num_train", "40"), "data set was", marks=pytest.mark.slow),
        pytest.param(("--model.optim.lr", "0.01"), "model.optim.lr was 0.05 and is 0.01", marks=SOAK),
        pytest.param(("--seed_everything", "1"), "seed_everything was 0 and is 1", marks=SOAK),
        pytest.param(("--trainer.max_epochs", "5"), "trainer.max_epochs was 3 and is 5", marks=SOAK),
    ],
)
def test_a_run_with_other_settings_or_data_is_not_resumed(
    option: tuple[str, ...], sentence: str, stopped_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [path.read_bytes() for path in checkpoints(stopped_run)]
    assert fit(stopped_run, "--resume", *option) == 2
    output = capsys.readouterr().err
    assert sentence in output
    assert "--allow_changes" in output
    assert [path.read_bytes() for path in checkpoints(stopped_run)] == before


@pytest.mark.slow
def test_allowed_changes_resume_from_the_start_of_the_epoch(stopped_run: Path) -> None:
    options = ("--resume", "--allow_changes", "--data.batch_size", "4", "--trainer.max_epochs", "2")
    assert fit(stopped_run, *options) == 0
    # Seven steps of the first run, and one epoch of nine batches.
    assert [int(row["step"]) for row in numbers_of(stopped_run / "metrics.csv")] == [4, 16]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "batch_size", "steps_per_epoch"),
    [(("--data.batch_size", "18"), 18, 2), (("--model.label_smoothing", "0.2"), 8, 4)],
    ids=["another batch size", "as many steps"],
)
def test_after_a_change_the_schedule_continues_at_the_start_of_the_epoch_that_is_repeated(
    change: tuple[str, str],
    batch_size: int,
    steps_per_epoch: int,
    stopped_run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, "on_train_batch_end", steps_per_epoch + 1)
        assert fit(stopped_run, "--resume", "--allow_changes", *change) == 143
    note = "The schedule of the learning rate continues at the start of epoch 2.\n"
    assert note in capsys.readouterr().out
    assert fit(stopped_run, "--resume", *change) == 0
    output = capsys.readouterr().out
    assert "epoch 3/3" in output
    assert note not in output
    schedule = lr_factor(
        OptimConfig(lr=0.05, warmup_epochs=1), num_steps=3 * steps_per_epoch, steps_per_epoch=steps_per_epoch
    )
    rates = [float(row["lr"]) for row in numbers_of(stopped_run / "metrics.csv")]
    last_steps = (2 * steps_per_epoch - 1, 3 * steps_per_epoch - 1)
    assert rates[1:] == pytest.approx([0.05 * schedule(step) for step in last_steps])
    result = json.loads((stopped_run / "result.json").read_text())
    num_images = 7 * 8 + 2 * steps_per_epoch * batch_size
    assert result["images_per_s"] * result["fit_s"] == pytest.approx(num_images, rel=0.05)


@pytest.mark.slow
def test_a_run_of_an_older_version_that_did_not_count_images_has_no_speed(
    stopped_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for checksum in (stopped_run / "checkpoints").glob("step-*.sha256.json"):
        facts = json.loads(checksum.read_text())
        del facts["num_images"]
        checksum.write_text(json.dumps(facts))
    assert fit(stopped_run, "--resume") == 0
    assert "images/s, peak memory" not in capsys.readouterr().out
    assert json.loads((stopped_run / "result.json").read_text())["images_per_s"] is None


def test_an_unfinished_run_is_not_replaced_by_mistake(stopped_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = checkpoints(stopped_run)
    assert fit(stopped_run) == 2
    assert "holds an unfinished run. Add --resume to continue it" in capsys.readouterr().err
    assert checkpoints(stopped_run) == before


def test_a_folder_without_a_run_keeps_the_tables_that_a_user_has_in_it(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text("mine")
    open_run_folder(tmp_path, resume=False, overwrite=False).begin()
    assert (tmp_path / "classes.csv").read_text() == "mine"


@pytest.mark.parametrize("name", ["metrics.csv", "result.json"])
def test_results_whose_checkpoints_were_removed_are_not_replaced_by_mistake(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("old")
    with pytest.raises(InvalidConfig, match="the results of a run without its checkpoints"):
        open_run_folder(tmp_path, resume=False, overwrite=False)
    assert (tmp_path / name).read_text() == "old"
    open_run_folder(tmp_path, resume=True, overwrite=False).begin()
    assert not (tmp_path / name).exists()


def test_an_overwritten_run_leaves_no_result_of_the_old_one(tmp_path: Path) -> None:
    results = ("classes.csv", "confusion.png", "curves.png", "predictions.csv", "detections.json", "result.json")
    for name in (*results, "notes.txt"):
        (tmp_path / name).write_text("old")
    open_run_folder(tmp_path, resume=False, overwrite=True).begin()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["notes.txt"]


@pytest.mark.slow
def test_an_unfinished_run_is_replaced_on_request(stopped_run: Path) -> None:
    assert fit(stopped_run, "--overwrite", "--trainer.max_epochs", "1") == 0
    assert [row["epoch"] for row in numbers_of(stopped_run / "metrics.csv")] == ["0"]


def test_a_finished_run_has_nothing_to_resume(whole_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(whole_run, "--resume") == 2
    assert "holds a finished run" in capsys.readouterr().err


def test_a_finished_run_without_a_valid_checkpoint_is_not_asked_for_more_epochs(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(
        InvalidConfig, match=r"finished run without a valid checkpoint\. Give another --run_dir and --model.from"
    ):
        open_run_folder(tmp_path, resume=True, overwrite=False, max_epochs=9)


def test_two_processes_do_not_train_into_one_folder(tmp_path: Path) -> None:
    hold = (
        "import sys; from pathlib import Path; from eca_hub.train.run_folder import open_run_folder; "
        "open_run_folder(Path(sys.argv[1]), resume=False, overwrite=False).begin(); "
        "print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(InvalidConfig, match="Another process trains into"):
            open_run_folder(tmp_path, resume=True, overwrite=False).begin()
        other.kill()
    open_run_folder(tmp_path, resume=False, overwrite=False).begin()


def test_the_best_weights_are_those_of_the_best_epoch(whole_run: Path) -> None:
    result = json.loads((whole_run / "result.json").read_text())
    top1 = [float(row["val_top1"]) for row in numbers_of(whole_run / "metrics.csv")]
    assert result["val_top1"] == pytest.approx(max(top1), abs=1e-6)
    assert result["best_epoch"] == max(range(3), key=lambda epoch: (top1[epoch], epoch)) + 1


@SOAK
def test_two_workers_train_to_the_weights_of_none(whole_run: Path, tmp_path: Path) -> None:
    assert fit(tmp_path / "run", "--data.num_workers", "2") == 0
    assert weights_hash(tmp_path / "run") == weights_hash(whole_run)


@pytest.fixture(scope="module")
def run_of_so_many_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended inside its second epoch, because that was all it was to do."""
    run_dir = tmp_path_factory.mktemp("steps") / "run"
    assert fit(run_dir, *SO_MANY_STEPS) == 0
    return run_dir


SO_MANY_STEPS = ("--trainer.max_steps", str(NUM_BATCHES + 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hook", "number"),
    [
        ("on_train_batch_end", NUM_BATCHES + 2),
        *(
            pytest.param(*hook, marks=SOAK)
            for hook in (
                ("on_train_batch_end", NUM_BATCHES + 1),
                ("on_validation_batch_end", 4),
                ("on_validation_batch_end", 6),
                ("on_train_epoch_end", 2),
            )
        ),
    ],
)
def test_a_run_stopped_after_its_last_step_still_validates_it(
    hook: str, number: int, run_of_so_many_steps: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, hook, number)
        assert fit(tmp_path / "run", *SO_MANY_STEPS) == 143
    assert fit(tmp_path / "run", *SO_MANY_STEPS, "--resume") == 0
    assert weights_hash(tmp_path / "run") == weights_hash(run_of_so_many_steps)
    rows, expected = (numbers_of(run / "metrics.csv") for run in (tmp_path / "run", run_of_so_many_steps))
    assert rows == expected
    results = [json.loads((run / "result.json").read_text()) for run in (tmp_path / "run", run_of_so_many_steps)]
    for name in ("best_epoch", "epochs", "steps", "test_loss", "test_top1", "val_top1", "val_top5"):
        assert results[0][name] == results[1][name]


@SOAK
def test_a_run_that_is_stopped_while_it_validates_between_accumulated_batches_goes_on_to_the_next_step(
    tmp_path: Path,
) -> None:
    config = CONFIG.replace("max_epochs: 3", "max_epochs: 2, accumulate_grad_batches: 3, val_check_interval: 1")
    assert fit(tmp_path / "whole", config=config) == 0
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, "on_validation_batch_end", 1)
        assert fit(tmp_path / "run", config=config) == 143
    assert checkpoints(tmp_path / "run")[-1].name == "step-000000001-epoch-00000-batch-0000003.ckpt"
    assert fit(tmp_path / "run", "--resume", config=config) == 0
    assert weights_hash(tmp_path / "run") == weights_hash(tmp_path / "whole")


STOPPING = "{class_path: EarlyStopping, init_args: {monitor: val_loss, min_delta: 9, patience: 2}}"
EARLY = CONFIG.replace("max_epochs: 3", f"max_epochs: 6, callbacks: [{STOPPING}]")
"""The loss never falls by so much, so that the run ends after three epochs."""


@pytest.fixture(scope="module")
def run_that_stops_early(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that EarlyStopping ends."""
    run_dir = tmp_path_factory.mktemp("early") / "run"
    assert fit(run_dir, config=EARLY) == 0
    assert len(numbers_of(run_dir / "metrics.csv")) == 3
    return run_dir


@pytest.mark.slow
@pytest.mark.parametrize("num_epochs", [2, 3])
def test_a_run_that_is_interrupted_stops_as_early_as_one_that_is_not(
    num_epochs: int, run_that_stops_early: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, "on_train_epoch_end", num_epochs)
        assert fit(tmp_path / "run", config=EARLY) == 143
    assert fit(tmp_path / "run", "--resume", config=EARLY) == 0
    assert numbers_of(tmp_path / "run" / "metrics.csv") == numbers_of(run_that_stops_early / "metrics.csv")
    assert weights_hash(tmp_path / "run") == weights_hash(run_that_stops_early)


@pytest.mark.slow
def test_a_stop_inside_an_epoch_is_remembered_until_its_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ResumableCheckpoint.on_train_batch_end

    def stop_early(self: ResumableCheckpoint, trainer: Trainer, *args: Any) -> None:
        trainer.should_stop |= trainer.global_step == NUM_BATCHES + 2
        real(self, trainer, *args)

    monkeypatch.setattr(ResumableCheckpoint, "on_train_batch_end", stop_early)
    assert fit(tmp_path / "whole") == 0
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, "on_train_batch_end", NUM_BATCHES + 2)
        assert fit(tmp_path / "run") == 143
    assert fit(tmp_path / "run", "--resume") == 0
    rows, expected = (numbers_of(tmp_path / name / "metrics.csv") for name in ("run", "whole"))
    assert rows == expected
    assert [row["step"] for row in rows] == ["4", "6"]
    assert weights_hash(tmp_path / "run") == weights_hash(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_that_stopped_early_is_finished_until_it_is_given_other_limits(
    run_that_stops_early: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(run_that_stops_early, run_dir)
    assert fit(run_dir, "--resume", config=EARLY) == 2
    assert "holds a finished run" in capsys.readouterr().err
    assert fit(run_dir, "--resume", "--trainer.max_epochs", "7", config=EARLY) == 0
    assert len(numbers_of(run_dir / "metrics.csv")) == 4


@pytest.fixture
def one_second_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock for Timer that ticks once after every training batch."""
    real, now_s = ResumableCheckpoint.on_train_batch_end, 0.0

    def tick(self: ResumableCheckpoint, *args: Any, **options: Any) -> None:
        nonlocal now_s
        now_s += 1
        real(self, *args, **options)

    monkeypatch.setattr(ResumableCheckpoint, "on_train_batch_end", tick)
    monkeypatch.setattr("lightning.pytorch.callbacks.timer.time", SimpleNamespace(monotonic=lambda: now_s))


SHORT = ("--trainer.max_time", f"00:00:00:{NUM_BATCHES + 1:02}")
"""Reached at the second batch of the second epoch."""


@pytest.mark.slow
@pytest.mark.usefixtures("one_second_per_batch")
def test_a_run_that_a_time_limit_has_ended_is_trained_longer_with_a_larger_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    assert fit(run_dir, *SHORT) == 0
    before = numbers_of(run_dir / "metrics.csv")
    assert [row["step"] for row in before] == ["4", "6"]
    assert fit(run_dir, *SHORT, "--resume") == 0
    assert "The time limit is reached: give a larger one, such as --trainer.max_time" in capsys.readouterr().out
    assert numbers_of(run_dir / "metrics.csv") == before
    assert fit(run_dir, "--trainer.max_time", "00:01:00:00", "--resume") == 0
    assert [row["step"] for row in numbers_of(run_dir / "metrics.csv")] == ["4", "6", "10"]


@pytest.mark.slow
@pytest.mark.usefixtures("one_second_per_batch")
def test_a_run_that_is_interrupted_at_its_time_limit_still_validates(tmp_path: Path) -> None:
    assert fit(tmp_path / "whole", *SHORT) == 0
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, "on_train_batch_end", NUM_BATCHES + 2)
        assert fit(tmp_path / "run", *SHORT) == 143
    assert fit(tmp_path / "run", *SHORT, "--resume") == 0
    assert numbers_of(tmp_path / "run" / "metrics.csv") == numbers_of(tmp_path / "whole" / "metrics.csv")
    assert weights_hash(tmp_path / "run") == weights_hash(tmp_path / "whole")


@SOAK
def test_accumulated_batches_resume_between_steps(tmp_path: Path) -> None:
    config = CONFIG.replace("max_epochs: 3", "max_epochs: 2, accumulate_grad_batches: 3")
    assert fit(tmp_path / "whole", config=config) == 0
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, "on_train_batch_end", 2)
        assert fit(tmp_path / "run", config=config) == 143
    assert checkpoints(tmp_path / "run")[-1].name == "step-000000001-epoch-00000-batch-0000003.ckpt"
    assert fit(tmp_path / "run", "--resume", config=config) == 0
    assert weights_hash(tmp_path / "run") == weights_hash(tmp_path / "whole")


@pytest.mark.slow
def test_a_finished_run_is_trained_longer(whole_run: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(whole_run, run_dir)
    before = weights_hash(run_dir)
    assert fit(run_dir, "--resume", "--trainer.max_epochs", "4") == 0
    assert [row["epoch"] for row in numbers_of(run_dir / "metrics.csv")] == ["0", "1", "2", "3"]
    assert json.loads((run_dir / "result.json").read_text())["epochs"] == 4
    assert weights_hash(run_dir) != before
    assert fit(run_dir, "--resume", "--trainer.max_epochs", "4") == 2


def test_fewer_steps_than_a_run_has_made_are_refused(stopped_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(stopped_run, "--resume", "--allow_changes", "--trainer.max_steps", "3") == 2
    assert "The run has made 7 steps; --trainer.max_steps is 3. Give 7 or more" in capsys.readouterr().err


CHANGES = {
    "optimizer": (
        ("--model.optim.name", "adamw"),
        "The optimizer starts with an empty state, because it was SGD and is AdamW.",
    ),
    "no average": (("--model.ema_decay", "0"), ""),
    "attention": (("--model.attention", "se"), "New weights, which the checkpoint does not have: "),
    "hyperparameters": (("--model.optim.weight_decay", "0.5", "--model.optim.momentum", "0.1"), ""),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", ["attention", *(pytest.param(name, marks=SOAK) for name in CHANGES if name != "attention")]
)
def test_a_changed_run_keeps_what_fits_and_names_what_does_not(
    change: str, stopped_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, note = CHANGES[change]
    assert fit(stopped_run, "--resume", "--allow_changes", *options) == 0
    assert note in capsys.readouterr().out
    assert [row["epoch"] for row in numbers_of(stopped_run / "metrics.csv")] == ["0", "1", "2"]
    if change == "hyperparameters":
        checkpoint = VerifiedCheckpointIO().load_checkpoint(checkpoints(stopped_run)[-1])
        groups = checkpoint["optimizer_states"][0]["param_groups"]
        assert {group["weight_decay"] for group in groups} == {0.0, 0.5}
        assert {group["momentum"] for group in groups} == {0.1}


@SOAK
def test_an_average_that_is_turned_on_starts_from_the_weights(tmp_path: Path) -> None:
    config = CONFIG.replace("ema_decay: 0.9", "ema_decay: 0")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, "on_train_batch_end", NUM_BATCHES + 3)
        assert fit(tmp_path / "run", config=config) == 143
    assert fit(tmp_path / "run", "--resume", "--allow_changes", "--model.ema_decay", "0.9", config=config) == 0


@SOAK
def test_the_checkpoint_of_another_architecture_is_refused(
    stopped_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(stopped_run, "--resume", "--allow_changes", "--model.architecture", "resnet56") == 2
    assert "The checkpoint is of another network" in capsys.readouterr().err


@SOAK
def test_more_classes_get_a_new_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = "model: {architecture: resnet20, ema_decay: 0.9}\ntrainer: {max_epochs: 2, accelerator: cpu, devices: 1}\n"
    root = write_folder(tmp_path / "set", num_each=8)
    image = ("--data.image.height_px", "8", "--data.image.width_px", "8")
    options = ("--data", "ImageFolderData", "--data.root", str(root), "--data.batch_size", "4", *image)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, "on_train_epoch_end", 1)
        assert fit(tmp_path / "run", *options, config=small) == 143
    for split in ("train", "val", "test"):
        shutil.copytree(root / split / "light", root / split / "new")
    assert fit(tmp_path / "run", *options, "--resume", "--allow_changes", config=small) == 0
    assert "New weights, which the checkpoint does not have: fc.bias, fc.weight." in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["num_classes"] == 3


@SOAK
@pytest.mark.filterwarnings("ignore:.*which this processor has no instructions for")
@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_an_average_and_a_teacher_work_in_every_precision(precision: str, whole_run: Path, tmp_path: Path) -> None:
    options = ("--trainer.precision", precision, "--trainer.max_epochs", "1", "--model.distill_from", str(whole_run))
    assert fit(tmp_path / "run", *options) == 0
