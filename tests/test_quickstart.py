"""The main job, and the README's commands, as a stranger would type them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README.read_text(), flags=re.DOTALL | re.MULTILINE)


def processes_that_mention(text: str) -> list[str]:
    """Command lines of running processes that hold a text, this one's own excepted."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue  # it has ended since
            if text in command:
                found.append(command)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def quickstart(workdir: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "eca_hub", "quickstart", "--workdir", str(workdir), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_quickstart_trains_publishes_serves_and_classifies(tmp_path: Path) -> None:
    process = quickstart(tmp_path / "work", "--json")
    output, log = process.communicate()
    assert process.returncode == 0, log
    report = json.loads(output)
    assert report["test_top1"] >= 0.97
    assert report["served_top1"] == report["test_top1"]
    assert report["num_images"] == 360
    assert report["mean_batch_size"] > 1.5
    assert re.fullmatch(r"[0-9a-f]{40}", report["revision"])
    assert set(report["seconds"]) == {"train", "publish", "serve", "classify"}
    assert {"run", "hub", "logs", "digits"} <= {path.name for path in Path(report["workdir"]).iterdir()}
    assert processes_that_mention(str(tmp_path)) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_quickstart_leaves_no_process(tmp_path: Path, number: int) -> None:
    process = quickstart(tmp_path / "work")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 1/"):
            break
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert processes_that_mention(str(tmp_path)) == []


def test_a_quickstart_that_fails_in_the_middle_says_where_and_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    process = quickstart(tmp_path)
    _, log = process.communicate()
    assert process.returncode == 1
    assert "`eca-hub fit` ended with exit code 2." in log
    assert processes_that_mention(str(tmp_path)) == []


def test_the_first_screen_of_the_readme_is_a_sentence_and_the_two_commands() -> None:
    first_screen = "\n".join(README.read_text().splitlines()[:20])
    assert "pip install -e '.[train,serve]' && eca-hub quickstart" in first_screen
    assert "pip install -e '.[dev]' && pytest" in first_screen


def test_the_commands_of_the_readme_run_as_printed(tmp_path: Path) -> None:
    [steps] = [block for block in BLOCKS if "eca-hub localhub" in block]
    [python] = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    # Other ports, so that nothing else here is asked, and a short training; every other word stands as printed.
    for port in ("7860", "8000"):
        steps = steps.replace(port, str(free_port()))
    steps = steps.replace("--run_dir runs/digits", "--run_dir runs/digits --trainer.max_epochs 2")
    (tmp_path / "experiments").symlink_to(README.parent / "experiments")
    (tmp_path / "use.py").write_text(python)
    script = f"set -e\ntrap 'kill $(jobs -p)' EXIT\n{steps}\npython use.py\n"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "PATH": path}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "package: runs/digits/model" in done.stdout
    assert "published as" in done.stdout
    assert '"predictions"' in done.stdout
    assert "eca_resnet50" in done.stdout
    assert "Prediction(label=" in done.stdout


def test_every_setting_and_command_that_the_readme_names_exists() -> None:
    from eca_hub.__main__ import COMMANDS

    text = README.read_text()
    assert {name for name in re.findall(r"eca-hub ([a-z]+)", text) if name not in COMMANDS} <= {"can"}
    tree = re.findall(r"^  (\w+\.py|\w+/) ", text, flags=re.MULTILINE)
    assert [name for name in tree if not (README.parent / "eca_hub" / name).exists()] == []
