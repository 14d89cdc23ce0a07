"""Pulling from a hub that sends malformed responses, stalls or breaks: a typed error in bounded time, no files left."""

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import close_session, constants
from huggingface_hub.utils import _detect_agent

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
from tests.hub.hostile import COMMIT, MODEL_ID, TOKEN, Fault, FaultyHub, Response, files_of

WEIGHTS = "model.safetensors"


@pytest.fixture
def hub(tiny_package: Path) -> Iterator[FaultyHub]:
    with FaultyHub(files_of(tiny_package)).running() as running:
        yield running


@pytest.fixture
def other_host(tiny_package: Path) -> Iterator[FaultyHub]:
    """Another host that serves the same files and would like to see a token."""
    with FaultyHub(files_of(tiny_package)).running() as running:
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


def fetch(hub: FaultyHub, revision: str | None = None) -> Package:
    return pull(MODEL_ID, revision, endpoint=hub.url, token=TOKEN)


def check_good_pull(hub: FaultyHub) -> None:
    """What went wrong before must not show any more."""
    hub.fault = lambda *_: None
    package = fetch(hub)
    assert (package.revision, package.weights_bytes, package.config_bytes) == (
        COMMIT,
        hub.files[WEIGHTS],
        hub.files["config.json"],
    )


def for_weights(change: Callable[[Response], Any]) -> Fault:
    return lambda method, name, nth, response: change(response) if name == WEIGHTS else None


def for_body(change: Callable[[Response], Any]) -> Fault:
    return lambda method, name, nth, response: change(response) if name == WEIGHTS and method == "GET" else None


def flip_a_bit(response: Response) -> None:
    middle = len(response.body) // 2
    response.body = response.body[:middle] + bytes([response.body[middle] ^ 1]) + response.body[middle + 1 :]


def become_a_portal(response: Response) -> None:
    response.headers = {"Content-Type": "text/html"}
    response.body = b"<html>Please log in to the hotel's network</html>"


def pack(response: Response) -> None:
    import gzip

    response.body = gzip.compress(response.body)
    response.headers["Content-Encoding"] = "gzip"


def announce(**headers: str) -> Callable[[Response], None]:
    return lambda response: response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})


def refuse(status: int, **headers: str) -> Callable[[Response], None]:
    def change(response: Response) -> None:
        response.status, response.body = status, b""
        response.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    return change


