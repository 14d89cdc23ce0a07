"""Request context of the routes: user, repository and rights, parameters and bodies, JSON responses."""

import asyncio
import contextlib
import json
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from eca_hub.localhub.auth import User, Users
from eca_hub.localhub.errors import (
    HubHTTPError,
    bad_request,
    bad_token,
    forbidden,
    gated,
    invalid,
    repo_not_found,
    token_required,
    too_large,
)
from eca_hub.localhub.repo import Repo
from eca_hub.localhub.store import Store
from eca_hub.localhub.validation import REPO_TYPES, RepoId, RepoType, parse_repo_id

Item = TypeVar("Item")
MAX_BODY_BYTES = 4 << 20
PIECE_BYTES = 2 << 20
MAX_HEADER_CHARS = 1_000
_HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


class RequestContext:
    """One request.

    Args:
        store: The hub's data.
        users: The known tokens.
        request: The request; its path is routed as it was sent, still percent-encoded, so that `%2F` in a branch is not
            a separator.
        repo_type: Type of the repositories under this path.
    """

    def __init__(self, store: Store, users: Users, request: Request, repo_type: RepoType = "model") -> None:
        self.store = store
        self._users = users
        self.request = request
        self.repo_type = repo_type
        self.body = b""

    @cached_property
    def user(self) -> User | None:
        """The user, or None without a token."""
        headers = [value for name, value in self.request.headers.raw if name == b"authorization"]
        if not headers:
            return None
        scheme, _, token = headers[0].partition(b" ")
        user = self._users.find(token.strip()) if len(headers) == 1 and scheme.lower() == b"bearer" else None
        if user is None:
            raise bad_token()
        return user

    def check_token(self) -> None:
        """Refuse an unknown token, also where none is needed."""
        _ = self.user

    def param(self, name: str) -> str:
        """Return a path parameter, decoded."""
        try:
            return unquote_to_bytes(self.request.path_params[name]).decode()
        except UnicodeDecodeError:
            raise invalid("The path is not valid UTF-8.") from None

    def query(self, name: str, default: str = "") -> str:
        """Return the first value of a query parameter."""
        return self.request.query_params.get(name, default)

    def flag(self, name: str) -> bool:
        """Whether a query parameter is true."""
        return self.query(name).lower() in ("1", "true")

    def number(self, name: str, default: int, largest: int) -> int:
        """Return a query parameter as a number from 0 to `largest`."""
        text = self.query(name)
        if not text:
            return default
        if not text.isascii() or not text.isdigit() or len(text) > 9:
            raise bad_request(f"{name} must be a whole number, not {text[:20]!r}.")
        return min(int(text), largest)

    def json_body(self) -> dict[str, Any]:
        """Parse the body as a JSON object."""
        try:
            value = json.loads(self.body or b"{}")
        except (ValueError, RecursionError):
            raise bad_request("The body is not JSON.") from None
        if not isinstance(value, dict):
            raise bad_request("The body must be a JSON object.")
        return value

    def form_body(self) -> list[tuple[str, str]]:
        """Parse the body as an urlencoded form."""
        try:
            return parse_qsl(self.body.decode(), keep_blank_values=True, max_num_fields=10_000, errors="strict")
        except ValueError:
            raise bad_request("The body is not an urlencoded form.") from None

    @property
    def base_url(self) -> str:
        """The hub's URL, with the host that the client used."""
        host = self.request.headers.get("host", "")
        if not _HOST.fullmatch(host):
            raise bad_request("The Host header is not a host name.")
        return f"{self.request.url.scheme}://{host}{self.request.scope.get('root_path', '')}"

    @property
    def path(self) -> str:
        """Path under the hub's URL, as it was sent."""
        path: str = self.request.scope["path"]
        return path.removeprefix(self.request.scope.get("root_path", ""))

    @property
    def repo_id(self) -> RepoId:
        """The repository in the path, as the client spells it."""
        return parse_repo_id(self.repo_type, f"{self.param('owner')}/{self.param('name')}")

    def readable_repo(self) -> tuple[RepoId, Repo]:
        """Return the repository in the path, with its name as its owner spells it.

        Raises:
            HubHTTPError: 404 or 401, there is none, or the user may not see it.
        """
        return self.check_readable(self.repo_id)

    def check_readable(self, repo_id: RepoId) -> tuple[RepoId, Repo]:
        """Return a repository that the user may see."""
        named_repo = self.store.find_repo(repo_id)
        if named_repo is None or not self.can_read(*named_repo):
            raise repo_not_found(self.user is not None)
        return named_repo

    def can_read(self, repo_id: RepoId, repo: Repo) -> bool:
        """Whether the user may see this repository."""
        return not repo.settings.is_private or (self.user is not None and self.user.owns(repo_id))

    def can_read_files(self, repo_id: RepoId, repo: Repo) -> bool:
        """Whether the user may read the files of this repository: those of a gated one are for its owner only."""
        is_owner = self.user is not None and self.user.owns(repo_id)
        return is_owner or not (repo.settings.is_private or repo.settings.gated)

    def check_gate(self, repo_id: RepoId, repo: Repo) -> None:
        """Refuse the files of a gated repository to all but its owner."""
        if not self.can_read_files(repo_id, repo):
            raise gated(repo_id.full_name, self.user is not None)

    def can_use_blob(self, sha256: str) -> bool:
        """Whether the user has uploaded these bytes, or can read them in a repository."""
        if self.user is None:
            return False
        if self.user.role == "admin" or self.store.has_uploaded(self.user.name, sha256):
            return True
        for repo_type in REPO_TYPES:
            for repo_id, repo in self.store.all_repos(repo_type):
                # A repository with a damaged history, or deleted meanwhile, must not fail this request.
                with contextlib.suppress(HubHTTPError):
                    if self.can_read_files(repo_id, repo) and repo.contains_blob(sha256):
                        return True
        return False

    def require_user(self, action: str) -> User:
        """Return the user, or refuse a request without a token."""
        if self.user is None:
            raise token_required(action)
        return self.user

    def writable_repo(self) -> tuple[RepoId, Repo, User]:
        """Return the repository in the path, which the user must be allowed to change, and the user."""
        return self.check_writable(self.repo_id)

    def check_writable(self, repo_id: RepoId) -> tuple[RepoId, Repo, User]:
        """Return a repository that the user may change, and the user."""
        repo_id, repo = self.check_readable(repo_id)
        user = self.require_user("Changing a repository")
        if not user.can_write(repo_id):
            raise forbidden(f"{user.name} has no right to change {repo_id.full_name}")
        return repo_id, repo, user

    def paginate(
        self,
        items: Sequence[Item],
        serialize: Callable[[Sequence[Item]], list[dict[str, Any]]],
        default: int,
        max_limit: int,
    ) -> Response:
        """Respond with one page of a list and a link to the next.

        Args:
            items: The whole list.
            serialize: Makes the JSON of the items of this page.
            default: Length of a page if the client sets no limit.
            max_limit: Maximum length of a page.
        """
        start = self.number("cursor", 0, len(items))
        end = start + max(1, self.number("limit", default, max_limit))
        headers = {}
        if end < len(items):
            pairs = [pair for pair in self.request.query_params.multi_items() if pair[0] != "cursor"]
            url = f"{self.base_url}{self.path}?{urlencode([*pairs, ('cursor', str(end))])}"
            headers["Link"] = f'<{url}>; rel="next"'
        return json_response(serialize(items[start:end]), headers=headers)


