"""Two processes on one machine, with gloo: what one process learns, what it measures, and how a dead one is told."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

CONFIG = """
model: {architecture: resnet20, train: all_but_norms, optim: {lr: 0.01}}
data:
  class_path: SyntheticData
  init_args: {num_train: 640, num_eval: 101, batch_size: 32, image: {height_px: 16, width_px: 16, crop: 1.0}}
trainer: {max_epochs: 2, accelerator: cpu, strategy: ddp, devices: 2}
"""


def start(run_dir: Path, *options: str) -> subprocess.Popen[str]:
    path = run_dir.with_suffix(".yaml")
    path.write_text(CONFIG)
    command = [sys.executable, "-m", "eca_hub", "fit", "--config", str(path), "--run_dir", str(run_dir), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )


def last_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    newest = max((run_dir / "checkpoints").glob("step-*.ckpt"))
    state: dict[str, torch.Tensor] = torch.load(newest, weights_only=True)["state_dict"]
    return {name: tensor for name, tensor in state.items() if name.startswith("model.")}


def rows_of(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of two processes with batches of 32, and one of a single process with batches of 64."""
    folder = tmp_path_factory.mktemp("pair")
    for name, options in {
        "two": (),
        "one": ("--trainer.devices", "1", "--trainer.strategy", "auto", "--data.batch_size", "64"),
    }.items():
        process = start(folder / name, *options)
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
        assert output.count("test top-1") == 1
    return folder / "two", folder / "one"


def test_two_processes_learn_what_one_learns(pair: tuple[Path, Path]) -> None:
    two, one = map(last_weights, pair)
    assert [row["step"] for row in rows_of(pair[0])] == ["10", "20"]
    assert max(float((two[name] - one[name]).abs().max()) for name in one) <= 1e-5


def test_two_processes_measure_every_picture_once(pair: tuple[Path, Path]) -> None:
    for name in ("val_top1", "val_loss", "val_macro", "train_loss", "train_top1"):
        two, one = ([float(row[name]) for row in rows_of(run)] for run in pair)
        assert two == pytest.approx(one, abs=2e-6)
    results = [json.loads((run / "result.json").read_text()) for run in pair]
    assert [result["num_test_images"] for result in results] == [101, 101]
    assert results[0]["test_top1"] == results[1]["test_top1"]


@pytest.mark.parametrize("who", ["first", "second"])
def test_a_killed_process_ends_the_job_with_a_sentence_and_the_run_can_go_on(who: str, tmp_path: Path) -> None:
    process = start(tmp_path / "run", "--trainer.max_epochs", "30")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            break
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    # The starter has one more child, which keeps track of shared memory.
    [second] = [pid for pid in children if b"eca_hub" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(process.pid if who == "first" else int(second), signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert "Another process of this run is gone" in output
    if who == "second":
        assert process.returncode == 2
    again = start(tmp_path / "run", "--resume", "--allow_changes", "--trainer.max_epochs", "4")
    output, _ = again.communicate(timeout=200)
    assert again.returncode == 0, output
    assert "Going on from step-" in output


def test_two_processes_stop_and_go_on_to_the_same_weights(pair: tuple[Path, Path], tmp_path: Path) -> None:
    process = start(tmp_path / "run")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 1/"):
            break
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    again = start(tmp_path / "run", "--resume")
    output, _ = again.communicate(timeout=200)
    assert again.returncode == 0, output
    packages = [(run / "model" / "model.safetensors").read_bytes() for run in (tmp_path / "run", pair[0])]
    assert packages[0] == packages[1]
