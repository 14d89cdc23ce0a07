"""The hub is killed at every moment of a push: readers see the old state or the new one, and fsck is clean."""

import concurrent.futures
import contextlib
import os
import random
import resource
import socket
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

from eca_hub.__main__ import main
from eca_hub.localhub.fsck import check
from tests.localhub.faults import FAULT_POINTS, Fault, inject
from tests.localhub.hub_process import client_of, opened_hub, running_hub
from tests.localhub.push_client import REPO, push
from tests.localhub.xet_client import push_by_xet

OLD = ({"config.json": b"{}", "README.md": b"# old"}, {"model.safetensors": b"old" * 1000})
NEW = ({"config.json": b"{}", "README.md": b"# new"}, {"model.safetensors": os.urandom(2 << 20)})
# A hub passes "identity." when it starts.
PUSH_POINTS = [name for name in FAULT_POINTS if not name.startswith("identity.")]
# Each is a process that starts; the other points are slow tests.
SHORT_LIST = (
    "blob.before_rename",
    "refs.after_rename",
)


def state_of(client: httpx2.Client) -> tuple[list[str], list[bytes]]:
    """The titles of the history and the content of every file."""
    response = client.get(f"/api/models/{REPO}")
    if response.status_code == 404:
        return [], []
    commits = client.get(f"/api/models/{REPO}/commits/main").raise_for_status().json()
    names = [item["rfilename"] for item in response.json()["siblings"] if item["rfilename"] != ".gitattributes"]
    contents = [client.get(f"/{REPO}/resolve/main/{name}").raise_for_status().content for name in names]
    return [commit["title"] for commit in commits], contents


def contents_of(files: tuple[dict[str, bytes], dict[str, bytes]]) -> list[bytes]:
    merged = files[0] | files[1]
    return [merged[name] for name in sorted(merged)]


@pytest.mark.parametrize(
    "point", [pytest.param(name, marks=() if name in SHORT_LIST else pytest.mark.slow) for name in PUSH_POINTS]
)
def test_killed_at_any_moment_of_a_push_the_hub_shows_all_or_nothing(point: str, tmp_path: Path) -> None:
    pushing = push_by_xet if point.startswith(("xorb.", "shard.")) else push
    with running_hub(tmp_path / "hub", fault=f"{point}:kill") as hub, client_of(hub) as client:
        with pytest.raises(httpx2.TransportError):
            pushing(client, *NEW)
        assert hub.process.wait(60) == -9
    assert check(tmp_path / "hub").problems == []
    with opened_hub(tmp_path / "hub") as client:
        titles, contents = state_of(client)
        assert titles in ([], ["initial commit"], ["push", "initial commit"])
        assert contents == (contents_of(NEW) if "push" in titles else [])
        pushing(client, *NEW)
        assert state_of(client) == (["push", "initial commit"], contents_of(NEW))
        assert not list((tmp_path / "hub" / "tmp").iterdir())
    assert check(tmp_path / "hub").problems == []


@pytest.mark.parametrize(
    "point",
    [
        "refs.after_rename",
        *(pytest.param(f"{name}.before_rename", marks=pytest.mark.slow) for name in ("refs", "commit")),
    ],
)
def test_killed_during_a_second_push_the_hub_shows_the_old_commit_or_the_new_one(point: str, tmp_path: Path) -> None:
    with opened_hub(tmp_path / "hub") as client:
        push(client, *OLD)
    killed = running_hub(tmp_path / "hub", fault=f"{point}:kill")
    with killed as hub, client_of(hub) as client, pytest.raises(httpx2.TransportError):
        push(client, *NEW)
    with opened_hub(tmp_path / "hub") as client:
        expected = NEW if point == "refs.after_rename" else OLD
        assert state_of(client)[1] == contents_of(expected)
        push(client, *NEW)
        assert state_of(client) == (["push", "push", "initial commit"], contents_of(NEW))


