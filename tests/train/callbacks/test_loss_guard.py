"""A loss or weights that are NaN or infinite stop the run, and nothing of them is saved or published."""

from pathlib import Path

import pytest
import torch

from eca_hub.atomic import metadata_of
from eca_hub.train.data.dataset import Batch
from eca_hub.train.metrics import ClassificationMetrics
from eca_hub.train.module import ImageClassifier
from tests.train.runs import checkpoints, fit


@pytest.mark.parametrize("accelerator", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_a_loss_that_is_not_finite_stops_with_step_learning_rate_and_samples(
    accelerator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = ImageClassifier.training_step
    calls = 0

    def spoilt(self: ImageClassifier, batch: object, batch_index: int) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return real(self, batch, batch_index) * (float("nan") if calls == 6 else 1)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageClassifier, "training_step", spoilt)
    assert fit(tmp_path / "run", "--trainer.accelerator", accelerator) == 2
    output = capsys.readouterr().err
    assert "The loss is nan at step 6, epoch 2, batch 2, learning rate 0.04" in output
    assert "training samples stripes train #" in output
    assert not (tmp_path / "run" / "model").exists()
    assert checkpoints(tmp_path / "run")[-1].name.startswith("step-000000004-")


@pytest.mark.slow
def test_weights_whose_validation_loss_is_not_finite_are_not_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ImageClassifier._measure

    def spoilt(self: ImageClassifier, batch: Batch, split: str) -> None:
        real(self, batch, split)
        if split == "val" and self.current_epoch == 2:
            metrics = self.metrics_for("val")
            assert isinstance(metrics, ClassificationMetrics)
            metrics.loss_sum.update(torch.tensor(float("nan")))
            metrics.top1.update(torch.eye(4).repeat(250, 1), torch.arange(4).repeat(250))

    monkeypatch.setattr(ImageClassifier, "_measure", spoilt)
    assert fit(tmp_path / "run") == 0
    assert metadata_of(checkpoints(tmp_path / "run")[-1])["best_epoch"] < 3
