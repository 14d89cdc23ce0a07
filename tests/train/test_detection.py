"""`eca-hub fit` of detectors: a run leaves a package that detects, and resumes to the bit; mistakes in one sentence."""

import csv
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

import eca_hub
from eca_hub.__main__ import main
from eca_hub.errors import InvalidConfig
from eca_hub.hub.pretrained import save_detector
from eca_hub.models.detector_config import DetectorConfig
from eca_hub.models.detectors import create_detector, resolve_detector_config
from eca_hub.models.feature_pyramid import pyramid_of
from eca_hub.train.detection import DetectionModule
from eca_hub.train.optim import OptimConfig
from eca_hub.train.tasks import task_for
from tests.train.data.detection_files import coco_document, write_coco, write_yolo
from tests.train.runs import checkpoints, fit, stop_at, weights_hash

CONFIGS = Path(__file__).parents[2] / "experiments" / "configs"
CONFIG = """
model:
  detector: mask_rcnn
  backbone: resnet18
  min_side_px: 32
  max_side_px: 48
  train_min_sides_px: [40]
  rois_per_image: 8
  ema_decay: 0.9
  lr_batch_size: 0
  optim: {name: adamw, lr: 1.0e-3, schedule: constant}
data:
  class_path: CocoData
  init_args: {root: ROOT, batch_size: 2, bit_depth: 12, augment: {mosaic_prob: 0.3}}
trainer: {max_epochs: 2, accelerator: cpu, devices: 1, gradient_clip_val: 10}
"""
NUM_BATCHES = 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="module")
def whole_run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without an interruption."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert fit(run_dir, config=CONFIG.replace("ROOT", str(root))) == 0
    return run_dir


def rows_of(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open() as file:
        return [
            {name: value for name, value in row.items() if name not in ("images_per_s", "epoch_s")}
            for row in csv.DictReader(file)
        ]


@pytest.mark.slow
def test_a_run_leaves_a_package_metrics_and_plots(whole_run: Path, root: Path) -> None:
    for name in ("curves.png", "precision_recall.png", "detections.png", "classes.csv", "config.yaml"):
        assert (whole_run / name).stat().st_size > 0
    result = json.loads((whole_run / "result.json").read_text())
    assert {"test_AP", "test_AP50", "test_APS", "test_mask_AP", "val_AP", "best_epoch", "steps"} <= result.keys()
    assert {"train_loss", "train_loss_mask", "val_AP", "val_mask_AP50", "lr"} <= rows_of(whole_run)[0].keys()
    detector = eca_hub.Detector.from_pretrained(whole_run)
    assert detector.config.labels == ("bar", "disk", "far")
    assert detector.config.bit_depth == 12, "the data say so"
    assert isinstance(detector.predict(root / "val2017/0.png", min_score=0.05), list)
    ids = {each["image_id"] for each in json.loads((whole_run / "detections.json").read_text())}
    assert ids <= {each["id"] for each in coco_document()["images"]}
    card = (whole_run / "model/README.md").read_text()
    assert "pipeline_tag: object-detection" in card
    assert "AP50 of masks" in card


@pytest.mark.soak
def test_a_run_stopped_inside_an_epoch_ends_in_the_same_weights(whole_run: Path, root: Path, tmp_path: Path) -> None:
    config = CONFIG.replace("ROOT", str(root))
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, "on_train_batch_end", NUM_BATCHES + 2)
        assert fit(tmp_path / "run", config=config) == 143
    assert checkpoints(tmp_path / "run")
    assert fit(tmp_path / "run", "--resume", config=config) == 0
    assert weights_hash(tmp_path / "run") == weights_hash(whole_run)
    assert rows_of(tmp_path / "run") == rows_of(whole_run)


