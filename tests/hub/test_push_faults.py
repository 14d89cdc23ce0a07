"""Publishing with faults: readers see the old revision or the new one, and pushing again succeeds."""

import concurrent.futures
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import HfApi, set_client_factory
from huggingface_hub.utils._http import default_client_factory

from eca_hub.errors import AccessDenied, EcaHubError, HubError, HubUnavailable, PushConflict
from eca_hub.hub import http_limits
from eca_hub.hub.pull import pull
from eca_hub.hub.push import push_folder
from eca_hub.localhub.fsck import check
from tests.localhub.hub_process import Hub, running_hub

# A process that exits during a push, before or after its nth request, as after `kill -9`.
DYING_PUSHER = """
import os, signal, sys
folder, model_id, url, token, moment, nth = sys.argv[1:]
import httpx2
from huggingface_hub import set_client_factory
from eca_hub.hub.push import push_folder
left = [int(nth)]
def die(_):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
hooks = {moment: [die]}
set_client_factory(lambda: httpx2.Client(follow_redirects=True, timeout=None, verify=False, event_hooks=hooks))
push_folder(folder, model_id, endpoint=url, token=token)
"""


@pytest.fixture
def interrupted() -> Iterator[Callable[[str, Callable[[Any], None]], None]]:
    """Put a hook of the test's on the client's session."""

    def interrupt(moment: str, hook: Callable[[Any], None]) -> None:
        hooks = {moment: [hook]}
        set_client_factory(lambda: httpx2.Client(follow_redirects=True, timeout=None, verify=False, event_hooks=hooks))

    yield interrupt
    set_client_factory(default_client_factory)


def titles(hub: Hub, model_id: str) -> list[str]:
    commits = HfApi(endpoint=hub.url, token=hub.token).list_repo_commits(model_id)
    return [commit.title for commit in commits]


def change_card(package: Path, text: str) -> None:
    (package / "README.md").write_text(f"---\nlibrary_name: eca-hub\n---\n\n{text}\n")


def renew_weights(package: Path) -> None:
    """Write weights that the hub does not have yet, so that they have to travel."""
    path = package / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8] + os.urandom(8))


def change_weights(package: Path) -> None:
    path = package / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("moment", "nth"),
    [
        ("request", 3),
        *(pytest.param(*place, marks=pytest.mark.slow) for place in (("request", 1), ("response", 3), ("response", 4))),
    ],
)
def test_a_pusher_killed_at_any_moment_leaves_the_old_revision_or_the_new_one(
    moment: str, nth: int, hub: Hub, package: Path, model_id: str
) -> None:
    old = push_folder(package, model_id, endpoint=hub.url, token=hub.token)
    old_weights = (package / "model.safetensors").read_bytes()
    change_card(package, "new")
    change_weights(package)
    words = [sys.executable, "-c", DYING_PUSHER, str(package), model_id, hub.url, hub.token, moment, str(nth)]
    assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
    seen = pull(model_id, endpoint=hub.url)
    is_new = seen.revision != old.revision
    assert seen.weights_bytes == ((package / "model.safetensors").read_bytes() if is_new else old_weights)
    again = push_folder(package, model_id, endpoint=hub.url, token=hub.token)
    assert again.is_new is not is_new
    assert len(titles(hub, model_id)) == 3
    assert pull(model_id, endpoint=hub.url).weights_bytes == (package / "model.safetensors").read_bytes()


def test_pushes_interrupted_before_and_after_each_request_end_in_one_commit(
    hub: Hub, package: Path, model_id: str, interrupted: Callable[[str, Callable[[Any], None]], None]
) -> None:
    class Killed(BaseException):
        """Like a signal: no `except Exception` catches it."""

    for moment in ("request", "response"):
        for nth in range(12):
            left = [nth]

            def die(_: Any, left: list[int] = left) -> None:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed

            interrupted(moment, die)
            try:
                push_folder(package, model_id, endpoint=hub.url, token=hub.token)
                break
            except Killed:
                continue
    set_client_factory(default_client_factory)
    published = push_folder(package, model_id, endpoint=hub.url, token=hub.token)
    assert titles(hub, model_id) == ["Publish a model with eca-hub", "initial commit"]
    assert pull(model_id, endpoint=hub.url).revision == published.revision


@pytest.mark.slow
def test_sixteen_pushers_end_in_a_linear_history_of_complete_packages(hub: Hub, package: Path, model_id: str) -> None:
    push_folder(package, model_id, endpoint=hub.url, token=hub.token)

    def push_until_it_is_on_top(number: int) -> None:
        own = shutil.copytree(package, package.parent / f"package{number}")
        change_card(own, f"card {number}")
        for _ in range(200):
            try:
                push_folder(own, model_id, endpoint=hub.url, token=hub.token, message=f"push {number}")
                return
            except PushConflict:
                continue
        raise AssertionError("never on top")

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(push_until_it_is_on_top, range(16)))
    history = titles(hub, model_id)
    assert len(history) == 18
    assert set(history[:16]) == {f"push {number}" for number in range(16)}
    commits = HfApi(endpoint=hub.url, token=hub.token).list_repo_commits(model_id)
    for commit in commits[:16]:
        with httpx2.Client(base_url=f"{hub.url}/{model_id}/resolve/{commit.commit_id}/", verify=False) as client:
            card = client.get("README.md").raise_for_status().text
            assert card.strip().endswith(commit.title.replace("push", "card"))
            client.get("config.json").raise_for_status()


