"""Two hosts: two network namespaces with a virtual link between them, and torchrun on each."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.train.distributed.test_processes import CONFIG, ONE, difference, finish, rows_of, start

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces take root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="network namespaces take the command ip"),
]
ADDRESSES = ("10.77.0.1", "10.77.0.2")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Names of two namespaces that reach each other by `cable0` and nothing else."""
    names = (f"eca{os.getpid()}a", f"eca{os.getpid()}b")
    with contextlib.ExitStack() as undo:
        try:
            for name in names:
                ip("netns", "add", name)
                undo.callback(ip, "netns", "delete", name)
            ip("link", "add", "cable0", "netns", names[0], "type", "veth", "peer", "cable0", "netns", names[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine makes no namespaces: {error.stderr.decode().strip()}")
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable0")
            for device in ("lo", "cable0"):
                ip("-n", name, "link", "set", device, "up")
        yield names


def torchrun(host: str, number: int, run_dir: Path, *options: str) -> subprocess.Popen[str]:
    """Start one host's part of a run."""
    config = run_dir.with_suffix(".yaml")
    config.write_text(CONFIG)
    launch = f"--nnodes 2 --node_rank {number} --nproc_per_node 1 --master_addr {ADDRESSES[0]} --master_port 29511"
    words = f"-m eca_hub fit --config {config}"
    trainer = "--trainer.num_nodes 2 --trainer.devices 1"
    command = ["ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run", *launch.split()]
    return subprocess.Popen(
        [*command, *words.split(), "--run_dir", str(run_dir), *trainer.split(), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "cable0", "TP_SOCKET_IFNAME": "cable0"},
        start_new_session=True,
    )


def lose(host: str) -> None:
    """End everything on a host at once."""
    listed = subprocess.run(["ip", "netns", "pids", host], check=True, capture_output=True, text=True)
    for pid in listed.stdout.split():
        os.kill(int(pid), signal.SIGKILL)


def test_two_hosts_train_to_the_weights_of_one_process_and_the_first_one_writes(
    hosts: tuple[str, str], tmp_path: Path
) -> None:
    first, second = (torchrun(host, number, tmp_path / "run") for number, host in enumerate(hosts))
    outputs = [finish(process) for process in (first, second)]
    assert sorted(output.count("test top-1") for output in outputs) == [0, 1]
    finish(start(tmp_path / "one", *ONE))
    assert difference(tmp_path / "run", tmp_path / "one") <= 1e-5
    assert [row["step"] for row in rows_of(tmp_path / "run")] == ["10", "20"]
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["num_devices"] == 2


def test_a_lost_host_ends_the_job_with_a_sentence_and_the_run_can_be_resumed(
    hosts: tuple[str, str], tmp_path: Path
) -> None:
    first, second = (
        torchrun(host, number, tmp_path / "run", "--trainer.max_epochs", "30") for number, host in enumerate(hosts)
    )
    assert first.stdout is not None
    next(line for line in first.stdout if line.startswith("epoch 2/"))
    lose(hosts[1])
    output, _ = first.communicate(timeout=120)
    second.communicate(timeout=60)
    assert first.returncode != 0
    assert "Another process of this run " in output
    options = ("--trainer.max_epochs", "4", "--resume", "--allow_changes")
    again = [torchrun(host, number, tmp_path / "run", *options) for number, host in enumerate(hosts)]
    assert any("Resuming from step-" in output for output in [finish(process) for process in again])
