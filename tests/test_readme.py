"""The README's commands, typed as a new user would."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from eca_hub import quickstart
from eca_hub.__main__ import COMMANDS
from tests.hub import ecanet

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README.read_text(), flags=re.DOTALL | re.MULTILINE)

PYTHON = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.DOTALL | re.MULTILINE)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_and_leave_nothing(script: str, folder: Path, environment: dict[str, str]) -> str:
    """Run a script to its end; what it left in the background goes with it."""
    with (folder / "output.txt").open("w+") as output:
        shell = subprocess.Popen(
            ["bash", "-c", script],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = shell.wait(timeout=560)
        finally:
            # A script that has failed early may have left no process.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
        text = (folder / "output.txt").read_text()
    assert code == 0, text
    return text


def test_the_first_screen_of_the_readme_is_a_sentence_and_the_two_commands() -> None:
    first_screen = "\n".join(README.read_text().splitlines()[:20])
    assert "pip install -e '.[train,serve]' && eca-hub quickstart" in first_screen
    assert "pip install -e '.[dev]' && pytest" in first_screen


def test_the_output_of_the_quickstart_has_the_rows_that_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [block] = re.findall(r"^```text\n(  test accuracy.*?)^```", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "0.png").touch()
    quickstart._print_table(quickstart.Report(str(tmp_path)), tmp_path, {}, [])
    printed = re.findall(r"^  (\w+(?: \w+)*)  ", capsys.readouterr().out.split("Next:")[0], flags=re.MULTILINE)
    shown = re.findall(r"^  (\w+(?: \w+)*)  ", block, flags=re.MULTILINE)
    assert shown == [name for name in printed if name != "files"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_commands_of_the_readme_run_as_printed(tmp_path: Path) -> None:
    [steps] = [block for block in BLOCKS if "eca-hub localhub" in block]
    [training] = [block for block in BLOCKS if "eca-hub test" in block]
    [python, *_] = PYTHON
    # Other ports, so that nothing else here is asked, and a short training; every other word stands as printed.
    for port in ("7860", "8000"):
        steps = steps.replace(port, str(free_port()))
    steps = steps.replace("--run_dir runs/digits", "--run_dir runs/digits --trainer.max_epochs 2")
    (tmp_path / "experiments").symlink_to(README.parent / "experiments")
    (tmp_path / "use.py").write_text(python)
    Image.new("RGB", (320, 240), "orange").save(tmp_path / "photo.jpg")
    script = f"set -e\npython use.py\n{steps}\n{training}"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "PATH": path}
    output = run_and_leave_nothing(script, tmp_path, environment)
    for expected in (
        "package: runs/digits/model",
        "published as",
        '"predictions"',
        "eca_resnet50",
        "Prediction(label=",
    ):
        assert expected in output


@pytest.mark.slow
def test_the_networks_of_the_readme_can_be_made_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(ecanet.released(ecanet.make("resnet50")), "eca_resnet50_k3557.pth.tar")
    [networks] = [block for block in PYTHON if "create_model" in block]
    names: dict[str, Any] = {}
    exec(networks, names)
    assert names["config"].attention_args["kernel_sizes"] == [3, 5, 5, 7]


def test_every_setting_and_command_that_the_readme_names_exists() -> None:
    text = README.read_text()
    typed = re.findall(r"`eca-hub ([a-z]+)", text) + re.findall(
        r"(?:^|&& )eca-hub ([a-z]+)", "".join(BLOCKS), re.MULTILINE
    )
    assert len(typed) > 10
    assert [name for name in typed if name not in COMMANDS] == []
    tree = re.findall(r"^  (\w+\.py|\w+/) ", text, flags=re.MULTILINE)
    assert [name for name in tree if not (README.parent / "eca_hub" / name).exists()] == []
