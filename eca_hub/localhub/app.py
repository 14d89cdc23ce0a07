"""The hub as an ASGI application: routes, error handlers, request ids."""

import contextlib
import inspect
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eca_hub.localhub import downloads, management, reads, uploads
from eca_hub.localhub.auth import Users, read_or_create_token
from eca_hub.localhub.context import RequestContext, error_response, read_body
from eca_hub.localhub.errors import HubHTTPError, disk_full, is_disk_full, repo_not_found
from eca_hub.localhub.store import Store
from eca_hub.localhub.timeouts import BodyTimeoutMiddleware
from eca_hub.localhub.validation import REPO_TYPES, RepoType

Handler = Callable[[RequestContext], Response] | Callable[[RequestContext], Awaitable[Response]]

_REPO_PATHS = tuple(f"/api/{repo_type}s/" for repo_type in REPO_TYPES)
_log = logging.getLogger(__name__)

# 0.0.0.0 reaches this machine too; a name that an attacker controls is never spelled as an address.
_LOOPBACK_HOST = re.compile(rb"(?:localhost|127(?:\.[0-9]{1,3}){3}|0\.0\.0\.0|\[::1?\])(?::[0-9]{1,5})?", re.IGNORECASE)

_XET = "/-/xet/{store}/{writer}"

_ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/", reads.show_index),
    ("GET", "/api/whoami-v2", reads.whoami),
    ("GET", "/api/settings/repositories", reads.own_repos),
    ("GET", "/api/organizations/{owner}/settings/repositories", reads.own_repos),
    ("POST", "/api/validate-yaml", reads.validate_yaml),
    ("POST", "/api/repos/create", management.create_repo),
    ("DELETE", "/api/repos/delete", management.delete_repo),
    ("POST", "/api/repos/move", management.move_repo),
    ("POST", _XET + "/v1/xorbs/default/{xorb}", uploads.put_xorb),
    ("POST", _XET + "/v1/shards", uploads.put_shard),
    ("PUT", "/-/lfs/{oid}", uploads.put_lfs_object),
)
_API_ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "", reads.repo_info),
    ("GET", "/revision/{rev}", reads.repo_info),
    ("PUT", "/settings", management.change_settings),
    ("GET", "/auth-check", reads.auth_check),
    ("GET", "/auth-check/write", reads.auth_check),
    ("GET", "/refs", reads.list_refs),
    ("GET", "/commits/{rev}", reads.list_commits),
    ("POST", "/branch/{rev}", management.create_branch),
    ("DELETE", "/branch/{rev}", management.delete_branch),
    ("POST", "/tag/{rev}", management.create_tag),
    ("DELETE", "/tag/{rev}", management.delete_tag),
    ("GET", "/tree/{rev}", reads.list_tree),
    ("GET", "/tree/{rev}/{path:path}", reads.list_tree),
    ("POST", "/paths-info/{rev}", reads.paths_info),
    ("POST", "/preupload/{rev}", uploads.preupload),
    ("POST", "/commit/{rev}", uploads.commit),
    ("GET", "/xet-write-token/{rev}", uploads.xet_write_token),
)
_PAGE_ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("POST", ".git/info/lfs/objects/batch", uploads.lfs_batch),
    ("POST", ".git/info/lfs/verify", uploads.lfs_verify),
    ("GET", "/resolve/{rev}/{path:path}", downloads.download),
    ("GET", "/tree/{rev}", reads.show_repo),
    ("GET", "/commit/{rev}", reads.show_repo),
    ("GET", "", reads.show_repo),
)
# Routes below a repository that match none of ours, such as /api/models/OWNER/NAME/likers of the Hub, or .../tree
# without a revision. /api/models/NAME/tree/main is a name without an owner.
_OWN_PARTS = {path.split("/")[1] for _, path, _ in _API_ROUTES if path}
_BELOW_REPO = re.compile(
    rf"/api/(?:{'|'.join(REPO_TYPES)})s/[^/]+/(?!(?:{'|'.join(sorted(_OWN_PARTS))})/)[^/]+/([a-z-]+)(?:/|$)"
)


