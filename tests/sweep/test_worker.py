"""The process of one run of a sweep."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eca_hub.sweep.worker import run_once

WAITS = "import sys; print(sys.argv[1:], flush=True); sys.stdin.read()"
"""Prints its arguments, then runs until it is killed."""


def start(run_dir: Path) -> "subprocess.Popen[str]":
    code = (
        "import sys; from pathlib import Path; from eca_hub.sweep.worker import run_once; "
        f"run_once(Path(sys.argv[1]), ['--seed', '3'], command=(sys.executable, '-c', {WAITS!r}))"
    )
    command = [sys.executable, "-c", code, str(run_dir)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def is_locked(run_dir: Path) -> bool:
    descriptor = os.open(run_dir.with_name(f".{run_dir.name}.lock"), os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def test_the_run_itself_holds_the_lock_until_it_dies(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with start(run_dir) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == f"['--seed', '3', '--run_dir', '{run_dir}', '--resume']\n"
        assert is_locked(run_dir)
        run.kill()
    assert not is_locked(run_dir)


def test_a_finished_run_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.json").touch()
    (tmp_path / "run" / "result.json").touch()
    monkeypatch.setattr(os, "execv", lambda path, words: pytest.fail("was started"))
    run_once(tmp_path / "run", [])


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_on_a_file_system_without_locks_the_run_is_started(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    started = list[list[str]]()
    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(os, "execv", lambda path, words: started.append(words))
    run_once(tmp_path / "run", [], command=["fit"])
    assert started == [["fit", "--run_dir", str(tmp_path / "run"), "--resume"]]