async def read_body(request: Request, limit_bytes: int = MAX_BODY_BYTES) -> bytes:
    """Read a body into memory.

    Raises:
        HubHTTPError: 413, it is larger than the limit.
    """
    check_length(request, limit_bytes)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit_bytes:
            raise too_large(f"The body is larger than {limit_bytes} bytes.")
    return bytes(body)


async def stream_body(request: Request, write: Callable[[list[bytes]], object], limit_bytes: int) -> int:
    """Pass a body of any size to `write`, some pieces at a time, in a thread; return its size.

    Memory holds two such lists. While one is written the next one is received, so hashing and the network overlap.

    Raises:
        HubHTTPError: 413, the body is larger than the limit.
    """
    check_length(request, limit_bytes)
    num_bytes = num_written = 0
    pieces: list[bytes] = []
    writing: asyncio.Future[object] | None = None
    try:
        async for piece in request.stream():
            num_bytes += len(piece)
            if num_bytes > limit_bytes:
                raise too_large(f"The body is larger than {limit_bytes} bytes.")
            pieces.append(piece)
            if num_bytes - num_written >= PIECE_BYTES:
                if writing:
                    await writing
                writing = asyncio.ensure_future(run_in_threadpool(write, pieces))
                pieces, num_written = [], num_bytes
    finally:
        # Also on failure: the file is closed after this, and the thread may still be writing to it.
        if writing:
            await asyncio.wait([writing])
    if writing:
        await writing
    await run_in_threadpool(write, pieces)
    return num_bytes


def check_length(request: Request, limit_bytes: int) -> None:
    """Refuse a body by its Content-Length, before any of it is read."""
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > limit_bytes:
        raise too_large(f"The body is larger than {limit_bytes} bytes.")


def json_response(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Make a JSON response. ASCII only, so that a lone surrogate from a model card can be encoded."""
    content = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"), default=str)
    return Response(content, status, headers, media_type="application/json")


def error_response(error: HubHTTPError) -> Response:
    """Make the response to an error."""
    # The body has the message as it is. A header is printable ASCII without space at its ends (RFC 9110, section 5.5):
    # h11 closes the connection rather than send another one.
    message = " ".join(re.sub(r"[^\x20-\x7e]", _header_character, error.message).split())
    headers = {"X-Error-Code": error.code, "X-Error-Message": message[:MAX_HEADER_CHARS].rstrip(), **error.headers}
    return json_response({"error": error.message}, error.status, headers)


def _header_character(match: re.Match[str]) -> str:
    return "?" if match[0].isprintable() else " "