@pytest.mark.soak
def test_thirty_steps_lower_the_loss_and_resume_to_the_bit(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "coco", coco_document(num_images=12))
    config = CONFIG.replace("ROOT", str(root)).replace("mosaic_prob: 0.3", "flip_prob: 0.5")
    options = ["--trainer.max_epochs", "5", "--trainer.check_val_every_n_epoch", "5"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert fit(whole, *options, config=config) == 0
    assert json.loads((whole / "result.json").read_text())["steps"] == 30
    losses = [float(row["train_loss"]) for row in rows_of(whole)]
    assert losses[-1] < 0.5 * losses[0]
    with pytest.MonkeyPatch.context() as patch:
        # The first batch of the resumed run is of other sizes than the first of the whole run.
        stop_at(patch, "on_train_batch_end", 14)
        assert fit(resumed, *options, config=config) == 143
    assert fit(resumed, *options, "--resume", config=config) == 0
    assert weights_hash(resumed) == weights_hash(whole)
    assert rows_of(resumed) == rows_of(whole)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_the_image_files(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = DetectionModule.training_step
    taken: list[list[int]] = []

    def spoilt(self: DetectionModule, batch: Any, batch_index: int) -> torch.Tensor:
        taken.append(batch.indices.tolist())
        return real(self, batch, batch_index) * (float("nan") if len(taken) == 2 else 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DetectionModule, "training_step", spoilt)
        assert fit(tmp_path / "run", config=CONFIG.replace("ROOT", str(root))) == 2
    files = ", ".join(str(root / "train2017" / f"{index}.png") for index in taken[1])
    assert f"The loss is nan at step 2, epoch 1, batch 2, learning rate 0.001; training samples {files}." in (
        capsys.readouterr().err
    )


@pytest.mark.soak
def test_yolo_folders_train_retinanet_and_are_validated_and_predicted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_yolo(tmp_path / "yolo")
    config = CONFIG.replace("CocoData", "YoloData").replace("mask_rcnn", "retinanet").replace("ROOT", str(root))
    assert fit(tmp_path / "run", config=config) == 0
    assert main(["predict", "--config", str(tmp_path / "run.yaml"), "--run_dir", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run/predictions.json").is_file()
    assert main(["validate", "--config", str(tmp_path / "run.yaml"), "--run_dir", str(tmp_path / "run")]) == 0
    assert "AP50" in capsys.readouterr().out


def test_a_bad_annotation_file_is_refused_before_training(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = coco_document()
    document["annotations"][0]["category_id"] = 99
    write_coco(tmp_path / "bad", document)
    assert fit(tmp_path / "run", config=CONFIG.replace("ROOT", str(tmp_path / "bad"))) == 2
    assert "1 annotations of unknown categories (annotation 1: category 99)" in capsys.readouterr().err
    assert not checkpoints(tmp_path / "run")


def module(**options: Any) -> DetectionModule:
    small = {"backbone": "resnet18", "min_side_px": 32, "max_side_px": 64, "labels": ("a", "b")}
    return DetectionModule(**{**small, **options})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"frozen_stages": 1}, "random weights, which would stay random"),
        ({"frozen_norms": True}, "random weights, which would stay random"),
        ({"backbone_from": "a", "from_pretrained": "b"}, "give one of both"),
        ({"ema_decay": 1.0}, "ema_decay 1.0"),
        ({"lr_milestones_epochs": [0]}, "each 1 or more"),
        ({"train_min_sides_px": [8]}, "train_min_sides_px"),
        ({"head_norm": "group"}, "group for retinanet"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidConfig, match=sentence):
        module(**options)


def test_a_batch_of_one_image_is_refused_where_norms_would_see_one_value() -> None:
    made = module()
    made.check_batch(2)
    with pytest.raises(InvalidConfig, match=r"A batch of one image of 32 px has a feature map of 1 x 1"):
        made.check_batch(1)
    module(min_side_px=64).check_batch(1)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    model = eca_hub.create_model("eca_resnet18", num_classes=2, kernel_sizes=5)
    config = eca_hub.ModelConfig(
        "resnet18",
        "eca",
        {"kernel_sizes": 5},
        labels=("x", "y"),
        image=eca_hub.ImageConfig(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2)),
    )
    return eca_hub.save_pretrained(model, tmp_path_factory.mktemp("classifier"), config=config)


def test_the_backbone_starts_from_a_classifier_with_its_preprocessing(classifier: Path) -> None:
    made = module(backbone=None, backbone_from=str(classifier), frozen_stages=1, frozen_norms=True)
    weights = eca_hub.load_pretrained(classifier)[0].state_dict()
    body = pyramid_of(made.model).body.state_dict()
    assert all(torch.equal(body[name], weights[name]) for name in body)
    assert made.config.mean == (0.5, 0.4, 0.3)
    assert made.config.attention_args == {"kernel_sizes": [5, 5, 5, 5]}
    assert not body.keys() - weights.keys()
    assert not pyramid_of(made.model).body.conv1.weight.requires_grad  # type: ignore[union-attr]


OF_TWO_PROCESSES = """
model:
  detector: retinanet
  backbone_from: CLASSIFIER
  frozen_norms: true
  min_side_px: 64
  max_side_px: 64
  lr_batch_size: 0
  optim: {lr: 1.0e-2, schedule: constant}
data:
  class_path: CocoData
  init_args: {root: ROOT, batch_size: 1, augment: {flip_prob: 0.5}}
trainer: {max_epochs: 1, accelerator: cpu, strategy: ddp, devices: 2}
"""


@pytest.mark.soak
def test_two_processes_train_to_the_weights_of_one(classifier: Path, tmp_path: Path) -> None:
    """Images of one size: a batch pads smaller ones, and what is padded belongs to the loss."""
    document = coco_document()
    document["images"] = [{**each, "width": 64, "height": 64} for each in document["images"]]
    document["annotations"] = [each for each in document["annotations"] if not each["iscrowd"]]
    root = write_coco(tmp_path / "coco", document)
    config = tmp_path / "run.yaml"
    config.write_text(OF_TWO_PROCESSES.replace("ROOT", str(root)).replace("CLASSIFIER", str(classifier)))
    one, two = tmp_path / "one", tmp_path / "two"
    for run_dir, options in (
        (two, []),
        (one, ["--trainer.devices", "1", "--trainer.strategy", "auto", "--data.batch_size", "2"]),
    ):
        words = [sys.executable, "-m", "eca_hub", "fit", "--config", str(config), "--run_dir", str(run_dir), *options]
        done = subprocess.run(words, capture_output=True, text=True, timeout=250, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    rows, expected = rows_of(two), rows_of(one)
    assert [row["step"] for row in rows] == ["3"]
    for name in ("train_loss", "train_classification", "val_AP", "val_AP50"):
        assert [float(row[name]) for row in rows] == pytest.approx([float(row[name]) for row in expected], abs=1e-5)
    weights = [safetensors.torch.load((run_dir / "model/model.safetensors").read_bytes()) for run_dir in (two, one)]
    torch.testing.assert_close(*weights, atol=1e-5, rtol=0)
    results = [json.loads((run_dir / "result.json").read_text()) for run_dir in (two, one)]
    assert [each["num_test_images"] for each in results] == [6, 6]
    assert results[0]["test_AP"] == pytest.approx(results[1]["test_AP"], abs=1e-5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"backbone": "resnet34"}, r"has backbone resnet18, and model\.backbone is resnet34"),
        pytest.param({"backbone": None, "attention": "none"}, "has attention eca", marks=pytest.mark.slow),
        pytest.param(
            {"backbone": None, "attention_args": {"kernel_sizes": 3}}, "has attention_args", marks=pytest.mark.slow
        ),
    ],
)
def test_another_backbone_than_the_packages_is_refused(
    options: dict[str, Any], sentence: str, classifier: Path
) -> None:
    with pytest.raises(InvalidConfig, match=sentence):
        module(backbone_from=str(classifier), **options)


