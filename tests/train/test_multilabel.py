"""`eca-hub fit` with several labels an image: from a table to a package that gives a probability for each class."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image

import eca_hub
from eca_hub.__main__ import main
from eca_hub.errors import InvalidConfig
from eca_hub.hub.pretrained import save_pretrained
from eca_hub.train.data.dataset import Batch
from eca_hub.train.losses import distillation_loss
from eca_hub.train.module import ImageClassifier
from tests.conftest import LABELS, TINY
from tests.train.runs import checkpoints, fit, stop_at, weights_hash

COLORS = ("red", "green", "blue")
CONFIG = """
model:
  architecture: resnet20
  class_weights: balanced
  label_smoothing: 0.1
  ema_decay: 0.9
  mix: {mixup_alpha: 0.2, cutmix_alpha: 1.0, mix_prob: 0.5}
  optim: {lr: 0.05}
data:
  class_path: CsvData
  init_args:
    root: ROOT
    multi_label: true
    batch_size: 8
    image: {height_px: 8, width_px: 8, crop: 1.0}
save: {every_steps: 2}
trainer: {max_epochs: 2, accelerator: cpu, devices: 1}
"""
NUM_BATCHES = 4


def write_colors(root: Path) -> Path:
    """Write images in which any of three colors are on, and a table that names them; return the table."""
    random = np.random.default_rng(0)
    rows = ["path,labels,split"]
    for number in range(72):
        is_on = random.random(3) < (0.5, 0.5, 0.2)
        pixels = random.integers(0, 60, (12, 12, 3)) + 180 * is_on
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, format="PNG")
        (root / f"{number}.png").write_bytes(buffer.getvalue())
        names = "|".join(color for color, on in zip(COLORS, is_on, strict=True) if on)
        rows.append(f"{number}.png,{names},{'train' if number < 36 else 'val' if number < 52 else 'test'}")
    (root / "labels.csv").write_text("\n".join(rows))
    return root / "labels.csv"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colors(tmp_path_factory.mktemp("colors"))


@pytest.fixture(scope="module")
def run_dir(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert fit(folder, config=CONFIG.replace("ROOT", str(table))) == 0
    return folder


def test_a_run_measures_mean_average_precision_and_f1(run_dir: Path) -> None:
    result = json.loads((run_dir / "result.json").read_text())
    assert {"test_mAP", "test_macro_f1", "test_micro_f1", "test_loss", "val_mAP", "val_micro_f1"} <= result.keys()
    assert result["num_test_images"] == 20
    assert [each["label"] for each in result["classes"]] == sorted(COLORS)
    assert {"num_images", "precision", "recall", "f1", "average_precision"} <= result["classes"][0].keys()
    with (run_dir / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"train_loss", "train_micro_f1", "val_loss", "val_mAP", "val_macro_f1"} <= rows[0].keys()
    best = max(range(2), key=lambda epoch: (float(rows[epoch]["val_mAP"]), epoch))
    assert result["best_epoch"] == best + 1
    assert (run_dir / "curves.png").stat().st_size
    assert (run_dir / "classes.csv").read_text().startswith("label,num_images,precision")
    data = ModelCard.load(run_dir / "model/README.md").data
    assert isinstance(data, ModelCardData)
    assert {each.metric_type for each in data.eval_results or []} == {"mean_average_precision", "f1"}


def test_the_package_gives_a_probability_for_each_class(run_dir: Path, table: Path) -> None:
    document = json.loads((run_dir / "model/config.json").read_text())
    assert document["problem_type"] == "multi_label_classification"
    classifier = eca_hub.Classifier.from_pretrained(run_dir)
    assert classifier.config.is_multi_label
    image = table.parent / "60.png"
    predictions = classifier.predict(image)
    pixels = classifier.transform.resize_and_crop(classifier.transform.decode(image))[None]
    with torch.inference_mode():
        [scores_K] = classifier.model(classifier.transform.normalize(pixels)).sigmoid()
    assert {each.index: each.score for each in predictions} == pytest.approx(dict(enumerate(scores_K.tolist())))
    assert [each for each in predictions if each.score >= 0.5] == classifier.predict(image, min_score=0.5)


def test_classify_prints_the_classes_above_a_score(
    run_dir: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(table.parent / "60.png")
    assert main(["classify", image, "--model", str(run_dir), "--min_score", "1"]) == 0
    assert capsys.readouterr().out == f"{image}  (no label)\n"
    assert main(["classify", image, "--model", str(run_dir), "--json"]) == 0
    scores = [each["score"] for each in json.loads(capsys.readouterr().out)["predictions"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert main(["classify", image, "--model", str(run_dir), "--min_score", "2"]) == 2
    assert "--min_score is 2.0; it must be 0 to 1" in capsys.readouterr().err


def test_predictions_have_all_classes_of_each_image(run_dir: Path, table: Path) -> None:
    assert main(["predict", "--config", f"{run_dir}.yaml", "--run_dir", str(run_dir)]) == 0
    with (run_dir / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    assert list(rows[0]) == ["file", "labels", "predicted", *sorted(COLORS)]
    expected = [line.split(",") for line in table.read_text().splitlines() if line.endswith("test")]
    assert [set(row["labels"].split("|")) for row in rows] == [set(labels.split("|")) for _, labels, _ in expected]
    for row in rows:
        above = {color for color in COLORS if float(row[color]) > 0.5}
        assert set(filter(None, row["predicted"].split("|"))) == above


@pytest.mark.slow
def test_a_package_is_measured_again(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--config", f"{run_dir}.yaml", "--run_dir", str(run_dir)]) == 0
    assert "val_mAP" in capsys.readouterr().out


@pytest.mark.slow
def test_a_package_of_other_classes_is_not_measured(
    run_dir: Path, tiny_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model.from_pretrained", str(tiny_package), "--run_dir", str(run_dir)]
    assert main(["test", "--config", f"{run_dir}.yaml", *options]) == 2
    assert "are not those of the data labels: blue, green, red" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_measure_what_one_measures(run_dir: Path) -> None:
    lines = []
    for options in (["--trainer.devices", "2", "--trainer.strategy", "ddp"], ["--trainer.devices", "1"]):
        words = [sys.executable, "-m", "eca_hub", "test", "--config", f"{run_dir}.yaml", "--run_dir", str(run_dir)]
        done = subprocess.run([*words, *options], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        lines.append([line for line in done.stdout.splitlines() if "test_mAP" in line])
    assert len(lines[0]) == 1
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_a_run_stopped_inside_an_epoch_ends_in_the_same_weights(run_dir: Path, table: Path, tmp_path: Path) -> None:
    config = CONFIG.replace("ROOT", str(table))
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, "on_train_batch_end", NUM_BATCHES + 2)
        assert fit(tmp_path / "run", config=config) == 143
    assert checkpoints(tmp_path / "run")
    assert fit(tmp_path / "run", "--resume", config=config) == 0
    assert weights_hash(tmp_path / "run") == weights_hash(run_dir)


def test_the_loss_of_one_label_is_refused_before_training(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = CONFIG.replace("ROOT", str(table))
    assert fit(tmp_path / "run", "--model.loss", "cross_entropy", config=config) == 2
    assert "model.loss is cross_entropy, which takes one label an image" in capsys.readouterr().err
    assert fit(tmp_path / "run", "--data.balanced_sampling", "true", config=config) == 2
    assert "Give --model.class_weights balanced" in capsys.readouterr().err
    assert not checkpoints(tmp_path / "run")


def test_a_teacher_of_one_label_is_refused(tiny_package: Path) -> None:
    with pytest.raises(InvalidConfig, match="gives an image one label, unlike the data"):
        ImageClassifier("resnet20", labels=LABELS, image=TINY.image, multi_label=True, distill_from=str(tiny_package))


def test_a_package_of_one_label_starts_with_a_new_head(tiny_package: Path) -> None:
    source, _ = eca_hub.load_pretrained(tiny_package)
    module = ImageClassifier(from_pretrained=str(tiny_package), labels=LABELS, image=TINY.image, multi_label=True)
    changed = {
        name for name, tensor in module.model.state_dict().items() if not tensor.equal(source.state_dict()[name])
    }
    assert changed == {"fc.weight", "fc.bias"}
    save_pretrained(module.model, tiny_package.parent / "several", config=module.config)
    again = ImageClassifier(
        from_pretrained=str(tiny_package.parent / "several"), labels=LABELS, image=TINY.image, multi_label=True
    )
    assert all(tensor.equal(again.model.state_dict()[name]) for name, tensor in module.model.state_dict().items())


def test_a_teacher_of_several_labels_is_learned_from_with_the_divergence_of_each_class(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, config = eca_hub.load_pretrained(run_dir)
    module = ImageClassifier(
        "resnet20", labels=config.labels, image=config.image, multi_label=True, distill_from=str(run_dir),
        distill_alpha=0.7, distill_temperature=3.0,
    ).eval()  # fmt: skip
    monkeypatch.setattr(ImageClassifier, "trainer", SimpleNamespace(current_epoch=0, global_rank=0, loggers=[]))
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    targets = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]], dtype=torch.int8)
    loss = module.training_step(Batch(pixels, targets, torch.arange(4)), 0)
    student = module(pixels)
    taught = teacher(eca_hub.EvalTransform(config.image).normalize(pixels))
    distance = distillation_loss(student, taught, 3.0, is_multi_label=True)
    plain = torch.nn.functional.binary_cross_entropy_with_logits(student, targets.float())
    torch.testing.assert_close(loss, 0.3 * plain + 0.7 * distance)
