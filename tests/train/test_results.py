"""Results of a run: which weights are the best, and tables that do not depend on the locale."""

import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from matplotlib.axes import Axes
from torch import nn

from eca_hub.train.callbacks.bad_samples import BadSampleLog
from eca_hub.train.classification_results import ClassificationResults, MultiLabelResults
from eca_hub.train.data.dataset import BadSample, Batch
from eca_hub.train.errors import TrainingStopped
from eca_hub.train.module import ImageClassifier
from eca_hub.train.plots import write_classes
from tests.train.runs import NUM_BATCHES, fit, stop_at


@pytest.mark.slow
def test_of_several_validations_in_an_epoch_the_best_is_in_metrics_result_and_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def right_in_the_middle_of_an_epoch(self: ImageClassifier, batch: Batch, batch_index: int) -> None:
        is_right = self.global_step % NUM_BATCHES == NUM_BATCHES // 2
        logits_NK = 9.0 * nn.functional.one_hot((batch.targets + (not is_right)) % 4, 4)
        self.metrics_for("val").update(logits_NK, batch.targets, torch.tensor(1.0))

    titles: list[str] = []

    def set_title(self: Axes, title: str, **options: Any) -> None:
        titles.append(title)

    monkeypatch.setattr(ImageClassifier, "validation_step", right_in_the_middle_of_an_epoch)
    monkeypatch.setattr(Axes, "set_title", set_title)
    halves = ("--trainer.val_check_interval", "0.5", "--trainer.max_epochs", "2")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, "on_train_batch_end", 2 * NUM_BATCHES - 1)
        assert fit(tmp_path / "run", *halves) == 143
    assert fit(tmp_path / "run", *halves, "--resume") == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["val_top1"], result["best_epoch"]) == (1.0, 2)
    with (tmp_path / "run" / "metrics.csv").open(encoding="utf-8") as file:
        assert [float(row["val_top1"]) for row in csv.DictReader(file)] == [1.0, 1.0]
    assert "top-1, best 100.0% in epoch 2" in titles


@pytest.mark.slow
def test_the_best_weights_are_known_when_a_resumed_run_asks_for_them_instead_of_the_last(tmp_path: Path) -> None:
    one_epoch = ("--trainer.max_epochs", "1")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, "on_train_epoch_end", 1)
        assert fit(tmp_path / "run", *one_epoch, "--save.keep", "last") == 143
    assert fit(tmp_path / "run", *one_epoch, "--resume", "--save.keep", "best") == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["kept"], result["best_epoch"]) == ("best", 1)


@pytest.mark.slow
def test_of_the_last_weights_the_circle_and_the_line_name_the_epoch_that_was_validated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    circles: list[Any] = []
    plot = Axes.plot

    def record_circles(self: Axes, *args: Any, **options: Any) -> Any:
        circles.extend([args[0]] if options.get("mfc") == "none" else [])
        return plot(self, *args, **options)

    monkeypatch.setattr(Axes, "plot", record_circles)
    assert fit(tmp_path / "run", "--save.keep", "last", "--trainer.check_val_every_n_epoch", "2") == 0
    assert circles == [2]
    assert re.search(r"^last validation top-1 .* in epoch 2 of 3$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("last_metrics", "sentence"),
    [
        ({}, "The run ended before its first validation"),
        ({"loss": float("nan"), "top1": 0.5}, "No validation had a finite loss"),
        ({"loss": 1.0, "top1": float("nan")}, "No validation could compute its accuracy"),
        ({"loss": 1.0, "top1": 0.5}, "There are no best weights: the run was resumed with another network"),
    ],
)
def test_without_best_weights_the_error_names_the_cause(
    last_metrics: dict[str, float], sentence: str, tmp_path: Path
) -> None:
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")), current_epoch=3)
    checkpoint: Any = SimpleNamespace(fit_s=1.0, keep="best", best=None, last_metrics=last_metrics)
    module, store = SimpleNamespace(score_name="top1"), cast(Any, None)
    with pytest.raises(TrainingStopped, match=sentence):
        ClassificationResults(trainer, module, None).finalize(tmp_path, store, checkpoint)  # type: ignore[arg-type]


@pytest.fixture
def ascii_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    """A locale in which a file is not UTF-8 unless its encoding is given."""
    real = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda self, mode="r", buffering=-1, encoding=None, *rest, **options: real(
            self, mode, buffering, encoding or (None if "b" in mode else "ascii"), *rest, **options
        ),
    )


@pytest.mark.usefixtures("ascii_locale")
def test_tables_are_utf_8_in_every_locale(tmp_path: Path) -> None:
    write_classes(torch.eye(2), ["Käfer", "a\ud800"], tmp_path / "classes.csv")
    table = (tmp_path / "classes.csv").read_bytes()
    assert b"K\xc3\xa4fer,1,1.0000" in table
    assert b"\r" not in table
    log = BadSampleLog(tmp_path, limit=1)
    trainer: Any = SimpleNamespace(
        is_global_zero=True, world_size=1, strategy=SimpleNamespace(broadcast=lambda each: each)
    )
    module: Any = None
    for _ in range(2):
        log.setup(trainer, module, "fit")
        batch = Batch(torch.zeros(0), torch.zeros(0), torch.zeros(0), (BadSample(0, "Käfer\udcff.png", "broken"),))
        log.on_train_batch_end(trainer, module, None, batch, 0)
        log = BadSampleLog(tmp_path, limit=1)
    assert (tmp_path / "bad_samples.csv").read_bytes().splitlines() == [b"file,reason", b"K\xc3\xa4fer\xff.png,broken"]


def test_names_with_the_separator_are_unambiguous_in_the_predictions_of_several_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SimpleNamespace(targets=[[1, 1, 0]], name=lambda index: "1.png")
    data = SimpleNamespace(labels=["a|b", "c", "a"], predict_source=lambda: source)
    results = MultiLabelResults(SimpleNamespace(is_global_zero=True), None, data)  # type: ignore[arg-type]
    monkeypatch.setattr(MultiLabelResults, "predict", lambda self, rows_of: [(0, [0.1, 0.9, 0.8])])
    results.write_predictions(tmp_path / "predictions.csv")
    with (tmp_path / "predictions.csv").open(encoding="utf-8") as file:
        [row] = csv.DictReader(file)
    assert (row["labels"], row["predicted"]) == (r"a\|b|c", "c|a")
