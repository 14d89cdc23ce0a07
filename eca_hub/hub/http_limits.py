"""Limits on the hub client's HTTP requests: time, size, number of requests, headers and where the token goes.

huggingface_hub waits as long as a hub asks it to, reads as long as bytes arrive, takes the name of a file in its cache
from the hub's headers, and sends its token to some other hosts. Event hooks on the client's own HTTP session prevent
this; they act only inside `limit_requests`, so other calls to the hub in this process do not change.
"""

import functools
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils import _http

from eca_hub.errors import HubError, HubUnavailable
from eca_hub.hub.client import UnknownHost, check_endpoint
from eca_hub.hub.download_reader import DownloadReader
from eca_hub.hub.hashes import HASH
from eca_hub.names import is_commit

IDLE_TIMEOUT_S = 60.0
"""How long a call may take that transfers no bytes, its retries included."""
MIN_BYTES_PER_S = 16 << 10
"""Slowest transfer: every so many bytes extend the deadline by one second."""
MAX_BYTES = 16 << 30
_MAX_REQUESTS = 60
_MAX_LOOKUPS = 3
"""How often the name of a host is looked up while no name server responds."""

_RESET = re.compile(r";\s*t\s*=\s*(\d+)")


class RequestLimits:
    """Checks the requests and responses of one call.

    Args:
        endpoint: Address of the hub; the token is sent to no other origin.
        max_bytes: Longest response.
        is_push: Whether the client uploads, by PUT or outside its session between two requests: then a successful
            response restarts the deadline, and the time of a PUT does not count against it.
        reader: Notified of the bytes of bodies as they arrive.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        endpoint: str,
        max_bytes: int,
        is_push: bool = False,
        reader: DownloadReader | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._origin = _origin(endpoint)
        self._max_bytes = max_bytes
        self._is_push = is_push
        self._reader = reader
        self._was_good = False
        self._clock = clock
        self._until_s = clock() + IDLE_TIMEOUT_S
        self._requested_at_s = 0.0
        self._num_requests = 0
        self._num_bytes = 0
        self._num_failed_lookups = 0
        self._refusal: HubError | None = None

    def check_request(self, request: httpx2.Request) -> None:
        """Limit the time of a request, watch its connection, and drop the token for other origins."""
        self._num_requests += 1
        if self._num_requests > _MAX_REQUESTS:
            raise HubError(f"The hub caused {_MAX_REQUESTS} requests without a result.")
        if self._refusal:
            raise self._refusal
        self._requested_at_s = self._clock()
        if self._is_push and self._was_good:
            self._until_s = self._requested_at_s + IDLE_TIMEOUT_S
        left_s = self._until_s - self._requested_at_s
        if left_s <= 0:
            raise _too_slow()
        times = request.extensions.get("timeout", {})
        names = ("connect", "read", "write", "pool")
        request.extensions["timeout"] = {name: min(times.get(name) or left_s, left_s) for name in names}
        request.extensions["trace"] = functools.partial(self.check_lookup, request.url.host)
        if _origin(str(request.url)) != self._origin:
            request.headers.pop("authorization", None)
        # A compressed body may expand to any size.
        request.headers["accept-encoding"] = "identity"

    def check_lookup(self, host: str, event: str, info: Mapping[str, Any]) -> None:
        """Stop the client, which would retry for half a minute, where the name of a host is not known.

        A `trace` extension of a request: there is no event hook for a request without a response.

        Args:
            host: Host of the request.
            event: Name of an event of the connection.
            info: Of a failed event the exception.

        Raises:
            UnknownHost: the name does not exist, or no name server responds; the client then uses its cache.
        """
        if event != "connection.connect_tcp.failed":
            return
        lookup = info["exception"].__cause__
        if isinstance(lookup, socket.gaierror):
            self._num_failed_lookups += 1
            if lookup.errno != socket.EAI_AGAIN or self._num_failed_lookups >= _MAX_LOOKUPS:
                raise UnknownHost(host, str(lookup))

    def check_response(self, response: httpx2.Response) -> None:
        """Check the headers of a response, and meter its body."""
        self._was_good = response.is_success
        if self._is_push and response.request.method == "PUT":
            # While the file is sent, the write timeout is the limit; a hub that is busy afterwards may ask for a wait.
            self._until_s += self._clock() - self._requested_at_s
            # A large file is sent in hundreds of parts, whose number the client compares with its size.
            self._num_requests -= response.is_success
        if self._is_push and response.is_success:
            self._until_s = self._clock() + IDLE_TIMEOUT_S
        self._num_failed_lookups = 0
        wait_s = _requested_wait_s(response)
        if wait_s > max(self._until_s - self._clock(), 0.0):
            self._refusal = HubUnavailable(f"The hub asks to retry in {wait_s} seconds.")
            # Treated as a timeout: the client falls back to its cache, and the next request raises the refusal.
            raise httpx2.ReadTimeout(str(self._refusal), request=response.request)
        is_body = response.request.method != "HEAD"
        if is_body and response.headers.get("content-encoding", "identity") != "identity":
            raise HubError("The hub sent a compressed response to a request for an uncompressed one.")
        length = response.headers.get("content-length", "0")
        num_bytes = int(length) if length.isdigit() and is_body else 0
        self._check_size(num_bytes)
        if not self._is_push:
            _drop_invalid_etags(response)
            _drop_foreign_xet_headers(response, self._origin)
        if self._reader and response.is_success:
            self._reader.start(num_bytes)
        assert isinstance(response.stream, httpx2.SyncByteStream)
        response.stream = _MeteredStream(response.stream, self)

    def add_bytes(self, num_bytes: int) -> None:
        """Count received bytes and extend the deadline by them."""
        self._num_bytes += num_bytes
        self._until_s += num_bytes / MIN_BYTES_PER_S
        # Twice the limit, because bytes fetched again after a broken connection count too.
        self._check_size(self._num_bytes // 2)
        if self._clock() > self._until_s:
            raise _too_slow()
        if self._reader:
            self._reader.advance(num_bytes)

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self._max_bytes:
            raise HubError(f"The hub sends more than {self._max_bytes} bytes, the limit for this file.")


class _MeteredStream(httpx2.SyncByteStream):
    """A response body whose bytes count against the limits."""

    def __init__(self, stream: httpx2.SyncByteStream, limits: RequestLimits) -> None:
        self._stream = stream
        self._limits = limits

    def __iter__(self) -> Iterator[bytes]:
        try:
            for piece in self._stream:
                self._limits.add_bytes(len(piece))
                yield piece
        except httpx2.ReadError as error:
            # The client resumes after RemoteProtocolError (a body that ended early), but not after ReadError (a reset).
            raise httpx2.RemoteProtocolError(str(error)) from error

    def close(self) -> None:
        self._stream.close()


_LIMITS: ContextVar[RequestLimits | None] = ContextVar("_LIMITS", default=None)


@contextmanager
def limit_requests(
    endpoint: str | None, max_bytes: int = MAX_BYTES, *, is_push: bool = False, reader: DownloadReader | None = None
) -> Iterator[None]:
    """Limit the client's requests inside the block.

    Args:
        endpoint: Address of the hub; HF_ENDPOINT when none is given.
        max_bytes: Longest response.
        is_push: Whether the client uploads, by PUT or outside its session between two requests.
        reader: Notified of the bytes of bodies as they arrive.

    Raises:
        InvalidConfig: the endpoint is no string.
    """
    check_endpoint(endpoint)
    _install_hooks()
    before = _LIMITS.set(RequestLimits(endpoint or constants.ENDPOINT, max_bytes, is_push, reader))
    try:
        yield
    finally:
        _LIMITS.reset(before)


def _install_hooks() -> None:
    """Add our event hooks to every session that the client opens, also by a factory that the user has set.

    The client replaces its session after a failed connection, in the middle of a call, so hooks on the present session
    would be lost. `set_client_factory` is public, but the factory that it replaces can be read only by a private name.
    """
    make_session: Callable[[], httpx2.Client] = _http._GLOBAL_CLIENT_FACTORY
    if getattr(make_session, "has_request_limits", False):
        return

    def make_limited_session() -> httpx2.Client:
        session = make_session()
        hooks = session.event_hooks
        session.event_hooks = {
            "request": [*hooks["request"], _on_request],
            "response": [*hooks["response"], _on_response],
        }
        return session

    make_limited_session.has_request_limits = True  # type: ignore[attr-defined]
    set_client_factory(make_limited_session)


def _on_request(request: httpx2.Request) -> None:
    if limits := _LIMITS.get():
        limits.check_request(request)


def _on_response(response: httpx2.Response) -> None:
    if limits := _LIMITS.get():
        limits.check_response(response)


def _too_slow() -> HubUnavailable:
    return HubUnavailable(
        f"The hub is too slow: the limit is {IDLE_TIMEOUT_S:g} s, plus one second for every {MIN_BYTES_PER_S} bytes.",
        hint="Try again later.",
    )


def _requested_wait_s(response: httpx2.Response) -> int:
    """Return the wait that the hub asks for by Retry-After or RateLimit, the two headers that the client follows."""
    waits = [response.headers.get("retry-after", "").strip()]
    if match := _RESET.search(response.headers.get("ratelimit", "")):
        waits.append(match[1])
    is_refusal = response.status_code == 408 or response.status_code == 429 or response.status_code >= 500
    return max((int(wait[:18]) for wait in waits if wait.isdigit()), default=0) if is_refusal else 0


def _drop_invalid_etags(response: httpx2.Response) -> None:
    """Drop ETags that are no hashes: the client uses them as names of files in its cache."""
    headers = response.headers
    for name in ("etag", "x-linked-etag"):
        if name in headers and not HASH.fullmatch(headers[name].removeprefix("W/").strip('"')):
            del headers[name]
    if "x-repo-commit" in headers and not is_commit(headers["x-repo-commit"]):
        del headers["x-repo-commit"]


def _drop_foreign_xet_headers(response: httpx2.Response, origin: tuple[str, str, int | None]) -> None:
    """Drop a Xet address of another origin: the client would send its token there."""
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
