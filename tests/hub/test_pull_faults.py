"""One cache for many processes that pull: some are killed, some wait, and the disk is full."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from eca_hub.errors import HubUnavailable
from eca_hub.hub.pull import check_cache, pull
from tests.hub.hostile import COMMIT, MODEL_ID, FaultyHub, Response, files_of

WEIGHTS = "model.safetensors"
NUM_PULLERS = 8
PULLER = """
import hashlib, resource, sys
from eca_hub.errors import EcaHubError
from eca_hub.hub.pull import pull
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    package = pull("acme/digits", endpoint=sys.argv[1])
except EcaHubError as error:
    print(f"{type(error).__name__}: {error}")
else:
    print(package.revision, hashlib.sha256(package.weights_bytes).hexdigest())
"""


class Watch:
    """Records the requests, and can hold the first body back in the middle."""

    def __init__(self) -> None:
        self.num_waiting = 0
        self.some_waiting = threading.Event()
        self.all_waiting = threading.Event()

    def fault(self, method: str, name: str, nth: int, response: Response) -> None:
        if name == WEIGHTS and method == "HEAD":
            self.num_waiting = nth + 1
            if self.num_waiting == NUM_PULLERS:
                self.all_waiting.set()
        if name == WEIGHTS and method == "GET" and nth == 0:
            # Half of the file, and then nothing: the client that requested it holds the lock.
            response.is_stalled, response.stalled_at = True, len(response.body) // 2
            self.some_waiting.set()


@pytest.fixture
def hub(tiny_package: Path) -> Iterator[FaultyHub]:
    with FaultyHub(files_of(tiny_package)).running() as running:
        yield running


@pytest.fixture
def start(hub: FaultyHub, cache: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process that pulls into the cache of the test, and kill what is left of it afterwards."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        command = [sys.executable, "-c", PULLER, hub.url, *arguments]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def what_is_right(hub: FaultyHub) -> str:
    return f"{COMMIT} {hashlib.sha256(hub.files[WEIGHTS]).hexdigest()}\n"


@pytest.mark.slow
def test_eight_pull_at_once_and_the_one_with_the_lock_is_killed(
    hub: FaultyHub, start: Callable[..., subprocess.Popen[str]]
) -> None:
    watch = Watch()
    hub.fault = watch.fault
    first = start()
    assert watch.some_waiting.wait(60)
    others = [start() for _ in range(NUM_PULLERS - 1)]
    assert watch.all_waiting.wait(60)
    first.send_signal(signal.SIGKILL)
    for process in others:
        # Far below the half minute after which a stale lock would have to be given up.
        assert process.communicate(timeout=100)[0] == what_is_right(hub)
    assert hub.num_bytes_sent < 2 * sum(map(len, hub.files.values()))


def test_a_puller_killed_half_way_leaves_no_half_file_behind(
    hub: FaultyHub, start: Callable[..., subprocess.Popen[str]], cache: Path
) -> None:
    watch = Watch()
    hub.fault = watch.fault
    first = start()
    assert watch.some_waiting.wait(60)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert [each.path.name for each in check_cache(MODEL_ID)] == [hashlib.sha256(hub.files["config.json"]).hexdigest()]
    assert start().communicate(timeout=100)[0] == what_is_right(hub)
    assert all(each.is_intact for each in check_cache(MODEL_ID))


def test_half_a_cache_without_the_hub_is_a_clear_error_and_not_half_a_model(
    hub: FaultyHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull(MODEL_ID, endpoint=hub.url)
    [weights] = [path for path in cache.rglob(WEIGHTS) if path.is_symlink()]
    weights.resolve().unlink()
    weights.unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for revision in ("main", COMMIT):
        with pytest.raises(HubUnavailable, match=f"the cache does not hold {MODEL_ID}"):
            pull(MODEL_ID, revision, endpoint=hub.url)


@pytest.mark.slow
def test_a_cache_that_may_not_grow_is_named_and_the_next_pull_is_good(
    hub: FaultyHub, start: Callable[..., subprocess.Popen[str]]
) -> None:
    refused = start(str(len(hub.files[WEIGHTS]) // 2)).communicate(timeout=60)[0]
    assert refused.startswith("HubError: ")
    assert "cannot be used: File too large. " in refused
    assert "HF_HOME names the folder of the cache" in refused
    assert start().communicate(timeout=60)[0] == what_is_right(hub)


@pytest.mark.slow
def test_a_cache_on_a_full_disk_is_named_and_the_next_pull_is_good(hub: FaultyHub, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    size = f"size={len(hub.files[WEIGHTS]) // 2}"
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("a disk of its own needs root")
    script = f"""
        mount -t tmpfs -o {size} tmpfs {disk} && {sys.executable} -c "$PULLER" {hub.url} &&
        mount -o remount,size=64m {disk} && {sys.executable} -c "$PULLER" {hub.url}
    """
    environment = {**os.environ, "PULLER": PULLER, "HF_HUB_CACHE": str(disk), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = ["unshare", "-m", "sh", "-c", script]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120).stdout
    refused, pulled = output.split("\n", 1)[0], output.splitlines(keepends=True)[-1]
    assert refused.startswith("HubError: ")
    assert "cannot be used: No space left on device." in refused
    assert pulled == what_is_right(hub)