@pytest.mark.parametrize(
    "point",
    [
        "identity.before_rename",
        *(pytest.param(f"identity.{name}", marks=pytest.mark.slow) for name in ("before_write", "after_rename")),
    ],
)
def test_killed_at_its_first_start_a_hub_starts_again(point: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError), running_hub(tmp_path / "hub", fault=f"{point}:kill"):
        pass
    with opened_hub(tmp_path / "hub") as client:
        push(client, *NEW)


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the hub in this process fail at the next passage of a moment."""

    def set_fault(text: str) -> None:
        inject(Fault(text), monkeypatch)

    return set_fault


# One of each kind of file; the other points are slow tests.
FULL_DISK = (
    "blob.half_written",
    "commit.before_write",
    "names.before_write",
    "refs.after_rename",
    "shard.before_rebuild",
    "xorb.before_rename",
)


@pytest.mark.parametrize(
    "point", [pytest.param(name, marks=() if name in FULL_DISK else pytest.mark.slow) for name in PUSH_POINTS]
)
def test_a_full_disk_is_a_507_and_changes_nothing(point: str, tmp_path: Path, fault: Callable[[str], None]) -> None:
    with opened_hub(tmp_path / "hub") as client:
        push(client, *OLD)
        before = state_of(client)
        pushing = push_by_xet if point.startswith(("xorb.", "shard.")) else push
        if point.startswith(("repo.", "names.")):
            pushing = partial(push, repo="acme/other")
        fault(f"{point}:enospc")
        with pytest.raises(httpx2.HTTPStatusError) as caught:
            pushing(client, *NEW)
        assert caught.value.response.status_code == 507
        assert caught.value.response.headers["x-error-code"] == "disk_full"
        if point != "refs.after_rename":
            assert state_of(client) == before
        assert not list((tmp_path / "hub" / "tmp").iterdir())
        push(client, *NEW)
        assert state_of(client)[1] == contents_of(NEW)
    assert check(tmp_path / "hub").problems == []


def test_a_limit_on_the_size_of_files_is_a_507_like_a_full_disk(tmp_path: Path) -> None:
    with running_hub(tmp_path / "hub") as hub, client_of(hub) as client:
        push(client, *OLD)
        before = state_of(client)
        resource.prlimit(hub.process.pid, resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        for pushing in (push, push_by_xet):
            with pytest.raises(httpx2.HTTPStatusError) as caught:
                pushing(client, *NEW)
            assert caught.value.response.status_code == 507
        assert state_of(client) == before
    assert check(tmp_path / "hub").problems == []


def test_an_error_after_the_rename_does_not_let_a_later_commit_drop_the_renamed_one(
    tmp_path: Path, fault: Callable[[str], None]
) -> None:
    with opened_hub(tmp_path / "hub") as client:
        push(client, *OLD)
        fault("refs.after_rename:raise")
        with pytest.raises(httpx2.HTTPStatusError):
            push(client, {"a.txt": b"a"}, {})
        push(client, {"b.txt": b"b"}, {})
        assert state_of(client)[1] == [b"# old", b"a", b"b", b"{}", b"old" * 1000]


@pytest.mark.slow
def test_sixteen_pushers_make_a_linear_history_in_which_every_tree_is_whole(tmp_path: Path) -> None:
    with running_hub(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo(REPO)

        def push_until_it_is_on_top(number: int) -> int:
            for attempt in range(100):
                parent = api.model_info(REPO).sha
                pair = [CommitOperationAdd(name, b"%d" % number) for name in ("config.json", "labels.json")]
                own = CommitOperationAdd(f"{number}.txt", b"mine")
                try:
                    api.create_commit(REPO, [*pair, own], commit_message=f"push {number}", parent_commit=parent)
                    return attempt
                except HfHubHTTPError as error:
                    if error.response.status_code != 412:
                        raise
            raise AssertionError("never on top")

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            list(pool.map(push_until_it_is_on_top, range(16)))
        commits = api.list_repo_commits(REPO)
        assert len(commits) == 17
        assert len({commit.title for commit in commits}) == 17
        for age, commit in enumerate(commits[:-1]):
            files = api.list_repo_files(REPO, revision=commit.commit_id)
            assert len([name for name in files if name.endswith(".txt")]) == 16 - age
            with httpx2.Client(base_url=f"{hub.url}/{REPO}/resolve/{commit.commit_id}/", verify=False) as client:
                assert client.get("config.json").content == client.get("labels.json").content
    assert check(tmp_path / "hub").problems == []


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_sixteen_pushers_of_a_hub_that_is_killed_ten_times_make_48_commits(tmp_path: Path) -> None:
    rng = random.Random(7)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options, token, finished = ("--port", str(port), "--token", "local-token"), "local-token", threading.Event()
    api = HfApi(endpoint=f"http://127.0.0.1:{port}", token=token)

    def push_three(number: int) -> None:
        for part in range(3):
            while not push_once(f"{number}-{part}"):
                assert not finished.is_set()

    def push_once(name: str) -> bool:
        """Make a commit, unless an earlier attempt, whose response was lost, has made it."""
        files = {"config.json": b"{}", f"{name}.txt": name.encode(), f"{name}.bin": os.urandom(20_000)}
        operations = [CommitOperationAdd(path, content) for path, content in files.items()]
        try:
            commits = api.list_repo_commits(REPO)
            if name not in [commit.title for commit in commits]:
                api.create_commit(REPO, operations, commit_message=name, parent_commit=commits[0].commit_id)
            return True
        except HfHubHTTPError as error:
            if error.response.status_code != 412:
                raise
        except (httpx2.TransportError, RuntimeError, AttributeError):
            # The hub was killed. Xet raises RuntimeError; AttributeError, where another thread of the client, which
            # shares one session among threads, has just closed that session.
            pass
        return False

    with running_hub(tmp_path / "hub", options=options):
        api.create_repo(REPO)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        try:
            pushers = [pool.submit(push_three, number) for number in range(16)]
            for point in rng.sample(
                [point for point in PUSH_POINTS if point.startswith(("blob.", "commit.", "refs."))], 10
            ):
                with running_hub(tmp_path / "hub", fault=f"{point}:kill:{rng.randint(1, 5)}", options=options) as hub:
                    assert hub.process.wait(600) == -9
                assert check(tmp_path / "hub").problems == []
            with running_hub(tmp_path / "hub", options=options):
                concurrent.futures.wait(pushers, timeout=600)
                finished.set()
                for pusher in pushers:
                    pusher.result()
                commits = api.list_repo_commits(REPO)
                assert len(commits) == 49
                assert {commit.title for commit in commits[:-1]} == {
                    f"{n}-{part}" for n in range(16) for part in range(3)
                }
                for age, commit in enumerate(commits[:-1]):
                    names = api.list_repo_files(REPO, revision=commit.commit_id)
                    assert len([name for name in names if name.endswith((".txt", ".bin"))]) == 2 * (48 - age)
        finally:
            finished.set()
    assert check(tmp_path / "hub").problems == []


@pytest.mark.soak
def test_killed_at_random_moments_of_thirty_pushes_fsck_stays_clean(tmp_path: Path) -> None:
    rng = random.Random(7)
    acknowledged: set[str] = set()
    for number in range(30):
        with running_hub(tmp_path / "hub") as hub, client_of(hub) as client:
            killer = threading.Timer(rng.uniform(0.0, 0.2), hub.process.kill)
            killer.start()
            with contextlib.suppress(httpx2.TransportError):
                for part in range(50):
                    name = f"{number}-{part}"
                    push(client, {f"{name}.txt": b"x"}, {f"{name}.bin": os.urandom(1 << 20)})
                    acknowledged |= {f"{name}.txt", f"{name}.bin"}
            killer.join()
        assert check(tmp_path / "hub").problems == []
    with opened_hub(tmp_path / "hub") as client:
        commit = push(client, {"last.txt": b"x"}, {})
        listed = client.get(f"/api/models/{REPO}/revision/{commit}").json()["siblings"]
        assert acknowledged <= {item["rfilename"] for item in listed}


def test_a_hub_that_is_stopped_during_a_write_ends_with_it_and_keeps_its_lock_until_then(tmp_path: Path) -> None:
    with (
        concurrent.futures.ThreadPoolExecutor(1) as pool,
        running_hub(tmp_path, fault="refs.before_rename:hang:2") as hub,
        client_of(hub) as client,
    ):
        pushing = pool.submit(push, client, *NEW)
        assert hub.process.stdout is not None
        assert hub.process.stdout.readline() == "hanging\n"
        hub.process.terminate()
        assert hub.process.wait(20) == 0
        assert isinstance(pushing.exception(), httpx2.TransportError)
    assert main(["localhub", "gc", "--root", str(tmp_path)]) == 0
    assert check(tmp_path).problems == []
