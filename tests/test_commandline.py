"""The command line: fast, and a mistake gets one sentence and exit code 2."""

import subprocess
import sys
from pathlib import Path

import pytest

from eca_hub.__main__ import COMMANDS, main
from tests.conftest import make_picture


def run_command(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "eca_hub", *args], capture_output=True, text=True, check=False)


def test_help_is_one_line_a_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from eca_hub.__main__ import main; main(['--help']); "
        "print(sorted({'torch', 'lightning', 'timm', 'huggingface_hub', 'jsonargparse', 'PIL'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    *lines, imported = output.splitlines()
    assert [name for name in COMMANDS if not any(line.split()[:1] == [name] for line in lines)] == []
    assert imported == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_needs_no_torch(command: str) -> None:
    code = (
        "import sys; from eca_hub.__main__ import main\n"
        f"try: code = main([{command!r}, '--help'])\nexcept SystemExit as end: code = end.code\n"
        "print(code, 'torch' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "0 False"
    assert f"usage: eca-hub {command}" in output


def test_a_mistyped_command_gets_the_one_that_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clasify"]) == 2
    assert capsys.readouterr().err == (
        "eca-hub: There is no command 'clasify'. Did you mean 'classify'? All commands: eca-hub --help\n"
    )


@pytest.mark.parametrize(
    ("args", "meant"),
    [
        (["classify", "x.png", "--model", "a/b", "--topk", "3"], "--top_k"),
        (["push", "run", "a/b", "--privat"], "--private"),
        (["fit", "--run_dri", "x"], "--run_dir"),
        (["fit", "--model.lable_smoothing", "0.1"], "--model.label_smoothing"),
        (["localhub", "--rot", "x"], "--root"),
        (["serve", "--max_bach", "3"], "--max_batch"),
        (["quickstart", "--work_dir", "x"], "--workdir"),
    ],
)
def test_a_mistyped_option_gets_the_one_that_was_meant(
    args: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == 2
    error = capsys.readouterr().err
    assert f"Did you mean {meant}?" in error
    assert len(error.splitlines()) == 1


def test_a_missing_extra_names_the_install_command() -> None:
    code = "import sys; sys.modules['lightning'] = None; from eca_hub.__main__ import main; sys.exit(main(['fit']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'eca-hub[train]'" in done.stderr


def test_classify_names_what_is_in_each_picture(tiny_package: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(make_picture())
    bad.write_bytes(b"nothing")
    done = run_command("classify", str(good), str(bad), "--model", str(tiny_package), "--top_k", "2")
    assert done.returncode == 2
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{good}  ")
    assert first.count(".") >= 2
    assert second.startswith(f"{bad}: The bytes are no picture")
    assert done.stderr == ""


def test_a_folder_without_a_package_is_said_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", "x.png", "--model", str(tmp_path)]) == 2
    where = f"{tmp_path} holds no config.json, neither does {tmp_path / 'model'}."
    assert capsys.readouterr().err == f"eca-hub classify: {where} Did the training run end?\n"


def test_a_model_that_is_neither_folder_nor_name_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", "x.png", "--model", "nosuch"]) == 2
    assert "'nosuch' is neither a folder nor OWNER/NAME" in capsys.readouterr().err