@pytest.mark.slow
def test_a_detector_package_is_trained_on_with_new_classes(tmp_path: Path) -> None:
    torch.manual_seed(2)
    source = create_detector("faster_rcnn", backbone="resnet18", num_classes=3, min_side_px=32, max_side_px=64)
    save_detector(source, tmp_path, labels=("a", "b", "c"))
    for name, value in (("detector", "retinanet"), ("min_side_px", 480), ("anchor_ratios", [1.0])):
        with pytest.raises(InvalidConfig, match=f"and model.{name} is "):
            DetectionModule(from_pretrained=str(tmp_path), labels=("d", "e"), **{name: value})  # type: ignore[arg-type]
    made = DetectionModule(from_pretrained=str(tmp_path), labels=("d", "e"))
    assert made.config.labels == ("d", "e")
    assert made.has_new_head
    assert torch.equal(
        made.model.get_parameter("roi_heads.box_head.fc6.weight"), source.get_parameter("roi_heads.box_head.fc6.weight")
    )
    assert made.model.get_parameter("roi_heads.box_predictor.cls_score.weight").shape[0] == 3
    same = DetectionModule(from_pretrained=str(tmp_path), labels=("a", "b", "c"))
    assert not same.has_new_head
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in same.model.state_dict().items())


@pytest.mark.slow
def test_a_detector_is_not_tested_on_data_of_other_classes(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = create_detector("retinanet", backbone="resnet18", num_classes=3, min_side_px=32, max_side_px=64)
    save_detector(model, tmp_path / "package", labels=("a", "b", "c"))
    words = ["--data", "CocoData", "--data.root", str(root), "--model.from_pretrained", str(tmp_path / "package")]
    assert main(["test", *words, "--model.detector", "retinanet", "--run_dir", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert f"The classes of {tmp_path / 'package'} are not those of the data coco" in message
    assert "multi_label" not in message


class FakeTrainer:
    """What the schedule asks of a trainer."""

    world_size = 2
    accumulate_grad_batches = 1
    is_global_zero = True

    class datamodule:  # noqa: N801
        batch_size = 2


def test_the_learning_rate_follows_batch_size_warm_up_and_milestones(capsys: pytest.CaptureFixture[str]) -> None:
    optim = OptimConfig(lr=0.02, warmup_epochs=0.5)
    made = module(optim=optim, lr_batch_size=16, lr_milestones_epochs=[8, 11])
    made._trainer = FakeTrainer()  # type: ignore[assignment]
    factor = made.make_schedule(120, 10)
    quarter = 4 / 16
    assert factor(0) == pytest.approx(quarter / 5)
    assert [factor(step) for step in (5, 79, 80, 109, 110, 119)] == pytest.approx(
        [quarter * share for share in (1, 1, 0.1, 0.1, 0.01, 0.01)]
    )
    assert "learning rate 0.02 is for 16 images; with 4 it is 0.005" in capsys.readouterr().out


PAPER = sorted((CONFIGS / "coco").glob("*.yaml"))


@pytest.mark.parametrize("path", [*PAPER, *sorted((CONFIGS / "coco_mini").glob("*.yaml"))], ids=lambda path: path.stem)
def test_every_configuration_names_a_detector_that_can_be_built(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    options = inspect.signature(DetectionModule).parameters
    assert set(config["model"]) <= set(options)
    OptimConfig(**config["model"]["optim"])
    fields = {
        name: config["model"][name]
        for name in ("detector", "backbone", "attention", "attention_args", "head_norm")
        if name in config["model"]
    }
    assert resolve_detector_config(DetectorConfig(**fields)).backbone == config["model"]["backbone"]
    assert task_for(["-c", str(path)]).module is DetectionModule
    command = path.read_text().splitlines()[1]
    assert f"--config experiments/configs/{path.parent.name}/{path.name} " in command


def test_every_row_of_table_5_has_a_configuration() -> None:
    assert len(PAPER) == 20
