"""Signals: recorded while a checkpoint can be saved; a second Ctrl-C or the timeout exits at once."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eca_hub.train.distributed import signals
from eca_hub.train.distributed.launcher import end_while_connecting
from eca_hub.train.distributed.signals import Stopped, StopRequest


@pytest.fixture
def request_() -> Iterator[StopRequest]:
    """A request whose handlers are installed and deferred."""
    before = signal.getsignal(signal.SIGCHLD)
    request = StopRequest()
    with request.installed():
        request.defer()
        yield request
    signal.signal(signal.SIGCHLD, before)


def test_a_signal_is_recorded_and_interrupts_nothing(request_: StopRequest) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    assert request_.signal_number == signal.SIGTERM
    with pytest.raises(Stopped) as ended:
        request_.exit()
    assert ended.value.code == 143


def test_a_second_ctrl_c_exits_at_once(request_: StopRequest, capfd: pytest.CaptureFixture[str]) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(Stopped) as ended:
        os.kill(os.getpid(), signal.SIGINT)
    assert ended.value.code == 130
    assert capfd.readouterr().err == (
        "Stopped without saving. The last checkpoint is intact; --resume continues from it.\n"
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_exits_at_once_where_nothing_has_to_be_saved(number: int, code: int, request_: StopRequest) -> None:
    request_.raise_if_requested()
    with pytest.raises(Stopped) as ended:
        os.kill(os.getpid(), number)
    assert ended.value.code == code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_process_that_waits_outside_python_for_others_to_connect(number: int, code: int) -> None:
    # A mutex that is locked twice blocks, as a connection to another process does in C++. The handlers do nothing, in
    # case the signal arrives before that.
    program = (
        "import ctypes, signal\n"
        "from eca_hub.train.distributed.signals import StopRequest\n"
        "mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock\n"
        "request = StopRequest()\n"
        "with request.installed(), request.connecting():\n"
        "    for number in (signal.SIGINT, signal.SIGTERM):\n"
        "        signal.signal(number, lambda *_: None)\n"
        "    print('blocked', lock(mutex), flush=True)\n"
        "    lock(mutex)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"blocked 0\n"
        process.send_signal(number)
        try:
            assert process.wait(60) == code
            assert process.stderr.read() == (
                b"eca-hub: Stopped while waiting for the other processes of this run to connect.\n"
            )
        finally:
            process.kill()


class Connection:
    """A strategy that records whether a second thread runs while it connects."""

    launcher = None
    was_watched = False

    def __init__(self) -> None:
        self.num_threads = threading.active_count()

    def setup_environment(self) -> None:
        self.was_watched = threading.active_count() > self.num_threads


@pytest.mark.parametrize("num_processes", [1, 2])
def test_only_a_process_that_connects_to_others_is_ended_outside_its_handlers(num_processes: int) -> None:
    strategy, request = Connection(), StopRequest()
    trainer: Any = SimpleNamespace(world_size=num_processes, strategy=strategy)
    with request.installed():
        end_while_connecting(trainer, request)
        strategy.setup_environment()
        assert strategy.was_watched == (num_processes > 1)
        for change in (request.defer, request.raise_if_requested):
            change()
            assert threading.active_count() == strategy.num_threads, "a long write would be cut"


def test_a_forwarded_copy_of_a_signal_changes_nothing(request_: StopRequest) -> None:
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGTERM)
    assert request_.signal_number == signal.SIGTERM


def test_the_timeout_exits(request_: StopRequest) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    left_s, _ = signal.getitimer(signal.ITIMER_REAL)
    assert 0 < left_s <= signals.GRACE_S < 10
    with pytest.raises(Stopped) as ended:
        os.kill(os.getpid(), signal.SIGALRM)
    assert ended.value.code == 143


def test_a_save_that_has_begun_has_no_timeout(request_: StopRequest) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    request_.cancel_timeout()
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_the_previous_handlers_are_restored() -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    with StopRequest().installed():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize(
    ("array", "job"), [({}, "7"), ({"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}, "7_3")]
)
def test_sigusr1_in_a_job_of_slurm_requeues_it(
    array: dict[str, str],
    job: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", **array}.items():
        monkeypatch.setenv(name, value)
    before = signal.getsignal(signal.SIGCHLD)
    request_ = StopRequest()
    with request_.installed():
        request_.defer()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert request_.is_requested
        assert not 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= signals.GRACE_S
        with pytest.raises(Stopped) as ended:
            request_.exit()
    signal.signal(signal.SIGCHLD, before)
    assert ended.value.code == 128 + signal.SIGUSR1
    assert (tmp_path / "called").read_text() == f"requeue {job}\n"
    assert capsys.readouterr().out == f"SLURM requeues job {job}.\n"


def test_outside_slurm_sigusr1_is_left_alone() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with StopRequest().installed():
        assert signal.getsignal(signal.SIGUSR1) == before
