"""What the client leaves open when a hub misbehaves, closed while our calls run.

The client waits as long as a hub asks it to, reads as long as bytes drip, lets a hub name the file that it writes in
the cache, and takes its token along to some other hosts. A guard hangs on the hooks of the client's own HTTP session
and sleeps outside of `guarded`, so that nobody else's calls in this process change.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils import _http

from eca_hub.errors import HubError, Offline

PATIENCE_S = 60.0
"""How long a call may take that brings no bytes, its retries included."""
BYTES_PER_S = 16 << 10
"""Bytes that buy a call one more second: a large file may take long, but not for ever."""
MAX_BYTES = 16 << 30
_MAX_REQUESTS = 60

_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_RESET = re.compile(r";\s*t\s*=\s*(\d+)")


class Guard:
    """Watches the requests of one call.

    Args:
        endpoint: The hub that is asked; a token goes there only.
        max_bytes: No answer may be longer.
        is_push: Whether the client may be busy between two requests: then a good answer starts the clock anew.
        clock: Seconds that never go back.
    """

    def __init__(
        self, endpoint: str, max_bytes: int, is_push: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._origin = _origin(endpoint)
        self._max_bytes = max_bytes
        self._is_push = is_push
        self._was_good = False
        self._clock = clock
        self._until_s = clock() + PATIENCE_S
        self._num_requests = 0
        self._num_bytes = 0
        self._refusal: HubError | None = None

    def check_request(self, request: httpx2.Request) -> None:
        """Let a request go, without a token where it has no business, and for no longer than there is time."""
        self._num_requests += 1
        if self._num_requests > _MAX_REQUESTS:
            raise HubError(f"The hub sent the client on for {_MAX_REQUESTS} requests without an answer.")
        if self._refusal:
            raise self._refusal
        if self._is_push and self._was_good:
            self._until_s = self._clock() + PATIENCE_S
        left_s = self._until_s - self._clock()
        if left_s <= 0:
            raise _too_slow()
        times = request.extensions.get("timeout", {})
        names = ("connect", "read", "write", "pool")
        request.extensions["timeout"] = {name: min(times.get(name) or left_s, left_s) for name in names}
        if _origin(str(request.url)) != self._origin:
            request.headers.pop("authorization", None)
        # A packed body may unpack to any size.
        request.headers["accept-encoding"] = "identity"

    def check_response(self, response: httpx2.Response) -> None:
        """Look at the head of an answer, and count its bytes from now on."""
        self._was_good = response.is_success
        wait_s = _asked_wait_s(response)
        if wait_s > self._until_s - self._clock():
            self._refusal = Offline(f"The hub asks to come back in {wait_s} seconds.")
            # As if it had not answered: what the cache holds is used, and the next request ends it all.
            raise httpx2.ReadTimeout(str(self._refusal), request=response.request)
        is_body = response.request.method != "HEAD"
        if is_body and response.headers.get("content-encoding", "identity") != "identity":
            raise HubError("The hub packed a file that was asked for as it is.")
        length = response.headers.get("content-length", "0")
        self._check_size(int(length) if length.isdigit() and is_body else 0)
        if not self._is_push:
            _forget_made_up_names(response)
            _forget_foreign_xet(response, self._origin)
        assert isinstance(response.stream, httpx2.SyncByteStream)
        response.stream = _Counted(response.stream, self)

    def take(self, num_bytes: int) -> None:
        """Count bytes that arrived."""
        self._num_bytes += num_bytes
        self._until_s += num_bytes / BYTES_PER_S
        # What is fetched again after a broken connection counts as well.
        self._check_size(self._num_bytes // 2)
        if self._clock() > self._until_s:
            raise _too_slow()

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self._max_bytes:
            raise HubError(f"The hub sends more than {self._max_bytes} bytes, the limit for such a file.")


class _Counted(httpx2.SyncByteStream):
    def __init__(self, stream: httpx2.SyncByteStream, guard: Guard) -> None:
        self._stream = stream
        self._guard = guard

    def __iter__(self) -> Iterator[bytes]:
        try:
            for piece in self._stream:
                self._guard.take(len(piece))
                yield piece
        except httpx2.ReadError as error:
            # The client goes on where an answer ended too early, but not where a connection was reset.
            raise httpx2.RemoteProtocolError(str(error)) from error

    def close(self) -> None:
        self._stream.close()


_GUARD: ContextVar[Guard | None] = ContextVar("_GUARD", default=None)


@contextmanager
def guarded(endpoint: str | None, max_bytes: int = MAX_BYTES, *, is_push: bool = False) -> Iterator[None]:
    """Watch the client's requests inside the block.

    Args:
        endpoint: Address of the hub; HF_ENDPOINT when none is given.
        max_bytes: No answer may be longer.
        is_push: Whether uploads, which the client does outside of its session, go on between the requests.
    """
    _hang_on()
    before = _GUARD.set(Guard(endpoint or constants.ENDPOINT, max_bytes, is_push))
    try:
        yield
    finally:
        _GUARD.reset(before)


def _hang_on() -> None:
    """Put our hooks on every session that the client will open, whoever says how sessions are made."""
    make_session: Callable[[], httpx2.Client] = getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory)
    if getattr(make_session, "is_guarded", False):
        return

    def make_guarded_session() -> httpx2.Client:
        session = make_session()
        hooks = session.event_hooks
        session.event_hooks = {
            "request": [*hooks["request"], _on_request],
            "response": [*hooks["response"], _on_response],
        }
        return session

    make_guarded_session.is_guarded = True  # type: ignore[attr-defined]
    set_client_factory(make_guarded_session)


def _on_request(request: httpx2.Request) -> None:
    if guard := _GUARD.get():
        guard.check_request(request)


def _on_response(response: httpx2.Response) -> None:
    if guard := _GUARD.get():
        guard.check_response(response)


def _too_slow() -> Offline:
    return Offline(
        f"The hub is too slow: {PATIENCE_S:g} s passed, and one more for every {BYTES_PER_S} bytes that came.",
        hint="Try again later.",
    )


def _asked_wait_s(response: httpx2.Response) -> int:
    """How long the hub asks to be left alone, in either of the two ways that the client obeys."""
    waits = [response.headers.get("retry-after", "").strip()]
    if found := _RESET.search(response.headers.get("ratelimit", "")):
        waits.append(found[1])
    is_refusal = response.status_code == 408 or response.status_code == 429 or response.status_code >= 500
    return max((int(wait[:18]) for wait in waits if wait.isdigit()), default=0) if is_refusal else 0


def _forget_made_up_names(response: httpx2.Response) -> None:
    """The client names files by these headers: only hashes may get there, or a hub could name any file of ours."""
    headers = response.headers
    for name in ("etag", "x-linked-etag"):
        if name in headers and not _HASH.fullmatch(headers[name].removeprefix("W/").strip('"')):
            del headers[name]
    if "x-repo-commit" in headers and not _COMMIT.fullmatch(headers["x-repo-commit"]):
        del headers["x-repo-commit"]


def _forget_foreign_xet(response: httpx2.Response, origin: tuple[str, str, int | None]) -> None:
    """The client asks the address of a Xet download for a key, with its token: it must be the hub's own."""
    headers = response.headers
    if "x-xet-hash" not in headers:
        return
    linked = response.links.get("xet-auth", {}).get("url") or headers.get("x-xet-refresh-route") or ""
    if _origin(linked) not in (origin, _origin(constants.HUGGINGFACE_CO_URL_HOME)):
        del headers["x-xet-hash"]


def _origin(url: str) -> tuple[str, str, int | None]:
    try:
        parts = urlsplit(url)
        return parts.scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return "", url, None
