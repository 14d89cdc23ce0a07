"""Pulling from a hub that sends malformed responses, stalls or breaks: a typed error in bounded time, no files left."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from eca_hub.errors import (
    AccessDenied,
    ChecksumMismatch,
    EcaHubError,
    HubError,
    HubUnavailable,
    InvalidPackage,
    RepoNotFound,
    RevisionNotFound,
)
from eca_hub.hub import http_limits
from eca_hub.hub.package import Package
from eca_hub.hub.pull import pull, pull_to
from tests.hub.hostile import COMMIT, MODEL_ID, TOKEN, Answer, Lie, LyingHub, files_of

WEIGHTS = "model.safetensors"


@pytest.fixture
def hub(tiny_package: Path) -> Iterator[LyingHub]:
    with LyingHub(files_of(tiny_package)).running() as running:
        yield running


@pytest.fixture
def thief(tiny_package: Path) -> Iterator[LyingHub]:
    """Another host that serves the same files and would like to see a token."""
    with LyingHub(files_of(tiny_package)).running() as running:
        yield running


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client would have slept."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for fractions of a second where users wait for seconds."""
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    monkeypatch.setattr(http_limits, "IDLE_TIMEOUT_S", 1.0)


def fetch(hub: LyingHub, revision: str | None = None) -> Package:
    return pull(MODEL_ID, revision, endpoint=hub.url, token=TOKEN)


def check_good_pull(hub: LyingHub) -> None:
    """What went wrong before must not show any more."""
    hub.lie = lambda *_: None
    package = fetch(hub)
    assert (package.revision, package.weights_bytes, package.config_bytes) == (
        COMMIT,
        hub.files[WEIGHTS],
        hub.files["config.json"],
    )


def for_weights(change: Callable[[Answer], Any]) -> Lie:
    return lambda method, name, nth, answer: change(answer) if name == WEIGHTS else None


def for_body(change: Callable[[Answer], Any]) -> Lie:
    return lambda method, name, nth, answer: change(answer) if name == WEIGHTS and method == "GET" else None


def flip_a_bit(answer: Answer) -> None:
    middle = len(answer.body) // 2
    answer.body = answer.body[:middle] + bytes([answer.body[middle] ^ 1]) + answer.body[middle + 1 :]


def become_a_portal(answer: Answer) -> None:
    answer.headers = {"Content-Type": "text/html"}
    answer.body = b"<html>Please log in to the hotel's network</html>"


def pack(answer: Answer) -> None:
    import gzip

    answer.body = gzip.compress(answer.body)
    answer.headers["Content-Encoding"] = "gzip"


def announce(**headers: str) -> Callable[[Answer], None]:
    return lambda answer: answer.headers.update({name.replace("_", "-"): value for name, value in headers.items()})


def refuse(status: int, **headers: str) -> Callable[[Answer], None]:
    def change(answer: Answer) -> None:
        answer.status, answer.body = status, b""
        answer.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    return change