def create_app(store: Store, users: Users, is_loopback_only: bool = False) -> ASGIApp:
    """Make the hub's application, to be served by itself or mounted under a path of another one.

    Args:
        store: An opened store. The application does not close it.
        users: The known tokens.
        is_loopback_only: Refuse requests whose Host header does not name the loopback. Otherwise a web page whose host
            name resolves to 127.0.0.1 (DNS rebinding) could read the public repositories.
    """

    def route(method: str, path: str, handler: Handler, repo_type: RepoType = "model") -> Route:
        return Route(path, _endpoint(store, users, path, handler, repo_type), methods=[method])

    routes = [route(method, path, handler) for method, path, handler in _ROUTES]
    for repo_type in REPO_TYPES:
        routes.append(route("GET", f"/api/{repo_type}s", reads.list_repos, repo_type))
        for method, path, handler in _API_ROUTES:
            routes.append(route(method, f"/api/{repo_type}s/{{owner}}/{{name}}{path}", handler, repo_type))
    # Pages of models come last: they have no prefix, so /{owner}/{name} also matches /api/datasets, and
    # /{owner}/{name}/resolve/{rev}/{path} the files of a dataset that is called `resolve`.
    for repo_type in sorted(REPO_TYPES, key=lambda repo_type: repo_type == "model"):
        page = "" if repo_type == "model" else f"/{repo_type}s"
        for method, path, handler in _PAGE_ROUTES:
            routes.append(route(method, f"{page}/{{owner}}/{{name}}{path}", handler, repo_type))
    handlers = {HubHTTPError: _on_hub_error, HTTPException: _on_no_route, OSError: _on_os_error, Exception: _on_bug}
    app = Starlette(routes=routes, exception_handlers={**handlers, ClientDisconnect: _on_disconnect})
    app.router.redirect_slashes = False
    return _RequestMiddleware(app, is_loopback_only)


@contextlib.contextmanager
def open_app(root: Path, users: Path | None = None) -> Iterator[ASGIApp]:
    """Open a hub's folder as an ASGI application, to be mounted under a path of another one.

    Args:
        root: Folder of the hub; created if it is missing.
        users: JSON file with users and their tokens; without it the one token is that of ROOT/token.
    """
    accounts = Users.from_file(users) if users else None
    with contextlib.closing(Store(root)) as store:
        yield BodyTimeoutMiddleware(create_app(store, accounts or Users.single(read_or_create_token(root))))


class _RequestMiddleware:
    """Check the host, route by the path as it was sent, and add a request id to every response.

    Starlette routes on the decoded path, in which the slash of `feature%2Fx` looks like a separator.
    """

    def __init__(self, app: ASGIApp, is_loopback_only: bool) -> None:
        self._app = app
        self._is_loopback_only = is_loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        raw_path = scope.get("raw_path") or quote(scope["path"]).encode()
        request_id = _client_request_id(scope["headers"]) or secrets.token_hex(8).encode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id)]
            await send(message)

        app = self._app
        if self._is_loopback_only and not _is_for_loopback(scope["headers"]):
            message = "This hub listens on loopback only: the Host header must be localhost, 127.0.0.1 or [::1]."
            app = error_response(HubHTTPError(400, "bad_host", message))
        await app({**scope, "path": raw_path.decode("latin-1")}, receive, send_with_id)


def _is_for_loopback(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether a request names the loopback as its host, or no host, which browsers always send."""
    return all(_LOOPBACK_HOST.fullmatch(value) for name, value in headers if name == b"host")


def _client_request_id(headers: list[tuple[bytes, bytes]]) -> bytes | None:
    """Return the request id that the client has set, if it is valid in a header."""
    values = dict(reversed(headers))
    request_id = values.get(b"x-request-id") or values.get(b"x-amzn-trace-id") or b""
    return request_id if re.fullmatch(rb"[A-Za-z0-9._:;=-]{1,128}", request_id) else None


def _endpoint(
    store: Store, users: Users, path: str, handler: Handler, repo_type: RepoType
) -> Callable[[Request], Awaitable[Response]]:
    is_async = inspect.iscoroutinefunction(handler)
    # Links under /-/ carry their own permission in place of a user's token.
    checks_token = not path.startswith("/-/")

    async def endpoint(request: Request) -> Response:
        context = RequestContext(store, users, request, repo_type)
        if checks_token:
            context.check_token()
        if is_async:
            response = handler(context)
            assert inspect.isawaitable(response)
            return await response
        context.body = await read_body(request)
        return await run_in_threadpool(store.run, handler, context)  # type: ignore[arg-type]

    return endpoint


async def _on_hub_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HubHTTPError)
    return error_response(error)


async def _on_no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    if error.status_code == 404 and (below_repo := _BELOW_REPO.match(path)):
        part = below_repo[1]
        if part in _OWN_PARTS:
            return error_response(HubHTTPError(404, "not_found", f"This hub has no such route below /{part}."))
        message = f"This hub has no route /{part} of a repository: it stores files, branches and tags."
        return error_response(HubHTTPError(501, "not_implemented", message))
    # A name without an owner matches no route; the client expects the response for a missing repository.
    if error.status_code == 404 and (path.startswith(_REPO_PATHS) or "/resolve/" in path):
        return error_response(repo_not_found("authorization" in request.headers))
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    return error_response(HubHTTPError(error.status_code, code, error.detail, dict(error.headers or {})))


async def _on_os_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    if is_disk_full(error):
        return error_response(disk_full())
    return await _on_bug(request, error)


async def _on_bug(request: Request, error: Exception) -> Response:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return error_response(HubHTTPError(500, "internal_error", "The hub failed; see its log."))


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=400)
