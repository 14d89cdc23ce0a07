"""Loggers by YAML: every file of experiments/configs/log logs the metrics of every epoch and the configuration."""

import csv
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.runs import CONFIG, fit

LOG = Path(__file__).parents[2] / "experiments" / "configs" / "log"
METRICS = {"val_top1", "val_loss", "train_top1", "lr", "test_top1"}


def fit_logged(work: Path, name: str) -> None:
    """Train in a process of its own, whose working folder is where loggers write by themselves."""
    (work / "run.yaml").write_text(CONFIG)
    words = ["fit", "-c", "run.yaml", "-c", str(LOG / f"{name}.yaml"), "--run_dir", "run", "--trainer.max_epochs", "2"]
    environment = os.environ | {"PYTHONPATH": str(LOG.parents[1]), "WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, "-m", "eca_hub", *words],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_tensorboard_gets_the_metrics_of_every_epoch(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="pip install 'eca-hub[tensorboard]'"
    )
    assert fit(tmp_path / "run", "-c", str(LOG / "tensorboard.yaml"), "--trainer.max_epochs", "2") == 0
    [folder] = (tmp_path / "run" / "lightning_logs").iterdir()
    events = accumulator.EventAccumulator(str(folder)).Reload()
    assert set(events.Tags()["scalars"]) >= METRICS
    assert [event.step for event in events.Scalars("train_top1")] == [3, 7]


def test_a_csv_logger_writes_to_the_given_folder(tmp_path: Path) -> None:
    logger = ("--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", str(tmp_path / "log"))
    assert fit(tmp_path / "run", *logger, "--trainer.max_epochs", "1") == 0
    [table] = (tmp_path / "log").rglob("metrics.csv")
    with table.open() as file:
        assert set(csv.DictReader(file).fieldnames or ()) >= METRICS
    [settings] = (tmp_path / "log").rglob("hparams.yaml")
    assert "ema_decay: 0.9" in settings.read_text()


@pytest.mark.slow
def test_wandb_gets_the_metrics_and_the_configuration(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="W&B is not installed: pip install wandb")
    fit_logged(tmp_path, "wandb")
    [log] = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    content = log.read_bytes()
    for name in (*METRICS, "ema_decay"):
        assert name.encode() in content


@pytest.mark.slow
def test_mlflow_gets_the_metrics_and_the_configuration(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="MLflow is not installed: pip install mlflow")
    fit_logged(tmp_path, "mlflow")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        metrics = {name for (name,) in database.execute("select distinct key from metrics")}
        settings = dict(database.execute("select key, value from params"))
    assert metrics >= METRICS
    assert settings["model/ema_decay"] == "0.9"
