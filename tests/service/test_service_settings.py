"""What an operator sets, and what happens when it cannot work."""

import dataclasses
import subprocess
import sys

import pytest

from eca_hub.__main__ import main
from eca_service.__main__ import read_settings
from eca_service.errors import BadSetting
from eca_service.settings import Settings


def test_the_command_line_wins_over_the_environment_and_that_over_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECA_MODEL", "acme/a, acme/b@v1")
    monkeypatch.setenv("ECA_MAX_BATCH", "3")
    monkeypatch.setenv("ECA_PORT", "81")
    settings = read_settings(["--port", "82"])
    assert settings.model == ("acme/a", "acme/b@v1")
    assert (settings.max_batch, settings.port, settings.host) == (3, 82, "127.0.0.1")
    assert read_settings(["--model", "acme/c", "--model=acme/d"]).model == ("acme/c", "acme/d")


def test_every_field_is_an_option_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        read_settings(["--help"])
    assert ending.value.code == 0
    text = capsys.readouterr().out
    for entry in dataclasses.fields(Settings):
        assert f"--{entry.name} " in text
        assert f"ECA_{entry.name.upper()}\n" in text


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ([], "No model is given"),
        (["--model", "a/b", "--model", "a/b"], "given twice"),
        (["--model", "a/b", "--max_batch", "-1"], "max_batch is -1; it must be 0 to 1024"),
        (["--model", "a/b", "--deadline_ms", "0"], "deadline_ms is 0.0"),
        (["--model", "a/b", "--port", "99999"], "port is 99999"),
        (["--model", "a/b", "--max_image_mib", "64"], "max_request_mib is 32"),
    ],
)
def test_a_setting_that_cannot_work_ends_with_2_and_one_sentence(
    argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *argv]) == 2
    written = capsys.readouterr()
    assert sentence in written.err
    assert written.err.count("\n") == 1
    assert written.out == ""


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--modle", "a/b"], "There is no option --modle. Did you mean --model?"),
        (["--max_bach=4"], "Did you mean --max_batch?"),
        (["--port", "x"], "--port must be a whole number, not 'x'."),
        (["--deadline_ms", "nan"], "--deadline_ms must be a number, not 'nan'."),
        (["stray"], "There is no option stray"),
    ],
)
def test_a_mistyped_option_gets_the_one_that_was_meant(
    argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *argv]) == 2
    written = capsys.readouterr().err
    assert sentence in written
    assert written.count("\n") == 1


def test_a_model_must_be_given() -> None:
    with pytest.raises(BadSetting):
        Settings()


def test_mistakes_and_help_are_answered_without_torch() -> None:
    code = (
        "import sys; from eca_hub.__main__ import main\n"
        "assert main(['serve']) == 2\n"
        "try: main(['serve', '--help'])\n"
        "except SystemExit as ending: assert ending.code == 0\n"
        "import eca_service.app, eca_service.http.server, eca_service.models.loader\n"
        "assert not {'torch', 'PIL', 'timm'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
