"""Processes of `eca-hub fit` that are stopped or killed: their messages, and the same weights after --resume."""

import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from random import Random

import pytest
import torch

from eca_hub.train.checkpoint.store import CheckpointStore
from tests.train.runs import CONFIG, NUM_BATCHES, checkpoints, fit, weights_hash

SOAK = pytest.mark.soak
ENDLESS = ("--trainer.max_epochs", "3000")


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert fit(run_dir) == 0
    return run_dir


def start(run_dir: Path, *options: str) -> subprocess.Popen[str]:
    """Train in another process, which prints each completed step."""
    run_dir.with_suffix(".yaml").write_text(CONFIG)
    words = ["fit", "-c", f"{run_dir}.yaml", "--run_dir", str(run_dir), *options]
    return subprocess.Popen(
        [sys.executable, "-m", "eca_hub", *words, "--trainer.callbacks", "tests.train.announce.Announce"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # As many threads as the run has that it is compared with: sums of floats may depend on them.
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "ECA_TRAIN_IMPORTS": "tests.train.announce"},
    )


def wait_for(line: str, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert any(each.startswith(line) for each in process.stdout), process.communicate()


@SOAK
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_at_a_random_step_ends_in_the_same_weights(
    num_workers: int, seed: int, whole_run: Path, tmp_path: Path
) -> None:
    run_dir, options = tmp_path / "run", ("--data.num_workers", str(num_workers))
    with start(run_dir, *options) as process:
        wait_for(f"step {Random(seed).randrange(1, 3 * NUM_BATCHES)} is done", process)
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert fit(run_dir, "--resume", *options) == 0
    assert weights_hash(run_dir) == weights_hash(whole_run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "who", "num_workers"),
    [
        (signal.SIGINT, "whole group", 0),
        pytest.param(signal.SIGINT, "whole group", 2, marks=SOAK),
        *(
            pytest.param(signal.SIGTERM, who, num_workers, marks=SOAK)
            for who in ("main process", "whole group")
            for num_workers in (0, 2)
        ),
    ],
)
def test_a_run_that_is_stopped_saves_and_resumes_to_the_same_weights(
    number: signal.Signals, who: str, num_workers: int, whole_run: Path, tmp_path: Path
) -> None:
    run_dir, options = tmp_path / "run", ("--data.num_workers", str(num_workers))
    with start(run_dir, *options) as process:
        wait_for("step 5 is done", process)
        (process.send_signal if who == "main process" else partial(os.killpg, process.pid))(number)
        # Both outputs end when all processes have ended, workers included.
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    [sentence] = [line for line in output.splitlines() if "is done" not in line and not line.startswith("epoch ")]
    assert sentence.startswith("Stopped at step ")
    assert sentence.endswith("; a checkpoint was saved. To continue, give the same command with --resume.")
    assert errors == ""
    assert fit(run_dir, "--resume", *options) == 0
    assert weights_hash(run_dir) == weights_hash(whole_run)


@SOAK
def test_ctrl_c_before_the_first_step_ends_at_once_and_quietly(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with start(tmp_path / "run", "--resume") as process:
        wait_for("No valid checkpoint: starting from the beginning.", process)
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (output, errors) == ("", "")


@SOAK
def test_a_killed_data_worker_ends_the_run_with_a_sentence_and_the_run_can_be_resumed(
    whole_run: Path, tmp_path: Path
) -> None:
    run_dir, options = tmp_path / "run", ("--data.num_workers", "1")
    with start(run_dir, *options, *ENDLESS) as process:
        wait_for(f"step {NUM_BATCHES + 1} is done", process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        # Of the training and of the validation split, in this order.
        worker, _ = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(int(worker), signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    # Torch gets SIGCHLD, or finds the dead worker itself, whichever is first.
    assert re.fullmatch(
        rf"eca-hub fit: A data worker died: process {worker} (is killed by signal: Killed|exited unexpectedly)\. "
        r"The last checkpoint is intact; add --resume to continue from it\.\n",
        errors,
    )
    saved = CheckpointStore(run_dir / "checkpoints").latest_valid()
    assert saved is not None
    assert saved.path == checkpoints(run_dir)[-1]
    assert fit(run_dir, "--resume", "--allow_changes", *options) == 0
