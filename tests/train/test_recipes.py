"""Options of the usual recipes work together, and what cannot train is refused before the start."""

import json
from pathlib import Path

import pytest

from tests.train.runs import CONFIG, fit

RECIPE = CONFIG.replace("max_epochs: 3", "max_epochs: 1").replace(
    "optim: {lr: 0.05, warmup_epochs: 1}",
    "optim: {name: lion, lr: 0.001, betas: [0.9, 0.98], layer_decay: 0.8, agc: 0.01}\n"
    "  loss: bce\n  class_weights: balanced",
)


@pytest.mark.slow
def test_a_modern_recipe_trains_and_the_result_has_metrics_of_each_class(tmp_path: Path) -> None:
    assert fit(tmp_path / "run", config=RECIPE) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert {"test_macro_f1", "test_calibration_error"} <= result.keys()
    assert [set(row) for row in result["classes"]] == [{"label", "num_images", "precision", "recall", "f1"}] * 4
    assert sum(map(sum, result["confusion"])) == result["num_test_images"]
    right = sum(row[number] for number, row in enumerate(result["confusion"]))
    assert right / result["num_test_images"] == result["test_top1"]


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--model.optim.name=adahessian", "needs second derivatives"),
        ("--model.optim.name=adamm", "There is no optimizer 'adamm'; timm has"),
        ("--model.optim.args={foo: 1}", "The optimizer sgd cannot be made with foo=1"),
    ],
)
def test_an_optimizer_that_cannot_be_made_is_refused(
    option: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path / "run", option) == 2
    assert sentence in capsys.readouterr().err


def test_rare_classes_are_not_made_up_for_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--data.balanced_sampling", "true", "--model.class_weights", "balanced")
    assert fit(tmp_path / "run", *options) == 2
    assert "make up for rare classes, and together do so twice; use one of both." in capsys.readouterr().err
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_batches_of_one_image_and_a_map_of_one_pixel_are_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--data.batch_size", "1", "--model.architecture", "resnet18", "--model.mix.mixup_alpha", "0")
    assert fit(tmp_path / "run", *options) == 2
    captured = capsys.readouterr()
    assert "A batch of one image of 8 x 8 px has a feature map of 1 x 1 in resnet18" in captured.err
    assert "epoch 1" not in captured.out
