"""`eca-hub fit`: every configuration in experiments/ runs, and a run leaves a package that classifies."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from eca_hub import Classifier
from eca_hub.__main__ import main
from eca_hub.hub.card.edit import read_metadata
from eca_hub.train import cli
from eca_hub.train.data import DigitsData
from tests.conftest import make_image
from tests.train.datasets import png, write_parquet
from tests.train.runs import CONFIG, fit

EXPERIMENTS = Path(__file__).parents[2] / "experiments" / "configs"
CONFIGS = sorted(
    path
    for path in EXPERIMENTS.rglob("*.yaml")
    if path.parent.name not in ("cluster", "coco", "coco_mini", "log", "rows")
)
LOGS = sorted((EXPERIMENTS / "log").glob("*.yaml"))
SHORT = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1")
CPU = ("--trainer.accelerator", "cpu", "--trainer.devices", "1")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch of two batches."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = next(path for path in CONFIGS if path.match("digits/eca.yaml"))
    allowed = ("--overwrite", "--allow_changes")
    assert main(["fit", "-c", str(config), "--run_dir", str(folder), *allowed, *SHORT, *CPU]) == 0
    return folder


@pytest.fixture(scope="module")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of eight images, as class folders and as parquet files."""
    root = tmp_path_factory.mktemp("data")
    for split in ("train", "val"):
        for number, label in enumerate(("cat", "dog", "eel")):
            (root / split / label).mkdir(parents=True)
            for index in range(8):
                (root / split / label / f"{index}.png").write_bytes(png(number * 80 + index, side_px=40))
    for split in ("train", "validation", "test"):
        write_parquet(root / f"{split}.parquet", [0, 1, 2] * 8, names=["cat", "dog", "eel"])
    return root


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*which this processor has no instructions for")
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_configuration_trains(
    config: Path, tiny_data: Path, tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = yaml.safe_load(config.read_text())
    options = [*SHORT, *CPU]
    if words["data"]["class_path"] != "DigitsData":
        root = tiny_data
        if "val_fraction" in words["data"].get("init_args", {}):
            # Such data have no validation images of their own.
            root = tmp_path / "data"
            root.mkdir()
            for split in ("train", "test"):
                shutil.copy(tiny_data / f"{split}.parquet", root)
        # What costs time is made small; every other word of the file counts.
        options += ["--data.root", str(root), "--data.batch_size", "8", "--data.num_workers", "0"]
        options += ["--data.image.height_px", "32", "--data.image.width_px", "32", "--model.attention", "eca"]
    if "ID" in config.read_text().splitlines()[1] or words["model"].get("freeze") == "backbone":
        option = "distill_from" if config.name == "distil.yaml" else "from_pretrained"
        options += [f"--model.{option}", str(tiny_package)]
        if option == "distill_from":
            options += ["--data.image.height_px", "16", "--data.image.width_px", "16"]
    assert main(["fit", "--config", str(config), "--run_dir", str(tmp_path / "run"), *options]) == 0
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    # Beside the class folders of `train` there is `val` alone; of the others, all three splits.
    is_marked = "chosen on the images that it is tested on" in capsys.readouterr().out
    assert is_marked == (words["data"]["class_path"] == "ImageFolderData")
    assert is_marked == ("chosen on the images" in (tmp_path / "run" / "model" / "README.md").read_text())


@pytest.mark.parametrize("config", [*CONFIGS, *LOGS], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_configuration_states_its_claim_command_and_expected_result(config: Path) -> None:
    first, second, third, *_ = config.read_text().splitlines()
    assert first.startswith("# Claim: ")
    assert second.startswith("# Command: eca-hub fit --config ")
    assert f" --config experiments/configs/{config.parent.name}/{config.name}" in second
    assert third.startswith("# Expected: ")


def test_all_files_of_a_run_are_in_its_folder(run_dir: Path) -> None:
    assert {path.name for path in run_dir.iterdir()} == {
        "checkpoints", "classes.csv", "config.yaml", "confusion.png", "curves.png", "environment.json", "metrics.csv",
        "model", "result.json",
    }  # fmt: skip
    assert {path.name for path in (run_dir / "model").iterdir()} == {
        "config.json", "confusion.png", "curves.png", "model.safetensors", "README.md",
    }  # fmt: skip


def test_the_card_of_a_run_says_what_was_measured_and_how_it_was_trained(run_dir: Path) -> None:
    page = (run_dir / "model" / "README.md").read_text()
    result = json.loads((run_dir / "result.json").read_text())
    for name, key in (
        ("accuracy", "top1"),
        ("top-5 accuracy", "top5"),
        ("macro F1", "macro_f1"),
        ("calibration error", "calibration_error"),
    ):
        assert f"| scikit-learn digits | test | 360 | {name} | {result[f'test_{key}']:.4f} |" in page
    assert "![Loss and accuracy by epoch](curves.png)" in page
    assert "![Confusion matrix of the test split](confusion.png)" in page
    assert "- seed: 0" in page
    assert re.search(r"^eca-hub fit -c \S+digits/eca.yaml --trainer.max_epochs 1", page, re.MULTILINE)
    assert "--run_dir" not in page
    assert "license" not in read_metadata(page.encode())
    # Nothing is escaped that means nothing.
    assert re.search(r"Measured \d{4}-\d\d-\d\d on 1 x CPU \(", page)
    assert "\\" not in page.split("## Citation")[0]


def test_metrics_csv_has_a_row_per_epoch_with_loss_and_accuracy(run_dir: Path) -> None:
    with (run_dir / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"epoch", "train_loss", "train_top1", "val_loss", "val_top1", "val_top5", "lr", "images_per_s"} <= set(
        rows[0]
    )


def test_the_published_accuracy_is_that_of_the_package(run_dir: Path) -> None:
    result = json.loads((run_dir / "result.json").read_text())
    classifier = Classifier.from_pretrained(run_dir)
    files = list(DigitsData().png_files("test"))
    predictions = classifier.predict([content for content, _ in files], top_k=1)
    right = sum(prediction.label == str(digit) for [prediction], (_, digit) in zip(predictions, files, strict=True))
    assert right / len(files) == pytest.approx(result["test_top1"])
    assert f"| {result['test_top1']:.4f} |" in (run_dir / "model" / "README.md").read_text()
    with (run_dir / "classes.csv").open() as file:
        assert sum(int(row["num_images"]) for row in csv.DictReader(file)) == len(files)


def test_the_environment_is_recorded(run_dir: Path) -> None:
    environment = json.loads((run_dir / "environment.json").read_text())
    assert {"torch", "lightning"} <= environment["packages"].keys()
    assert environment["git"] is None or len(environment["git"]["commit"]) == 40


@pytest.mark.slow
def test_the_saved_configuration_trains_again(run_dir: Path, tmp_path: Path) -> None:
    again = ["fit", "-c", str(run_dir / "config.yaml"), "--run_dir", str(tmp_path / "again")]
    assert main(again) == 0
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (run_dir, tmp_path / "again")]
    assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_package_is_evaluated_again(command: str, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    {"validate": cli.validate, "test": cli.test}[command](
        ["-c", str(run_dir / "config.yaml"), "--run_dir", str(run_dir)]
    )
    output = capsys.readouterr().out
    if command == "test":
        result = json.loads((run_dir / "result.json").read_text())
        assert f"test_top1 {result['test_top1']:.4f}" in output
        assert "on 360 images" in output


@pytest.mark.slow
@pytest.mark.parametrize("form", ["--run_dir {}", "--run_dir={}"])
def test_a_run_is_evaluated_by_its_own_configuration(
    form: str, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.validate(form.format(run_dir).split())
    assert "on 180 images" in capsys.readouterr().out


@pytest.mark.slow
def test_predictions_have_a_row_per_image(run_dir: Path) -> None:
    cli.predict(["-c", str(run_dir / "config.yaml"), "--run_dir", str(run_dir)])
    with (run_dir / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    (run_dir / "predictions.csv").unlink()
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert right / len(rows) == json.loads((run_dir / "result.json").read_text())["test_top1"]


def test_a_finished_run_is_not_replaced_by_mistake(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run_dir / "result.json").read_bytes()
    assert main(["fit", "--run_dir", str(run_dir), "--data", "DigitsData"]) == 2
    assert f"{run_dir} holds a finished run. Give another --run_dir" in capsys.readouterr().err
    assert (run_dir / "result.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--data ImageFolderData --data.root absent", "There is no folder"),
        ("--data DigitsData --model.optim.name adamw --model.optim.betas [0.9]", "The optimizer adamw cannot be made"),
        (
            "--data DigitsData --lr_scheduler StepLR --lr_scheduler.step_size 3 --lr_scheduler.last_epoch 5",
            "The scheduler torch.optim.lr_scheduler.StepLR cannot be made: param 'initial_lr' is not specified",
        ),
        (
            "--data DigitsData --lr_scheduler StepLR --lr_scheduler.step_size 0",
            "The scheduler torch.optim.lr_scheduler.StepLR cannot make a step: ",
        ),
    ],
)
def test_a_mistake_beside_overwrite_leaves_the_run_as_it_was(
    options: str, sentence: str, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(run_dir, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["fit", "--run_dir", str(run), "--overwrite", *options.split(), *CPU]) == 2
    assert sentence in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_what_was_allowed_for_one_call_is_not_in_the_saved_configuration(run_dir: Path) -> None:
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    names = ("resume", "overwrite", "allow_changes", "push_to")
    assert [config[name] for name in names] == [False, False, False, None]


@pytest.mark.slow
def test_the_name_of_a_folder_is_no_markup_in_the_card(tmp_path: Path) -> None:
    root = tmp_path / "<i>caf\u00e9"
    for split in ("train", "val"):
        for label in ("a", "b"):
            (root / split / label).mkdir(parents=True)
            for number in range(4):
                (root / split / label / f"{number}.png").write_bytes(make_image(12, 8 + number))
    synthetic = CONFIG[CONFIG.index("data:") : CONFIG.index("save:")]
    images = "data:\n  class_path: ImageFolderData\n  init_args: {batch_size: 4, image: {height_px: 8, width_px: 8}}\n"
    options = ("--data.root", str(root), "--trainer.max_epochs", "1", "--model.optim.warmup_epochs", "0")
    assert fit(tmp_path / "run", *options, config=CONFIG.replace(synthetic, images)) == 0
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "into the 2 classes of &lt;i&gt;caf\u00e9." in card
    assert "one of the classes of &lt;i&gt;caf\u00e9," in card


@pytest.mark.slow
def test_a_run_of_some_steps_is_validated_where_it_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", [0, 1] * 12, names=["cat", "dog"])
    small = "--model.architecture resnet20 --data.image.height_px 8 --data.image.width_px 8 --data.batch_size 8"
    steps = "--trainer.max_steps 4 --model.optim.warmup_epochs 2"
    data = ["--data", "ParquetData", "--data.root", str(tmp_path), "--run_dir", str(tmp_path / "run")]
    assert main(["fit", *data, *small.split(), *steps.split(), *CPU]) == 0
    output = capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["steps"], result["epochs"], result["num_test_images"]) == (4, 2, 24)
    # Three steps are an epoch, so the fourth is the first of another one.
    assert re.search(r"^epoch 1/2 .* left$", output, re.MULTILINE)
    assert re.search(r"^epoch 2/2 .* s$", output, re.MULTILINE)
    assert f"best validation top-1 {result['val_top1']:.4f}, top-5 {result['val_top5']:.4f} in epoch" in output
    assert "4 steps in " in output
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(row["val_top1"] for row in rows)
    # Of the default rate 0.1, after three and four of the six steps of two epochs.
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.05, 0.1 * 4 / 6])


def test_a_run_folder_that_is_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").touch()
    assert main(["fit", "--run_dir", str(tmp_path / "run"), "--data", "DigitsData"]) == 2
    assert "cannot be used: Not a directory" in capsys.readouterr().err


def test_an_unknown_architecture_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["fit", "--run_dir", str(tmp_path / "run"), "--data", "DigitsData", "--model.architecture", "resnet5"]
    assert main(args) == 2
    assert "There is no architecture 'resnet5'. Did you mean" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--model.lable_smoothing", "0.1"], "Did you mean --model.label_smoothing?"),
        (["--data", "os.system"], "os.system"),
        (["--data", "subprocess.Popen"], "subprocess.Popen"),
        (["--push_to", "no name"], "no name"),
    ],
)
def test_an_invalid_option_is_refused_in_one_sentence(
    args: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--run_dir", str(tmp_path / "run"), "--data", "DigitsData", *args]) == 2
    output = capsys.readouterr().err
    assert sentence in output
    assert len(output.splitlines()) == 1