@pytest.mark.parametrize("status", [None, 500])
def test_a_commit_whose_response_is_lost_is_recognized(
    status: int | None,
    hub: Hub,
    package: Path,
    model_id: str,
    interrupted: Callable[[str, Callable[[Any], None]], None],
) -> None:
    def lose(response: httpx2.Response) -> None:
        if "/commit/main" in str(response.request.url):
            if status is None:
                raise httpx2.ReadError("the connection was reset")
            response.status_code = status

    interrupted("response", lose)
    published = push_folder(package, model_id, endpoint=hub.url, token=hub.token)
    assert published.is_new
    assert titles(hub, model_id) == ["Publish a model with eca-hub", "initial commit"]


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_is_revoked_half_way_publishes_nothing(
    status: int,
    hub: Hub,
    package: Path,
    model_id: str,
    interrupted: Callable[[str, Callable[[Any], None]], None],
) -> None:
    def revoke(request: httpx2.Request) -> None:
        if "/commit/main" in str(request.url):
            request.url = request.url.copy_with(path="/api/models/acme/nothing/commit/main")
            request.headers["authorization"] = "Bearer revoked"

    interrupted("request", revoke)
    with pytest.raises(AccessDenied) as refused:
        push_folder(package, model_id, endpoint=hub.url, token=hub.token)
    assert hub.token not in str(refused.value)
    assert titles(hub, model_id) == ["initial commit"]


def test_a_folder_that_changes_while_it_is_read_is_not_published(
    hub: Hub, package: Path, model_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_bytes = Path.read_bytes

    def read_and_change(path: Path) -> bytes:
        content = read_bytes(path)
        if path == package / "README.md":
            change_weights(package)
        return content

    monkeypatch.setattr(Path, "read_bytes", read_and_change)
    with pytest.raises(HubError, match="changed while it was read"):
        push_folder(package, model_id, endpoint=hub.url, token=hub.token)
    assert titles(hub, model_id) == ["initial commit"]


def test_weights_that_change_after_they_were_hashed_are_not_published(
    hub: Hub,
    package: Path,
    model_id: str,
    interrupted: Callable[[str, Callable[[Any], None]], None],
) -> None:
    renew_weights(package)

    def change(request: httpx2.Request) -> None:
        if "/preupload/" in str(request.url):
            renew_weights(package)

    interrupted("request", change)
    with pytest.raises(EcaHubError):
        push_folder(package, model_id, endpoint=hub.url, token=hub.token)
    assert titles(hub, model_id) == ["initial commit"]


def test_weights_and_plots_are_uploaded_within_the_limits_of_requests(
    hub: Hub,
    package: Path,
    model_id: str,
    interrupted: Callable[[str, Callable[[Any], None]], None],
) -> None:
    names = ["curves.png", "confusion.png"]
    for name in names:
        (package / name).write_bytes(os.urandom(100))
    change_card(package, " ".join(f"![plot]({name})" for name in names))
    renew_weights(package)
    uploads = []

    def record(request: httpx2.Request) -> None:
        assert http_limits._LIMITS.get() is not None, request.url
        if request.method == "PUT":
            uploads.append(request.url)

    interrupted("request", record)
    push_folder(package, model_id, endpoint=hub.url, token=hub.token)
    assert len(uploads) == 3


def test_the_limit_that_ends_an_upload_is_reported_as_such(
    hub: Hub,
    package: Path,
    model_id: str,
    interrupted: Callable[[str, Callable[[Any], None]], None],
) -> None:
    renew_weights(package)

    def postpone(response: httpx2.Response) -> None:
        if response.request.method == "PUT":
            response.status_code, response.headers["retry-after"] = 503, "1000000000"

    interrupted("response", postpone)
    with pytest.raises(HubUnavailable, match="asks to retry in 1000000000 seconds"):
        push_folder(package, model_id, endpoint=hub.url, token=hub.token)


@pytest.mark.slow
def test_a_large_file_is_uploaded(hub: Hub, package: Path, model_id: str) -> None:
    num_bytes = (64 << 20) + 1
    header = json.dumps({"zeros": {"dtype": "U8", "shape": [num_bytes], "data_offsets": [0, num_bytes]}}).encode()
    (package / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(num_bytes))
    push_folder(package, model_id, endpoint=hub.url, token=hub.token)
    assert pull(model_id, endpoint=hub.url).weights_bytes == (package / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "point",
    [
        "refs.after_rename",
        "blob.before_rename",
        "commit.before_rename",
        "refs.before_rename",
    ],
)
@pytest.mark.slow
def test_a_push_to_a_hub_that_was_killed_can_be_repeated(
    point: str, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    root = tmp_path / "hub"
    with running_hub(root) as hub:
        push_folder(package, "acme/digits", endpoint=hub.url, token=hub.token)
    change_card(package, "new")
    change_weights(package)
    with running_hub(root, fault=f"{point}:kill") as hub, pytest.raises(EcaHubError):
        push_folder(package, "acme/digits", endpoint=hub.url, token=hub.token)
    assert check(root).problems == []
    with running_hub(root) as hub:
        push_folder(package, "acme/digits", endpoint=hub.url, token=hub.token)
        assert len(titles(hub, "acme/digits")) == 3
        assert pull("acme/digits", endpoint=hub.url).weights_bytes == (package / "model.safetensors").read_bytes()