FAULTS: dict[str, tuple[Fault, type[EcaHubError]]] = {
    "a flipped bit": (for_body(flip_a_bit), ChecksumMismatch),
    "the hash of other bytes": (for_weights(announce(ETag='"' + "a" * 64 + '"')), ChecksumMismatch),
    "no hash": (for_weights(lambda response: response.headers.pop("ETag")), HubError),
    "a hash that is a path": (for_weights(announce(ETag='"../../../../escaped"')), HubError),
    "a hash that is a path, linked": (
        for_weights(announce(X_Linked_ETag='"../../../../escaped"', ETag='"/escaped"')),
        HubError,
    ),
    "no commit": (for_weights(lambda response: response.headers.pop("X-Repo-Commit")), HubError),
    "a commit that is a path": (for_weights(announce(X_Repo_Commit="../../../../escaped")), HubError),
    "another commit for the second file": (for_weights(announce(X_Repo_Commit="b" * 40)), HubError),
    "a login page": (lambda method, name, nth, response: become_a_portal(response), HubError),
    "a login page in place of the weights": (for_body(become_a_portal), HubError),
    "less than announced": (for_body(lambda response: announce(Content_Length="10")(response)), HubError),
    "more than announced": (for_body(lambda response: announce(Content_Length="99999999")(response)), HubError),
    "a length that is no number": (for_body(lambda response: announce(Content_Length="many")(response)), HubError),
    "a packed body": (for_body(pack), HubError),
    "a reset before the first byte": (for_body(lambda response: setattr(response, "cut_at", 0)), HubError),
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
    "a stall": (for_body(lambda response: setattr(response, "is_stalled", True)), HubUnavailable),
    "a byte at a time": (for_body(lambda response: setattr(response, "drip_s", 0.02)), HubUnavailable),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_misbehaving_hub_gives_a_typed_error_in_bounded_time_and_the_next_pull_works(
    fault: str, hub: FaultyHub, pauses: list[float], tmp_path: Path
) -> None:
    before = {path.name for path in tmp_path.iterdir()}
    hub.fault, expected = FAULTS[fault]
    with pytest.raises(HubError) as refused:
        fetch(hub)
    assert isinstance(refused.value, expected), repr(refused.value)
    assert TOKEN not in str(refused.value)
    assert sum(pauses) < 60
    assert {path.name for path in tmp_path.iterdir()} <= before | {"cache"}
    check_good_pull(hub)


def test_each_failure_has_its_own_error(hub: FaultyHub, pauses: list[float]) -> None:
    messages = set()
    for fault in ("401", "a gate", "no repository", "no file", "gone", "always 503", "a login page", "a packed body"):
        hub.fault, _ = FAULTS[fault]
        with pytest.raises(HubError) as refused:
            fetch(hub, COMMIT)
        messages.add(refused.value.message)
    assert len(messages) == 8


def test_a_short_wait_that_the_hub_asks_for_is_honored(
    hub: FaultyHub, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_limits, "IDLE_TIMEOUT_S", 60.0)
    hub.fault = lambda method, name, nth, response: refuse(429, Retry_After="2")(response) if nth == 0 else None
    assert fetch(hub).revision == COMMIT
    assert [pause for pause in pauses if pause >= 2]


def test_a_request_that_fails_twice_is_retried(hub: FaultyHub, pauses: list[float]) -> None:
    hub.fault = lambda method, name, nth, response: refuse(502)(response) if method == "HEAD" and nth < 2 else None
    assert fetch(hub).revision == COMMIT


@pytest.mark.parametrize("is_range_ignored", [False, True])
@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_a_broken_download_goes_on_where_it_broke(
    at: float, is_range_ignored: bool, hub: FaultyHub, pauses: list[float]
) -> None:
    whole = hub.files[WEIGHTS]

    def break_once(response: Response, nth: int) -> None:
        if nth == 0:
            response.cut_at = min(int(at * len(whole)), len(whole) - 1)
        elif is_range_ignored:
            response.status, response.body = 200, whole
            response.headers.pop("Content-Range", None)

    hub.fault = lambda method, name, nth, response: (
        break_once(response, nth) if (method, name) == ("GET", WEIGHTS) else None
    )
    assert fetch(hub).weights_bytes == whole
    assert hub.num_bytes_sent <= 2 * sum(len(content) for content in hub.files.values())


def test_a_connection_that_breaks_before_the_response_is_opened_again(hub: FaultyHub, pauses: list[float]) -> None:
    hub.fault = lambda method, name, nth, response: setattr(response, "is_dropped", nth == 0)
    assert fetch(hub).revision == COMMIT
    hub.fault = lambda method, name, nth, response: setattr(response, "is_dropped", True)
    with pytest.raises(HubUnavailable):
        pull("acme/other", endpoint=hub.url)


def test_a_resumed_download_with_the_wrong_part_is_refused(hub: FaultyHub, pauses: list[float]) -> None:
    whole = hub.files[WEIGHTS]

    def send_another_part(response: Response, nth: int) -> None:
        if nth % 2 == 0:
            response.cut_at = len(whole) // 2
        else:
            # Wrong at each offset: a reset may discard all that the client had not read, so that it asks for the start.
            response.body = (whole[1:] + whole[:1])[: len(response.body)]

    hub.fault = lambda method, name, nth, response: send_another_part(response, nth) if method == "GET" else None
    with pytest.raises(HubError):
        fetch(hub)
    check_good_pull(hub)


def test_the_token_is_not_sent_to_another_host(hub: FaultyHub, other_host: FaultyHub) -> None:
    def send_on(method: str, name: str, nth: int, response: Response) -> None:
        response.status, response.body = 302, b""
        response.headers["Location"] = f"{other_host.url}/{MODEL_ID}/resolve/{COMMIT}/{name}"
        response.headers["X-Linked-ETag"] = response.headers["ETag"]

    hub.fault = send_on
    assert fetch(hub).weights_bytes == hub.files[WEIGHTS]
    assert all(headers["authorization"] == f"Bearer {TOKEN}" for _, _, headers in hub.requests)
    assert other_host.requests
    assert not any("authorization" in headers for _, _, headers in other_host.requests)


def test_the_token_is_not_sent_to_other_hosts_that_the_client_trusts(
    hub: FaultyHub, other_host: FaultyHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http, "_HUB_ORIGINS", frozenset([_http._url_origin(other_host.url)]))
    hub.fault = lambda method, name, nth, response: refuse(
        302, Location=f"{other_host.url}/{MODEL_ID}/resolve/{COMMIT}/{name}"
    )(response)
    assert fetch(hub).revision == COMMIT
    assert other_host.requests
    assert not any("authorization" in headers for _, _, headers in other_host.requests)


def test_a_xet_address_of_another_host_is_not_requested(hub: FaultyHub, other_host: FaultyHub) -> None:
    link = f'<{other_host.url}/api/models/{MODEL_ID}/xet-read-token/{COMMIT}>; rel="xet-auth"'
    hub.fault = for_weights(announce(X_Xet_Hash="a" * 64, Link=link))
    assert fetch(hub).weights_bytes == hub.files[WEIGHTS]
    assert other_host.requests == []


def test_text_files_have_a_limit_before_they_are_fetched(hub: FaultyHub) -> None:
    hub.files["config.json"] = bytes(17 << 20)
    with pytest.raises(HubError, match="limit"):
        fetch(hub)
    assert hub.num_bytes_sent < 1 << 20


def test_a_branch_that_is_called_like_a_commit_is_not_taken_for_it(hub: FaultyHub) -> None:
    with pytest.raises(HubError, match="returned commit"):
        fetch(hub, "d" * 40)


def test_a_branch_that_moves_between_the_files_does_not_mix_them(hub: FaultyHub) -> None:
    fetch(hub)
    assert [path for method, path, _ in hub.requests if "/main/" in path and WEIGHTS in path] == []


def test_a_warm_cache_is_used_while_the_hub_asks_to_wait(hub: FaultyHub, pauses: list[float]) -> None:
    fetch(hub)
    hub.fault = lambda method, name, nth, response: refuse(429, Retry_After="99999999999")(response)
    assert fetch(hub).revision == COMMIT
    assert pauses == []


@pytest.mark.parametrize("fault", ["a stall", "a flipped bit", "always 503 for the body"])
def test_a_folder_does_not_appear_when_its_package_cannot_be_had(
    fault: str, hub: FaultyHub, pauses: list[float], tmp_path: Path
) -> None:
    hub.fault, _ = FAULTS[fault]
    with pytest.raises(HubError):
        pull_to(MODEL_ID, tmp_path / "copy", endpoint=hub.url)
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}


