"""Mistakes that users of other tools make get a hint that does not mislead."""

from pathlib import Path

import pytest

from tests.train.runs import fit


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--data", "ImageFolder"), "There is no data module ImageFolder. Did you mean ImageFolderData?"),
        (("--trainer.gpus", "1"), "There is no option --trainer.gpus. Give --trainer.accelerator gpu"),
        (("--model.optim.lr", "0,001"), "--model.optim.lr must be a number, not '0,001'. Write a decimal point: 0.001"),
        (("--model.num_classes", "2"), "There is no option --model.num_classes. The number of classes comes from"),
        (("--lr=0.1",), "There is no option --lr. Give --model.optim.lr."),
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
