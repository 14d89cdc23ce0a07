"""The quickstart, run as a new user would."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from eca_hub.processes import ProcessFailed
from eca_hub.quickstart import Report, _hub_environment, _make_workdir, _read_precision

REPOSITORY = Path(__file__).parents[1]


def test_the_recipe_is_that_of_the_experiments() -> None:
    """The installed package has no experiments, so it has a copy."""
    installed, experiment = [
        yaml.safe_load((REPOSITORY / path).read_text())
        for path in ("eca_hub/quickstart.yaml", "experiments/configs/digits/eca.yaml")
    ]
    assert installed == experiment


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


def quickstart(workdir: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "eca_hub", "quickstart", "--workdir", str(workdir), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_the_quickstart_trains_publishes_serves_and_classifies(tmp_path: Path) -> None:
    process = quickstart(tmp_path / "work", "--json")
    output, log = process.communicate()
    assert process.returncode == 0, log
    report = json.loads(output)
    assert report["test_top1"] >= 0.97
    assert report["precision"] in ("float32", "bfloat16", "float16")
    assert report["max_difference"] <= report["allowed_difference"] <= 0.02
    # Where two classes are close, a faster number format may name the other one.
    assert report["num_same_top1"] >= 358
    assert abs(report["served_top1"] - report["test_top1"]) <= 2 / 360
    assert report["num_images"] == 360
    assert report["mean_batch_size"] > 1.5
    assert re.fullmatch(r"[0-9a-f]{40}", report["revision"])
    assert set(report["seconds"]) == {"train", "publish", "serve", "classify"}
    assert {"run", "hub", "logs", "digits"} <= {path.name for path in Path(report["workdir"]).iterdir()}
    assert processes_that_mention(str(tmp_path)) == []


def test_variables_that_configure_a_service_of_the_user_do_not_reach_that_of_the_quickstart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hub.token").write_text("sesame")
    for name in ("ECA_API_KEYS", "ECA_PORT", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    environment = _hub_environment(tmp_path)
    assert environment["no_proxy"] == environment["NO_PROXY"] == "127.0.0.1,localhost"
    assert not [name for name in os.environ if name.startswith("ECA_") or name == "HF_HUB_OFFLINE"]
    assert "PATH" in os.environ


def test_a_home_directory_is_expanded_in_the_work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _make_workdir("~/work") == tmp_path / "work"


def test_a_service_that_refuses_to_list_its_models_ends_the_quickstart_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    httpx2 = pytest.importorskip("httpx2")
    monkeypatch.setattr(httpx2, "get", lambda url: httpx2.Response(401, text="no key"))
    with pytest.raises(ProcessFailed, match="/v1/models got status 401: no key"):
        _read_precision("http://127.0.0.1:8000", Report("work"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
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


@pytest.mark.slow
def test_a_quickstart_that_fails_reports_the_step_and_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    process = quickstart(tmp_path)
    _, log = process.communicate()
    assert process.returncode == 1
    assert "`eca-hub fit` ended with exit code 2." in log
    assert processes_that_mention(str(tmp_path)) == []
