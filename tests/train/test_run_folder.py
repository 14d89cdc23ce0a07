"""The folder of a run: the names that can be given for it."""

from pathlib import Path

import pytest

from eca_hub.__main__ import main
from eca_hub.errors import InvalidConfig
from eca_hub.train.run_folder import choose_run_dir, open_run_folder


def test_a_run_folder_in_the_home_folder_is_that_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one of a YAML file, in which no shell expands it."""
    monkeypatch.setenv("HOME", "/home/alice")
    assert choose_run_dir("~/run", "eca") == Path("/home/alice/run")


def test_a_name_that_no_run_folder_can_have_is_refused_in_a_sentence() -> None:
    with pytest.raises(InvalidConfig, match=r"cannot be used: File name too long\. Give another --run_dir\."):
        open_run_folder(Path("x" * 300), resume=False, overwrite=False)


def test_a_run_to_evaluate_whose_name_no_folder_can_have_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "--run_dir", "x" * 300]) == 2
    [sentence] = capsys.readouterr().err.splitlines()
    assert "config.yaml, which names the data of the run, does not exist." in sentence
