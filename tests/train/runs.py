"""Small runs of `eca-hub fit` for tests: everything random is on, and a run takes a second or two."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from eca_hub.__main__ import main

CONFIG = """
model:
  architecture: resnet20
  ema_decay: 0.9
  drop_rate: 0.2
  label_smoothing: 0.1
  mix: {mixup_alpha: 0.2, cutmix_alpha: 1.0}
  optim: {lr: 0.05, warmup_epochs: 1}
data:
  class_path: SyntheticData
  init_args:
    num_train: 36
    num_eval: 20
    batch_size: 8
    image: {height_px: 8, width_px: 8, crop: 1.0}
    augment: {randaugment_num_ops: 2, random_erasing: 0.2}
save: {every_steps: 2}
trainer: {max_epochs: 3, accelerator: cpu, devices: 1}
"""
NUM_BATCHES = 4
"""Of an epoch of that run."""


def fit(run_dir: Path, *options: str, config: str = CONFIG) -> int:
    """Train in this process; return the exit code."""
    path = run_dir.with_suffix(".yaml")
    path.write_text(config)
    try:
        return main(["fit", "--config", str(path), "--run_dir", str(run_dir), *options])
    except SystemExit as exit_:
        return int(exit_.code or 0)


def weights_hash(run_dir: Path) -> str:
    """Hash the published weights."""
    return hashlib.sha256((run_dir / "model" / "model.safetensors").read_bytes()).hexdigest()


def checkpoints(run_dir: Path) -> Sequence[Path]:
    """The checkpoints of a run, the oldest first."""
    return sorted((run_dir / "checkpoints").glob("step-*.ckpt"))


def stop_at(monkeypatch: pytest.MonkeyPatch, hook: str, number: int) -> None:
    """Let SIGTERM arrive just before a hook of ResumableCheckpoint is called for the n-th time, from 1."""
    import os
    import signal

    from eca_hub.train.callbacks.checkpointing import ResumableCheckpoint

    real = getattr(ResumableCheckpoint, hook)
    calls = 0

    def counting(self: ResumableCheckpoint, *args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(ResumableCheckpoint, hook, counting)