LIES: dict[str, tuple[Lie, type[EcaHubError]]] = {
    "a flipped bit": (for_body(flip_a_bit), ChecksumMismatch),
    "the hash of other bytes": (for_weights(announce(ETag='"' + "a" * 64 + '"')), ChecksumMismatch),
    "no hash": (for_weights(lambda answer: answer.headers.pop("ETag")), HubError),
    "a hash that is a path": (for_weights(announce(ETag='"../../../../escaped"')), HubError),
    "a hash that is a path, linked": (
        for_weights(announce(X_Linked_ETag='"../../../../escaped"', ETag='"/escaped"')),
        HubError,
    ),
    "no commit": (for_weights(lambda answer: answer.headers.pop("X-Repo-Commit")), HubError),
    "a commit that is a path": (for_weights(announce(X_Repo_Commit="../../../../escaped")), HubError),
    "another commit for the second file": (for_weights(announce(X_Repo_Commit="b" * 40)), HubError),
    "a login page": (lambda method, name, nth, answer: become_a_portal(answer), HubError),
    "a login page in place of the weights": (for_body(become_a_portal), HubError),
    "less than announced": (for_body(lambda answer: announce(Content_Length="10")(answer)), HubError),
    "more than announced": (for_body(lambda answer: announce(Content_Length="99999999")(answer)), HubError),
    "a length that is no number": (for_body(lambda answer: announce(Content_Length="many")(answer)), HubError),
    "a packed body": (for_body(pack), HubError),
    "a reset before the first byte": (for_body(lambda answer: setattr(answer, "cut_at", 0)), HubError),
    "a redirect in a circle": (for_weights(refuse(302, Location=f"/{MODEL_ID}/resolve/{COMMIT}/{WEIGHTS}")), HubError),
    "a redirect to a file": (for_weights(refuse(302, Location="file:///etc/passwd")), HubError),
    "a redirect to nowhere": (for_weights(refuse(302, Location="http://127.0.0.1:9/x")), HubError),
    "401": (for_weights(refuse(401)), AccessDenied),
    "403": (for_weights(refuse(403)), AccessDenied),
    "a gate": (for_weights(refuse(403, X_Error_Code="GatedRepo")), AccessDenied),
    "no repository": (for_weights(refuse(404, X_Error_Code="RepoNotFound")), RepoNotFound),
    "no revision": (for_weights(refuse(404, X_Error_Code="RevisionNotFound")), RevisionNotFound),
    "no file": (for_weights(refuse(404, X_Error_Code="EntryNotFound")), InvalidPackage),
    "gone": (for_weights(refuse(410)), HubError),
    "always 503": (for_weights(refuse(503)), HubUnavailable),
    "always 503 for the body": (for_body(refuse(503)), HubUnavailable),
    "429 for a thousand years": (for_weights(refuse(429, Retry_After="99999999999")), HubUnavailable),
    "429 for a thousand years, for the body": (for_body(refuse(429, Retry_After="99999999999")), HubUnavailable),
    "429 with a distant reset": (for_weights(refuse(429, RateLimit='"api";r=0;t=999999')), HubUnavailable),
    "429 until a date": (for_weights(refuse(429, Retry_After="Wed, 21 Oct 2099 07:28:00 GMT")), HubUnavailable),
    "a stall": (for_body(lambda answer: setattr(answer, "is_silent", True)), HubUnavailable),
    "a byte at a time": (for_body(lambda answer: setattr(answer, "drip_s", 0.02)), HubUnavailable),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_misbehaving_hub_gives_a_typed_error_in_bounded_time_and_the_next_pull_works(
    lie: str, hub: LyingHub, pauses: list[float], tmp_path: Path
) -> None:
    before = {path.name for path in tmp_path.iterdir()}
    started_s = time.monotonic()
    hub.lie, expected = LIES[lie]
    with pytest.raises(HubError) as refused:
        fetch(hub)
    assert isinstance(refused.value, expected), repr(refused.value)
    assert TOKEN not in str(refused.value)
    assert time.monotonic() - started_s < 6
    assert sum(pauses) < 60
    assert {path.name for path in tmp_path.iterdir()} <= before | {"cache"}
    check_good_pull(hub)


def test_each_failure_has_its_own_error(hub: LyingHub, pauses: list[float]) -> None:
    messages = set()
    for lie in ("401", "a gate", "no repository", "no file", "gone", "always 503", "a login page", "a packed body"):
        hub.lie, _ = LIES[lie]
        with pytest.raises(HubError) as refused:
            fetch(hub, COMMIT)
        messages.add(refused.value.message)
    assert len(messages) == 8


def test_a_short_wait_that_the_hub_asks_for_is_honored(
    hub: LyingHub, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_limits, "IDLE_TIMEOUT_S", 60.0)
    hub.lie = lambda method, name, nth, answer: refuse(429, Retry_After="2")(answer) if nth == 0 else None
    assert fetch(hub).revision == COMMIT
    assert [pause for pause in pauses if pause >= 2]


def test_a_request_that_fails_twice_is_retried(hub: LyingHub, pauses: list[float]) -> None:
    hub.lie = lambda method, name, nth, answer: refuse(502)(answer) if method == "HEAD" and nth < 2 else None
    assert fetch(hub).revision == COMMIT


@pytest.mark.parametrize("is_range_ignored", [False, True])
@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_a_broken_download_goes_on_where_it_broke(
    at: float, is_range_ignored: bool, hub: LyingHub, pauses: list[float]
) -> None:
    whole = hub.files[WEIGHTS]

    def break_once(answer: Answer, nth: int) -> None:
        if nth == 0:
            answer.cut_at = min(int(at * len(whole)), len(whole) - 1)
        elif is_range_ignored:
            answer.status, answer.body = 200, whole
            answer.headers.pop("Content-Range", None)

    hub.lie = lambda method, name, nth, answer: break_once(answer, nth) if (method, name) == ("GET", WEIGHTS) else None
    assert fetch(hub).weights_bytes == whole
    assert hub.num_bytes_sent <= 2 * sum(len(content) for content in hub.files.values())


def test_a_connection_that_breaks_before_the_response_is_opened_again(hub: LyingHub, pauses: list[float]) -> None:
    hub.lie = lambda method, name, nth, answer: setattr(answer, "is_gone", nth == 0)
    assert fetch(hub).revision == COMMIT
    hub.lie = lambda method, name, nth, answer: setattr(answer, "is_gone", True)
    with pytest.raises(HubUnavailable):
        pull("acme/other", endpoint=hub.url)


def test_a_resumed_download_with_the_wrong_part_is_refused(hub: LyingHub, pauses: list[float]) -> None:
    whole = hub.files[WEIGHTS]

    def send_the_start_again(answer: Answer, nth: int) -> None:
        if nth % 2 == 0:
            answer.cut_at = len(whole) // 2
        else:
            answer.body = whole[: len(answer.body)]

    hub.lie = lambda method, name, nth, answer: send_the_start_again(answer, nth) if method == "GET" else None
    with pytest.raises(HubError):
        fetch(hub)
    check_good_pull(hub)


def test_the_token_is_not_sent_to_another_host(hub: LyingHub, thief: LyingHub) -> None:
    def send_on(method: str, name: str, nth: int, answer: Answer) -> None:
        answer.status, answer.body = 302, b""
        answer.headers["Location"] = f"{thief.url}/{MODEL_ID}/resolve/{COMMIT}/{name}"
        answer.headers["X-Linked-ETag"] = answer.headers["ETag"]

    hub.lie = send_on
    assert fetch(hub).weights_bytes == hub.files[WEIGHTS]
    assert all(headers["authorization"] == f"Bearer {TOKEN}" for _, _, headers in hub.asked)
    assert thief.asked
    assert not any("authorization" in headers for _, _, headers in thief.asked)


def test_the_token_is_not_sent_to_other_hosts_that_the_client_trusts(
    hub: LyingHub, thief: LyingHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http, "_HUB_ORIGINS", frozenset([_http._url_origin(thief.url)]))
    hub.lie = lambda method, name, nth, answer: refuse(302, Location=f"{thief.url}/{MODEL_ID}/resolve/{COMMIT}/{name}")(
        answer
    )
    assert fetch(hub).revision == COMMIT
    assert thief.asked
    assert not any("authorization" in headers for _, _, headers in thief.asked)


def test_a_xet_address_of_another_host_is_not_requested(hub: LyingHub, thief: LyingHub) -> None:
    link = f'<{thief.url}/api/models/{MODEL_ID}/xet-read-token/{COMMIT}>; rel="xet-auth"'
    hub.lie = for_weights(announce(X_Xet_Hash="a" * 64, Link=link))
    assert fetch(hub).weights_bytes == hub.files[WEIGHTS]
    assert thief.asked == []


def test_text_files_have_a_limit_before_they_are_fetched(hub: LyingHub) -> None:
    hub.files["config.json"] = bytes(17 << 20)
    with pytest.raises(HubError, match="limit"):
        fetch(hub)
    assert hub.num_bytes_sent < 1 << 20


def test_a_branch_that_is_called_like_a_commit_is_not_taken_for_it(hub: LyingHub) -> None:
    with pytest.raises(HubError, match="returned commit"):
        fetch(hub, "d" * 40)


def test_a_branch_that_moves_between_the_files_does_not_mix_them(hub: LyingHub) -> None:
    fetch(hub)
    assert [path for method, path, _ in hub.asked if "/main/" in path and WEIGHTS in path] == []


def test_a_warm_cache_is_used_while_the_hub_asks_to_wait(hub: LyingHub, pauses: list[float]) -> None:
    fetch(hub)
    hub.lie = lambda method, name, nth, answer: refuse(429, Retry_After="99999999999")(answer)
    assert fetch(hub).revision == COMMIT
    assert pauses == []


@pytest.mark.parametrize("lie", ["a stall", "a flipped bit", "always 503 for the body"])
def test_a_folder_does_not_appear_when_its_package_cannot_be_had(
    lie: str, hub: LyingHub, pauses: list[float], tmp_path: Path
) -> None:
    hub.lie, _ = LIES[lie]
    with pytest.raises(HubError):
        pull_to(MODEL_ID, tmp_path / "copy", endpoint=hub.url)
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}


def test_a_cache_that_cannot_be_written_is_named(hub: LyingHub, cache: Path) -> None:
    cache.write_bytes(b"a file where the folder should be")
    with pytest.raises(HubError, match=r"cannot be used: .* HF_HOME names the folder"):
        fetch(hub)


def test_requests_outside_the_block_are_not_limited(hub: LyingHub) -> None:
    from huggingface_hub import get_session

    fetch(hub)
    hub.lie = for_body(pack)
    assert get_session().get(f"{hub.url}/{MODEL_ID}/resolve/main/{WEIGHTS}").content == hub.files[WEIGHTS]