def test_a_cache_that_cannot_be_written_is_named(hub: FaultyHub, cache: Path) -> None:
    cache.write_bytes(b"a file where the folder should be")
    with pytest.raises(HubError, match=r"cannot be used: .* HF_HOME names the folder"):
        fetch(hub)


def test_requests_outside_the_block_are_not_limited(hub: FaultyHub) -> None:
    from huggingface_hub import get_session

    fetch(hub)
    hub.fault = for_body(pack)
    assert get_session().get(f"{hub.url}/{MODEL_ID}/resolve/main/{WEIGHTS}").content == hub.files[WEIGHTS]


def test_a_token_file_that_cannot_be_read_is_named(
    hub: FaultyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(HubError, match="the token file of the hub's client, cannot be read: Is a directory") as refused:
        pull(MODEL_ID, endpoint=hub.url)
    assert refused.value.message.startswith(f"{tmp_path}, ")
    assert "HF_TOKEN" in refused.value.hint


def refuse_lookups(monkeypatch: pytest.MonkeyPatch, reason: int) -> list[str]:
    """Let no name be known; return the names that are looked up."""
    names: list[str] = []

    def look_up(host: str, *args: object, **options: object) -> list[Any]:
        names.append(host)
        raise socket.gaierror(reason, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr("eca_hub.hub.client.getproxies", dict)
    # Otherwise the client may ask the hub for names of agents first.
    monkeypatch.setattr("huggingface_hub.utils._detect_agent._registry", _detect_agent._EMPTY_REGISTRY)
    return names


@pytest.mark.parametrize(("reason", "num_lookups"), [(socket.EAI_NONAME, 1), (socket.EAI_AGAIN, 3)])
def test_a_host_whose_name_is_not_known_is_named_and_not_retried(
    reason: int, num_lookups: int, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    lookups = refuse_lookups(monkeypatch, reason)
    message = (
        f"^The host nosuch.invalid is not known, and the cache does not hold {MODEL_ID} at main. HF_ENDPOINT names"
    )
    with pytest.raises(HubUnavailable, match=message):
        pull(MODEL_ID, endpoint="http://nosuch.invalid", token=TOKEN)
    assert lookups == ["nosuch.invalid"] * num_lookups
    assert sum(pauses) <= 3


def test_a_lookup_that_fails_outside_the_block_is_left_to_the_client(
    hub: FaultyHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import get_session

    fetch(hub)
    assert "send" not in vars(get_session())
    refuse_lookups(monkeypatch, socket.EAI_NONAME)
    with pytest.raises(httpx2.ConnectError):
        get_session().get("http://nosuch.invalid")


def test_a_cached_package_is_used_while_the_host_is_not_known(
    hub: FaultyHub, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = fetch(hub)
    lookups = refuse_lookups(monkeypatch, socket.EAI_NONAME)
    close_session()
    assert fetch(hub).weights_bytes == package.weights_bytes
    assert lookups
    assert pauses == []


def test_a_file_may_be_sent_in_any_number_of_parts_but_not_asked_for_without_end() -> None:
    limits = http_limits.RequestLimits("http://hub", 100, is_push=True)

    def send(method: str, num: int) -> None:
        for _ in range(num):
            request = httpx2.Request(method, "http://hub/part")
            limits.check_request(request)
            limits.check_response(httpx2.Response(200, request=request))

    send("PUT", 500)
    with pytest.raises(HubError, match="60 requests without a result"):
        send("GET", 61)


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(http_limits, "IDLE_TIMEOUT_S", 60.0)
    return Clock()


def exchange(limits: http_limits.RequestLimits, clock: Clock, took_s: float, response: httpx2.Response) -> None:
    """Send a request, get the response that many seconds later, and read its body."""
    limits.check_request(response.request)
    clock.now_s += took_s
    limits.check_response(response)
    response.read()


def put(status: int, **headers: str) -> httpx2.Response:
    part = httpx2.Request("PUT", "http://hub/part")
    stream = httpx2.ByteStream(b"{}")
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.Response(status, headers=sent, stream=stream, request=part)


def test_an_upload_may_take_longer_than_the_idle_timeout(clock: Clock) -> None:
    limits = http_limits.RequestLimits("http://hub", 100, is_push=True, clock=clock)
    for _ in range(3):
        exchange(limits, clock, 90.0, put(200))


def test_a_busy_hub_may_ask_for_a_short_wait_after_a_long_upload(clock: Clock) -> None:
    limits = http_limits.RequestLimits("http://hub", 100, is_push=True, clock=clock)
    exchange(limits, clock, 90.0, put(503, Retry_After="30"))
    clock.now_s += 31
    exchange(limits, clock, 90.0, put(200))


def test_the_waits_between_the_attempts_of_an_upload_count(clock: Clock) -> None:
    limits = http_limits.RequestLimits("http://hub", 100, is_push=True, clock=clock)
    exchange(limits, clock, 90.0, put(503))
    clock.now_s += 61
    with pytest.raises(HubUnavailable, match="too slow"):
        exchange(limits, clock, 90.0, put(503))
