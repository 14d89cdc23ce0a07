"""One request as the routes see it: who asks, for which repository, with what right, and how to answer.

Knows HTTP, the store and the users; knows no single route.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes, urlencode

from starlette.requests import Request
from starlette.responses import Response

from eca_hub.localhub.auth import User, Users
from eca_hub.localhub.errors import (
    HubRefusal,
    bad_request,
    bad_token,
    forbidden,
    gated,
    invalid,
    repo_not_found,
    token_needed,
    too_large,
)
from eca_hub.localhub.repos import Repo
from eca_hub.localhub.store import Store
from eca_hub.localhub.validation import RepoId, RepoType, parse_repo_id

Item = TypeVar("Item")
MAX_BODY_BYTES = 4 << 20
_HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


@dataclass(frozen=True)
class Hub:
    """What every request may use."""

    store: Store
    users: Users
    lfs_part_bytes: int


class Call:
    """One request.

    Args:
        hub: The store and the users.
        request: The request; its path is routed as it was sent, still percent-encoded, so that `%2F` in a branch is no
            slash.
        repo_type: What the path speaks of.
    """

    def __init__(self, hub: Hub, request: Request, repo_type: RepoType = "model") -> None:
        self.hub = hub
        self.store = hub.store
        self.request = request
        self.repo_type = repo_type
        self.body = b""

    @cached_property
    def user(self) -> User | None:
        """Who asks, or None without a token."""
        headers = [value for name, value in self.request.headers.raw if name == b"authorization"]
        if not headers:
            return None
        scheme, _, token = headers[0].partition(b" ")
        user = self.hub.users.find(token.strip()) if len(headers) == 1 and scheme.lower() == b"bearer" else None
        if user is None:
            raise bad_token()
        return user

    def check_token(self) -> None:
        """Refuse a token that nobody owns, also where none is needed."""
        _ = self.user

    def param(self, name: str) -> str:
        """Return a part of the path, decoded."""
        try:
            return unquote_to_bytes(self.request.path_params[name]).decode()
        except UnicodeDecodeError:
            raise invalid("The path is not valid UTF-8.") from None

    def query(self, name: str, default: str = "") -> str:
        """Return the first value of a query parameter."""
        return self.request.query_params.get(name, default)

    def flag(self, name: str) -> bool:
        """Whether a query parameter says yes."""
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
        """Read the body as a JSON object."""
        try:
            value = json.loads(self.body or b"{}")
        except (ValueError, RecursionError):
            raise bad_request("The body is not JSON.") from None
        if not isinstance(value, dict):
            raise bad_request("The body must be a JSON object.")
        return value

    def form_body(self) -> list[tuple[str, str]]:
        """Read the body as an urlencoded form."""
        try:
            return parse_qsl(self.body.decode(), keep_blank_values=True, max_num_fields=10_000, errors="strict")
        except ValueError:
            raise bad_request("The body is not an urlencoded form.") from None

    @property
    def base_url(self) -> str:
        """The hub's URL under the very name by which the client called it."""
        host = self.request.headers.get("host", "")
        if not _HOST.fullmatch(host):
            raise bad_request("The Host header is not a host name.")
        return f"{self.request.url.scheme}://{host}{self.request.scope.get('root_path', '')}"

    @property
    def path(self) -> str:
        """The path under the hub's URL, as it was sent."""
        path: str = self.request.scope["path"]
        return path.removeprefix(self.request.scope.get("root_path", ""))

    @property
    def repo_id(self) -> RepoId:
        """The repository that the path names, as the caller spells it."""
        return parse_repo_id(self.repo_type, f"{self.param('owner')}/{self.param('name')}")

    def repo(self) -> tuple[RepoId, Repo]:
        """Return the repository that the path names, with its name as its owner spells it.

        Raises:
            HubRefusal: There is none, or this caller may not see it.
        """
        return self.readable(self.repo_id)

    def readable(self, repo_id: RepoId) -> tuple[RepoId, Repo]:
        """Return a repository that the caller may see."""
        found = self.store.find(repo_id)
        if found is None or not self.may_read(*found):
            raise repo_not_found(self.user is not None)
        return found

    def may_read(self, repo_id: RepoId, repo: Repo) -> bool:
        """Whether the caller may see this repository."""
        return not repo.settings.is_private or (self.user is not None and self.user.owns(repo_id))

    def check_files_are_open(self, repo_id: RepoId, repo: Repo) -> None:
        """Refuse the files of a gated repository to all but its owner."""
        if repo.settings.gated and not (self.user and self.user.owns(repo_id)):
            raise gated(repo_id.full_name, self.user is not None)

    def logged_in(self, action: str) -> User:
        """Return the caller, who must have a token."""
        if self.user is None:
            raise token_needed(action)
        return self.user

    def writable(self, repo_id: RepoId) -> tuple[RepoId, Repo]:
        """Return a repository that the caller may change."""
        repo_id, repo = self.readable(repo_id)
        user = self.logged_in("Changing a repository")
        if not user.may_write(repo_id):
            raise forbidden(f"{user.name} has no right to change {repo_id.full_name}")
        return repo_id, repo

    def contributable(self) -> tuple[RepoId, Repo, User]:
        """Return a repository to which the caller may at least propose a change."""
        repo_id, repo = self.repo()
        user = self.logged_in("Uploading")
        if user.role == "read":
            raise forbidden(f"{user.name} may only read")
        return repo_id, repo, user

    def page(self, items: Sequence[Item], view: Callable[[Item], object], default: int, largest: int) -> Response:
        """Answer with one page of a list and a link to the next.

        Args:
            items: The whole list.
            view: Makes an item's JSON; called for this page only.
            default: Length of a page when the caller names no limit.
            largest: No page is longer.
        """
        start = self.number("cursor", 0, len(items))
        end = start + max(1, self.number("limit", default, largest))
        headers = {}
        if end < len(items):
            pairs = [pair for pair in self.request.query_params.multi_items() if pair[0] != "cursor"]
            url = f"{self.base_url}{self.path}?{urlencode([*pairs, ('cursor', str(end))])}"
            headers["Link"] = f'<{url}>; rel="next"'
        return json_response([view(item) for item in items[start:end]], headers=headers)


async def read_body(request: Request, limit_bytes: int = MAX_BODY_BYTES) -> bytes:
    """Read a body that fits into memory.

    Raises:
        HubRefusal: 413, it does not.
    """
    check_length(request, limit_bytes)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit_bytes:
            raise too_large(f"The body is larger than {limit_bytes} bytes.")
    return bytes(body)


def check_length(request: Request, limit_bytes: int) -> None:
    """Refuse a body by its announced length, before any of it is read."""
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > limit_bytes:
        raise too_large(f"The body is larger than {limit_bytes} bytes.")


def json_response(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Answer in JSON. ASCII only, so that a lone surrogate from a model card cannot break the answer."""
    content = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"), default=str)
    return Response(content, status, headers, media_type="application/json")


def refusal_response(refusal: HubRefusal) -> Response:
    """Answer a refusal, in the one shape that all of them have."""
    # Header values cannot carry line ends or other alphabets; the body has the whole message.
    message = refusal.message.encode("ascii", "replace").decode().replace("\r", " ").replace("\n", " ")
    headers = {"X-Error-Code": refusal.code, "X-Error-Message": message, **refusal.headers}
    return json_response({"error": refusal.message}, refusal.status, headers)
