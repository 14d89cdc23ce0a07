"""Mistakes that users of other tools make get a hint that does not mislead."""

from pathlib import Path

import pytest

from eca_hub.__main__ import main
from tests.train.runs import fit


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--data", "ImageFolder"), "There is no data module ImageFolder. Did you mean ImageFolderData?"),
        (("--trainer.gpus", "1"), "There is no option --trainer.gpus. Give --trainer.accelerator gpu"),
        (("--model.optim.lr", "0,001"), "--model.optim.lr must be a number, not '0,001'. Write a decimal point: 0.001"),
        (("--model.num_classes", "2"), "There is no option --model.num_classes. The number of classes comes from"),
        (("--lr=0.1",), "There is no option --lr. Give --model.optim.lr."),
        (("--gpus", "1"), "There is no option --gpus. Give --trainer.accelerator gpu"),
        (("--batch-size", "8"), "There is no option --batch-size. Give --data.batch_size."),
        (("--seed", "1"), "There is no option --seed. Give --seed_everything."),
        (("--data.batchsize", "8"), "There is no option --data.batchsize. "),
        (("--resume", "runs/a"), "--resume takes no value, and 'runs/a' was given. Give --run_dir runs/a --resume."),
        (("--model", "resnet50"), "--model is a group of options, not 'resnet50'. Give --model.architecture resnet50."),
        (("--trainer.max_epochs", "ten"), "--trainer.max_epochs must be a whole number, not 'ten'."),
        (("--trainer.precision", "fp16"), "--trainer.precision cannot be 'fp16'. Give one of transformer-engine"),
        (("--trainer.logger", "wandb"), "--trainer.logger cannot be wandb."),
        (("--trainer.accelerator", "cpu", "--trainer.devices", "-1"), "--trainer.devices must be 1 or more where"),
        (("--model.lable_smoothing", "0.1"), "Did you mean --model.label_smoothing?"),
    ],
)
def test_a_mistake_names_what_to_type(
    options: tuple[str, ...], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path / "run", *options) == 2
    output = capsys.readouterr().err
    assert sentence in output
    assert len(output.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("fit", "No data are given. Give --data, such as --data ImageFolderData --data.root FOLDER, or -c FILE."),
        (
            "test",
            "Neither a run nor a package and data are given. Give --run_dir of a finished run, or "
            "--model.from_pretrained PACKAGE --data ImageFolderData --data.root FOLDER.",
        ),
        (
            "predict --model.from_pretrained acme/a",
            "No data are given to evaluate the package on. Give --data ImageFolderData --data.root FOLDER, or -c FILE.",
        ),
        (
            "validate --run_dir {folder}",
            "{folder}/config.yaml, which names the data of the run, does not exist. Give --data ImageFolderData",
        ),
    ],
)
def test_a_command_without_a_run_or_data_names_what_to_type(
    command: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.format(folder=tmp_path).split()) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.partition(": ")[2].startswith(sentence.format(folder=tmp_path))
